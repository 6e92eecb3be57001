"""Sidecars that cannot be used are refused before the run, with what to do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from linked_sidecars import ASKED_FIRST, SERVER, URL, connected, started, virtually
from pydantic import ValidationError
from scripted_sidecar import Memory, Scripted

from loadgen import clock
from loadgen.cli import main
from loadgen.errors import ConfigError, LoadgenError, PowerError
from loadgen.power.sidecars import open_sidecars
from loadgen.scenario import Scenario
from loadgen.scenario_power import Power
from loadgen.target import sidecar_token


def refused(**options: Any) -> str:
    options = dict(options)
    given = {key: options.pop(key) for key in ("token_given", "baseline_s") if key in options}

    async def main() -> None:
        async with connected(
            await started(**options),
            token=given.get("token_given"),
            baseline_s=given.get("baseline_s", 2.0),
        ):
            raise AssertionError("it was accepted")

    with pytest.raises(PowerError) as refusal:
        virtually(main)
    assert "\n" not in str(refusal.value) and "127.0.0.1:9400" in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"token": "t"}, "asks for a token: give the one"),
        ({"token": "t", "token_given": "wrong"}, "refuses this token"),
        ({"schema": 2}, "speaks schema 2, this loadgen 1: use the same version"),
        ({"health": (503, {"status": "stale", "reason": "7 s old"})}, "takes no samples (stale: 7 s old)"),
        ({"health": (503, {"status": "starting"})}, "takes no samples (starting"),
        (
            {"health": (404, {"error": "gone"})},
            "not the answer of a loadgen sidecar (HTTP 404 /health: gone)",
        ),
        ({"skipped": lambda tick: True}, "no sample yet"),
        ({"domains": ()}, "can read nothing there: cpu: no RAPL; ram: none"),
        (
            {"interval_s": 0.5},
            "samples every 0.5 s, too seldom for power.baseline_s 2: raise that to 5 (or 0: none), "
            "or start it with --interval 0.2",
        ),
        ({"baseline_s": 0.2}, "raise that to 0.5 (or 0: none), or start it with --interval 0.02"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_run_with_what_to_do(
    options: dict[str, Any], words: str
) -> None:
    assert words in refused(**options)


def test_a_token_is_sent_and_never_shown() -> None:
    async def main() -> None:
        async with connected(await started(token="hunter2"), token="hunter2") as (opened, _):
            assert "hunter2" not in repr(opened.manifest(0.0))

    virtually(main)
    assert "hunter2" not in refused(token="other", token_given="hunter2")


def test_nothing_behind_the_address_is_refused_with_what_to_start() -> None:
    async def main() -> None:
        runner = await Scripted().runner()
        link = Memory(runner)
        link.cut()
        with pytest.raises(PowerError, match=r"nothing answers.*loadgen sidecar. beside the server"):
            async with open_sidecars(
                [("", URL)], token=None, server_url=SERVER, baseline_s=0, connector=lambda url: link
            ):
                pass
        await runner.cleanup()

    virtually(main)


def test_a_sidecar_that_is_just_starting_is_waited_for() -> None:
    async def main() -> None:
        made = Scripted(health=(503, {"status": "starting"}))

        async def ready() -> None:
            await asyncio.sleep(1.0)
            made.health = (200, {"status": "ok"})

        task = asyncio.create_task(ready())
        async with connected(made):
            assert clock.now() >= 1.0
        await task

    virtually(main)


def test_the_same_board_given_twice_is_refused() -> None:
    async def main() -> None:
        one, two = await started(), Scripted(id="b")
        two.origin_s = one.origin_s
        async with connected(one, two, names=("node0", "node1")):
            pass

    with pytest.raises(LoadgenError, match="they would be counted twice"):
        virtually(main)


@pytest.mark.parametrize("path", ASKED_FIRST)
def test_a_sidecar_that_never_answers_is_refused_in_5_s(path: str) -> None:
    async def main() -> None:
        runner = await (await started(hangs=path)).runner()
        began_s = clock.now()
        with pytest.raises(PowerError, match="no answer in 5 s"):
            async with open_sidecars(
                [("", URL)], token=None, server_url=SERVER, baseline_s=0, connector=lambda _: Memory(runner)
            ):
                raise AssertionError("it was accepted")
        assert clock.now() - began_s < 6.0
        await runner.cleanup()

    virtually(main)


@pytest.mark.parametrize(
    ("server", "power", "words"),
    [
        ({}, {"sidecars": [URL]}, "a sidecar measures a real host"),
        ({"url": SERVER}, {"sidecars": [URL], "source": "none"}, "none with power.source none"),
        ({"url": SERVER}, {"sidecars": [URL], "source": "nvml"}, "none with power.source nvml"),
        ({"url": SERVER}, {"sidecars": ["gpu-host:9400"]}, r"\[NAME=\]http://HOST:PORT"),
        ({"url": SERVER}, {"sidecars": ["http://me:hunter2@h:9400"]}, "no credentials"),
        ({"url": SERVER}, {"sidecars": [f"a={URL}", f"a={URL}"]}, "each sidecar a name of its own"),
    ],
)
def test_a_scenario_whose_sidecars_cannot_be_used_is_refused(
    server: dict[str, Any], power: dict[str, Any], words: str
) -> None:
    load = {"pattern": "constant", "interval_s": 1.0, "requests": 1}
    with pytest.raises(ValidationError, match=words) as refusal:
        Scenario.model_validate({"name": "t", "load": load, "server": server, "power": power})
    assert "hunter2" not in "".join(str(e["ctx"]) for e in refusal.value.errors())


def test_names_of_sidecars() -> None:
    assert Power(sidecars=[URL]).addresses == [("", URL)]
    assert Power(sidecars=[f"a={URL}"]).addresses == [("a", URL)]
    assert Power(sidecars=[URL, f"b={URL}"]).addresses == [("node0", URL), ("b", URL)]


def test_virtual_time_and_an_empty_token_file_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = ["run", "fixed_50ms", "--url", SERVER, "--sidecar", URL, "--output-dir", str(tmp_path), "--quiet"]
    assert main([*run, "--clock", "virtual"]) == 2
    assert "only the embedded server can be run in virtual time" in capsys.readouterr().err
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ConfigError, match="expected a token, got nothing"):
        sidecar_token(tmp_path / "token")
    (tmp_path / "token").write_text("t\n")
    assert sidecar_token(tmp_path / "token") == "t"
