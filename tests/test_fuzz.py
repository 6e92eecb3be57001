"""A slice of the fuzzer: the first requests of a seed against a server over TCP, and that it sees harm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_openapi import OPENAPI

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from fuzz_requests import Attacks  # noqa: E402
from fuzz_server import fault_of, raised  # noqa: E402

JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream"}


@pytest.fixture(scope="module", autouse=True)
def openapi() -> None:
    if not OPENAPI.exists():
        pytest.skip(f"TGI's openapi.json is not at {OPENAPI}")


def test_nothing_in_a_few_hundred_requests_harms_the_server() -> None:
    command = [sys.executable, "benchmarks/fuzz_server.py", "--requests", "250", "--seed", "1"]
    command += ["--openapi", str(OPENAPI)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_seed_draws_the_same_requests() -> None:
    description = json.loads(OPENAPI.read_text())
    one, two, other = (Attacks(description, seed) for seed in (1, 1, 2))
    first = [one.next() for _ in range(100)]
    assert first == [two.next() for _ in range(100)]
    assert first != [other.next() for _ in range(100)]
    assert len({attack.kind for attack in first}) >= 10


@pytest.mark.parametrize(
    ("status", "headers", "body", "harmful"),
    [
        (200, JSON, b'{"a":1}', False),
        (200, JSON, b'{"a":', True),
        (500, JSON, b"{}", True),
        (503, {}, b"", True),
        (422, {}, b"words", False),
        (200, SSE, b'data: {"a":1}\n\n:\n\ndata: [DONE]\n\n', False),
        (200, SSE, b'data: {"a":1}\n', True),
        (200, SSE, b'data: {"a":\n\n', True),
        (200, SSE, b"event: x\n\n", True),
    ],
)
def test_the_judge(status: int, headers: dict[str, str], body: bytes, harmful: bool) -> None:
    assert (fault_of(status, headers, body) is not None) is harmful


def test_tracebacks_are_counted_by_how_they_end() -> None:
    text = "Traceback (most recent call last):\n  File x\n    y\nValueError: bad\n"
    mild = "Traceback (most recent call last):\n  File x\naiohttp.http_exceptions.BadHttpMessage: 400\n"
    assert raised("said nothing") == {}
    assert raised(text + mild + text) == {"ValueError: bad": 2}
