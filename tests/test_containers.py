"""docker/: what can be held true of it without an engine.

Oracles: compose-spec's own schema, hadolint, shellcheck, bash, this project's argument parser, and the
Slurm script run whole with the real server, sidecar and load generator on loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shlex
import socket
import subprocess
import sys
import time as wall
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from loadgen import cli
from loadgen.verbs.parser import build_parser

PARSER = build_parser(cli.GO)
ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
SBATCH = DOCKER / "slurm" / "loadgen.sbatch"
BIN = Path(sys.executable).parent
SERVERS = {"tgi": "sidecar", "vllm": "sidecar", "llama": "sidecar-cpu"}
OURS = re.compile(r"^loadgen(-sidecar|-tgi)?:[0-9.]+$")
# Flags of servers that are not ours: vLLM's `serve --help`, and llama.cpp's tools/server/README.md.
FOREIGN_FLAGS = {
    "vllm": {"--model", "--port"},
    "llama": {"--hf-repo", "--port", "--parallel", "--ctx-size", "--metrics"},
}
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^${}]*))?\}")


def interpolated(text: str, **given: str) -> str:
    """As Compose does it: ${X}, ${X:-default} and ${X:?message}, nested."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if given.get(name):
            return given[name]
        assert kind != "?", f"{name}: {rest}"
        return rest or ""

    while (changed := VARIABLE.sub(value, text)) != text:
        text = changed
    return text


def services(name: str = "compose.yaml", **given: str) -> dict[str, dict[str, Any]]:
    """The services of a file of docker/, its strings interpolated."""
    given = {"MODEL": "some/model", "HOME": "/home/me", "POWERCAP_GID": "977", **given}

    def fill(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: fill(value) for key, value in node.items()}
        if isinstance(node, list):
            return [fill(value) for value in node]
        return interpolated(node, **given) if isinstance(node, str) else node

    filled: dict[str, dict[str, Any]] = fill(yaml.safe_load((DOCKER / name).read_text())["services"])
    return filled


def run(*words: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, words)], check=False, capture_output=True, text=True, timeout=60, **more)


def verbs() -> dict[str, argparse.ArgumentParser]:
    (chooser,) = (a for a in PARSER._actions if isinstance(a, argparse._SubParsersAction))
    return dict(chooser.choices)


def assert_ours(line: str) -> None:
    """Every verb and flag of a ``loadgen ...`` line is the parser's."""
    _, verb, *words = shlex.split(line, comments=True)
    if verb in ("--help", "--version"):
        return
    assert verb in verbs(), f"{line}: no verb {verb}"
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert flags <= set(verbs()[verb]._option_string_actions), line


def ours_in(text: str) -> Iterator[str]:
    """The command lines of a text that start loadgen, continued lines joined, up to a shell operator."""
    for line in text.replace("\\\n", " ").splitlines():
        if found := re.search(
            r"""(?:^|[\s`'(/])(?:loadgen|"\$loadgen") (?:(?=--)|(?=[a-z]+ ))[^`|&;>]*""", line
        ):
            words = re.sub(r"\[|\]|\$\{?\w+(\[@\])?\}?|<|…|\.\.\.", "", found[0].strip("`'( /"))
            if words.split()[1] in verbs() or words.split()[1].startswith("--"):
                yield words


def schema_errors(path: Path) -> str:
    found = run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)
    return "" if found.returncode == 0 else found.stdout


@pytest.mark.parametrize("name", ["compose.yaml", "rapl.yaml"])
def test_compose_files_follow_the_compose_specification(name: str) -> None:
    assert schema_errors(DOCKER / name) == ""


def test_an_unknown_key_does_not_follow_it(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((DOCKER / "compose.yaml").read_text().replace("read_only: true", "readonly: true", 1))
    assert "readonly" in schema_errors(wrong)


@pytest.mark.parametrize("profile", SERVERS)
def test_a_profile_is_one_server_one_sidecar_and_loadgen_on_one_network(profile: str) -> None:
    active = {name: s for name, s in services().items() if profile in s["profiles"]}
    beside = SERVERS[profile]
    assert set(active) == {profile, beside, "loadgen"}
    server, sidecar, client = active[profile], active[beside], active["loadgen"]
    assert server["network_mode"] == f"service:{beside}"
    assert server["depends_on"] == {beside: {"condition": "service_healthy"}}
    assert client["depends_on"][profile] == {"condition": "service_healthy", "required": False}
    assert set(client["depends_on"]) == set(SERVERS)
    ((network, joined),) = sidecar["networks"].items()
    assert client["networks"] == [network]
    (host,) = joined["aliases"]
    args = PARSER.parse_args(client["command"])
    server_port = re.search(r"--port[= ](\d+)", " ".join(server["command"]))
    watched = PARSER.parse_args(["sidecar", *sidecar["command"]])
    assert server_port is not None
    assert args.url == f"http://{host}:{server_port[1]}"
    assert server_port[1] in " ".join(server["healthcheck"]["test"])
    assert args.sidecar == [f"http://{host}:{str(watched.listen).rpartition(':')[2]}"]
    assert str(args.sidecar_token_file) == str(watched.token_file) == "/run/secrets/sidecar_token"
    assert client["secrets"] == sidecar["secrets"] == ["sidecar_token"]


@pytest.mark.parametrize("name", [*SERVERS, "sidecar", "sidecar-cpu", "loadgen"])
def test_a_service_has_no_more_rights_than_it_needs(name: str) -> None:
    service = services()[name]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"cap_add", "privileged", "ports", "devices", "group_add", "ipc"} & set(service)
    assert service.get("pid") == ("host" if name.startswith("sidecar") else None)
    assert service["healthcheck"]["test"][0] == "CMD"
    image = service["image"]
    assert OURS.match(image) or re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", image), image
    assert "build" in service or "@" in image


def test_server_and_sidecar_have_the_same_user_and_board() -> None:
    """What the sidecar needs to see the server's process."""
    all_services = services(GPU="GPU-1b2c", LOADGEN_UID="1234")
    for server, sidecar in SERVERS.items():
        assert all_services[server]["user"] == all_services[sidecar]["user"] == "1234:1000"
        boards = [
            s.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
            for s in (all_services[server], all_services[sidecar])
        ]
        assert [d["device_ids"] for d in boards[0]] == [d["device_ids"] for d in boards[1]]
        assert [d["device_ids"] for d in boards[0]] == ([] if server == "llama" else [["GPU-1b2c"]])


def test_tgis_flags_are_its_launchers() -> None:
    """`loadgen serve` takes exactly the launcher's flags, so it takes the service's command too."""
    args = PARSER.parse_args(["serve", *services()["tgi"]["command"]])
    assert (args.model_id, args.port, args.max_concurrent_requests) == ("some/model", 8000, "4096")
    with pytest.raises(SystemExit):
        PARSER.parse_args(["serve", "--max-concurent-requests=4096"])


@pytest.mark.parametrize("name", FOREIGN_FLAGS)
def test_flags_of_other_servers_are_known_ones(name: str) -> None:
    used = {w.partition("=")[0] for w in services()[name]["command"] if w.startswith("--")}
    assert used == FOREIGN_FLAGS[name]


def test_every_flag_of_ours_exists() -> None:
    texts = [path.read_text() for path in (SBATCH, ROOT / "docs" / "containers.md", DOCKER / "compose.yaml")]
    lines = [line for text in texts for line in ours_in(text)]
    assert len(lines) >= 5  # the pattern still finds them
    for line in lines:
        assert_ours(line)
    dockerfile = (DOCKER / "Dockerfile").read_text()
    entries = re.findall(r"^ENTRYPOINT (\[.*\])\nCMD (\[.*\])$", dockerfile, re.MULTILINE)
    assert len(entries) == 2
    for entry, words in entries:
        assert_ours(shlex.join(json.loads(entry) + json.loads(words)))


@pytest.mark.parametrize(
    "line", ["loadgen sidecar --port 1", "loadgen run x --side-car http://h", "loadgen fly x"]
)
def test_a_flag_that_does_not_exist_is_seen(line: str) -> None:
    with pytest.raises(AssertionError):
        assert_ours(line)


def test_hadolint_passes_the_dockerfile_and_not_a_bad_one(tmp_path: Path) -> None:
    good = run(BIN / "hadolint", DOCKER / "Dockerfile")
    assert (good.returncode, good.stdout) == (0, "")
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian:latest\nRUN cd /tmp && sudo apt-get install gcc\n")
    assert run(BIN / "hadolint", bad).returncode == 1


def test_images_hold_no_secret_and_end_as_a_plain_user() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    instructions = [i for i in text.replace("\\\n", " ").splitlines() if i and not i.startswith("#")]
    named = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY", re.IGNORECASE)
    assert not [i for i in instructions if named.search(i)]
    users: dict[str, str] = {}
    for instruction in instructions:
        word, _, rest = instruction.partition(" ")
        if word == "FROM":
            base, _, stage = rest.partition(" AS ")
            users[stage] = users.get(base, "0:0")
        elif word == "USER":
            users[stage] = rest
    assert {users[s] for s in ("loadgen", "sidecar", "tgi")} == {"1000:1000"}
    for service in services().values():
        assert not [key for key in service.get("environment", {}) if named.search(key)]
    for line in (DOCKER / ".env.example").read_text().splitlines():
        assert not named.search(line.partition("=")[0]) or line.startswith("#")


def test_a_container_that_is_stopped_gets_the_signal_that_keeps_a_run_and_time_to_write_it() -> None:
    """Process 1 has no default handlers: `loadgen run` would not notice SIGTERM."""
    stage = (DOCKER / "Dockerfile").read_text().partition(" AS loadgen\n")[2].partition("\nFROM ")[0]
    assert "\nSTOPSIGNAL SIGINT\n" in stage
    assert {s["stop_grace_period"] for s in services().values()} == {"30s"}


def test_the_build_context_is_what_the_wheel_is_made_of() -> None:
    lines = [x for x in (ROOT / ".dockerignore").read_text().splitlines() if x and not x.startswith("#")]
    assert lines[0] == "*"
    entering = {line[1:] for line in lines if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], *project["project"]["license-files"]}
    assert entering == needed | {project["project"]["readme"], "pyproject.toml"}


def test_rapl_adds_a_group_and_the_tree_read_only_and_no_other_right() -> None:
    for name, service in services("rapl.yaml").items():
        assert set(service) == {"command", "group_add", "volumes"}
        assert service["group_add"] == ["977"]
        assert all(v["read_only"] and v["source"].endswith("/powercap") for v in service["volumes"])
        args = PARSER.parse_args(["sidecar", *service["command"]])
        assert str(args.powercap) in {v["target"] for v in service["volumes"]}
        assert service["command"][:-1] == services()[name]["command"]
    with pytest.raises(AssertionError, match="POWERCAP_GID"):
        services("rapl.yaml", POWERCAP_GID="")


def test_the_slurm_script_is_sound(tmp_path: Path) -> None:
    assert run("bash", "-n", SBATCH).stderr == ""
    assert run(BIN / "shellcheck", "--enable=all", "--exclude=SC2312,SC2310,SC2250", SBATCH).stdout == ""
    bad = tmp_path / "bad.sh"
    bad.write_text("#!/bin/bash\nrm -rf $1/x\n")
    assert run(BIN / "shellcheck", bad).returncode == 1


BOARDS = "0, GPU-aaaa, Disabled\n1, GPU-bbbb, [N/A]\n2, GPU-cccc, Enabled"


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ""),
        ("1,0", "GPU-bbbb\nGPU-aaaa\n"),
        ("GPU-bbbb", "GPU-bbbb\n"),
        ("", "no board"),
        ("7", "names board 7"),
        ("2", "MIG"),
        ("MIG-1234", "MIG"),
    ],
)
def test_boards_are_named_by_uuid_and_mig_is_refused(
    tmp_path: Path, visible: str | None, expected: str
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\necho '{BOARDS}'\n")
    smi.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"} | (
        {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    )
    found = run("bash", "-c", f". {SBATCH}; boards", env=env)
    if expected.startswith("GPU") or not expected:
        assert (found.returncode, found.stdout) == (0, expected)
    else:
        assert found.returncode == 2
        assert expected in found.stderr


def test_the_servers_command_in_apptainer() -> None:
    env = {"PATH": "/usr/bin:/bin", "MODEL": "m", "IMAGE": "i.sif", "PORT": "8001", "HF_HOME": "/c"}
    shown = f". {SBATCH}; server_command; printf '%s\\n' \"${{SERVER_ARGV[@]}}\""
    words = run("bash", "-c", shown, env=env).stdout.split()
    assert words[:5] == ["apptainer", "run", "--nv", "--bind", "/c:/hf"]
    launched = PARSER.parse_args(["serve", *words[words.index("i.sif") + 1 :]])
    assert (launched.model_id, launched.port) == ("m", 8001)
    refused = run("bash", "-c", shown, env=env | {"SERVER": "sglang"})
    assert refused.returncode == 2
    assert "expected tgi or vllm" in refused.stderr
    assert "set IMAGE" in run("bash", "-c", shown, env=env | {"IMAGE": ""}).stderr


def free_ports(count: int) -> list[str]:
    """Ports nobody listened on just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(s.getsockname()[1]) for s in sockets]
    for each in sockets:
        each.close()
    return ports


def job(tmp_path: Path, *server: str, flags: str = "--request-count 10") -> tuple[list[str], dict[str, str]]:
    port, sidecar_port = free_ports(2)
    env = {
        "PATH": f"{BIN}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "PORT": port,
        "SIDECAR_PORT": sidecar_port,
        "LOADGEN_FLAGS": f"{flags} --set prompts.max_new_tokens=8 --set power.baseline_s=0.5 --quiet",
        "POLL_S": "0.2",
        "START_LIMIT_S": "20",
        "END_LIMIT_S": "5",
    }
    return ["bash", str(SBATCH), *(word.replace("PORT", port) for word in server)], env


def processes_of(env: dict[str, str]) -> list[psutil.Process]:
    """Those that have this job's environment."""
    marks = {"SIDECAR_PORT": env["SIDECAR_PORT"], "PORT": env["PORT"]}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # another user's, or gone by now
            if marks.items() <= process.environ().items():
                found.append(process)
    return found


@contextmanager
def started(words: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A job that runs in the block; what it leaves behind is ended with it, and is a failure."""
    pipe = subprocess.PIPE
    batch = subprocess.Popen(words, env=env, stdout=pipe, stderr=pipe, text=True)
    try:
        yield batch
        batch.communicate()  # nothing to do when it has ended
        assert [p.cmdline() for p in processes_of(env)] == []
    finally:
        for process in processes_of(env):
            process.kill()
        batch.communicate()


SERVE = ("loadgen", "serve", "--no-warm-up", "--port", "PORT")


def test_a_job_measures_one_that_is_stopped_keeps_its_run_and_both_leave_nothing_behind(
    tmp_path: Path,
) -> None:
    """Two jobs at once, on ports of their own."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    with (
        started(*job(tmp_path / "cut", *SERVE, flags="--request-count 10000")) as cut,
        started(*job(tmp_path / "whole", *SERVE)) as whole,
    ):
        end_s = wall.monotonic() + 30
        while not any(p.stat().st_size for p in (tmp_path / "cut" / "runs").glob("*/requests.jsonl")):
            assert cut.poll() is None and wall.monotonic() < end_s, cut.communicate()
            wall.sleep(0.05)
        cut.terminate()
        cut.communicate(timeout=20)
        stdout, stderr = whole.communicate(timeout=30)
    assert cut.returncode == cli.INTERRUPTED
    (path,) = (tmp_path / "cut" / "runs").glob("*/run.json")
    assert json.loads(path.read_text())["status"] == "interrupted"

    assert whole.returncode in (cli.OK, cli.INVALID), stderr  # loadgen's own: nothing here meters energy
    (path,) = (tmp_path / "whole" / "runs").glob("*-fixed_50ms-*")
    assert stdout.splitlines()[-1] == str(path)
    (sidecar,) = json.loads((path / "run.json").read_text())["sidecars"]
    assert sidecar["samples"]["missing"] == 0
    assert sidecar["clock"]["end"] is not None
    assert len((path / "requests.jsonl").read_text().splitlines()) >= 10
    assert (tmp_path / "whole" / "runs" / "job-7" / "sidecar.log").exists()
    assert not list((tmp_path / "whole").glob("loadgen-sidecar.*"))


def test_a_job_whose_server_ends_says_so_and_ends(tmp_path: Path) -> None:
    with started(*job(tmp_path, "sh", "-c", "echo no weights; exit 1")) as batch:
        _, stderr = batch.communicate(timeout=30)
    assert batch.returncode == 3
    assert "the server ended before it was healthy" in stderr
    assert (tmp_path / "runs" / "job-7" / "server.log").read_text() == "no weights\n"
