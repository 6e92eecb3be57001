"""Throws valid, invalid and malformed requests at ``loadgen serve`` and looks for any harm.

    python benchmarks/fuzz_server.py --minutes 10 [--seed N] [--workers 8] [--openapi FILE]
    python benchmarks/fuzz_server.py --requests 2000 --seed 1

Bodies are drawn from the schemas of TGI's ``openapi.json`` (``../shared/data/tgi`` by
default), tame or wild; around them: broken framing, odd headers, chunked uploads,
pipelining, compressed bodies, aborted connections, unknown paths. Each answer must
come within 10 s of wall time, be below 500 and be whole (JSON that parses, streams
that end as they should). Afterwards the server must be healthy and idle with every
place free, and have printed no traceback. Prints counts, saves each offending
request, and exits 1 when there was one. The same seed draws the same requests for
``--requests``; which of them meet each other is up to the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz_requests import Attack, Attacks

ROOT = Path(__file__).resolve().parents[1]
OPENAPI = ROOT.parent / "shared" / "data" / "tgi" / "openapi.json"
ANSWER_S = 10.0
CONCURRENT = 32


@dataclass
class Found:
    """What happened: answers by kind of attack and status, and every defect with its request."""

    counts: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    defects: list[tuple[str, bytes]] = field(default_factory=list)
    slowest_s: float = 0.0


async def read_answer(
    reader: asyncio.StreamReader, *, headless: bool = False
) -> tuple[int, dict[str, str], bytes]:
    """One HTTP response. Raises IncompleteReadError when the connection ends inside it."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status = int(head.split(" ", 2)[1])
    if status == 100:
        return await read_answer(reader, headless=headless)
    headers = {
        k.lower(): v for k, v in (line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    }
    if headless or status in (204, 304):
        return status, headers, b""
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
        return status, headers, body
    if "content-length" in headers:
        return status, headers, await reader.readexactly(int(headers["content-length"]))
    return status, headers, await reader.read()


def fault_of(status: int, headers: dict[str, str], body: bytes) -> str | None:
    """What is wrong with an answer, if anything."""
    if status >= 500:
        return f"status {status}: {body[:300]!r}"
    kind = headers.get("content-type", "")
    try:
        if kind.startswith("application/json"):
            json.loads(body)
        if kind.startswith("text/event-stream"):
            text = body.decode()
            if not text.endswith("\n\n"):
                return f"a stream that ends in {text[-60:]!r}"
            for block in text[:-2].split("\n\n"):
                if block not in (":", "data: [DONE]"):
                    if not block.startswith("data: "):
                        return f"a stream with {block[:60]!r}"
                    json.loads(block[6:])
    except ValueError as error:
        return f"an answer that does not parse ({error}): {body[:300]!r}"
    return None


async def strike(port: int, attack: Attack, found: Found) -> None:
    """Sends one attack and judges what comes back."""
    started_s = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
    try:
        writer.write(attack.data)
        limit_s = ANSWER_S if attack.hang_up_s is None else attack.hang_up_s
        for _ in range(attack.answers):
            async with asyncio.timeout(limit_s):
                status, headers, body = await read_answer(reader, headless=attack.headless)
            found.counts[attack.kind, str(status)] += 1
            fault = None if attack.headless and status < 500 else fault_of(status, headers, body)
            if fault:
                found.defects.append((f"{attack.kind}: {fault}", attack.data))
            if headers.get("connection") == "close":
                break
        found.slowest_s = max(found.slowest_s, time.monotonic() - started_s)
    except TimeoutError:
        found.counts[attack.kind, "hung up by us" if attack.hang_up_s is not None else "no answer"] += 1
        if attack.hang_up_s is None:
            found.defects.append((f"{attack.kind}: no answer within {ANSWER_S} s", attack.data))
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        found.counts[attack.kind, "closed by the server"] += 1
        if attack.whole:
            found.defects.append(
                (f"{attack.kind}: connection closed without an answer: {error!r}", attack.data)
            )
    finally:
        writer.transport.abort()


async def ask(port: int, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
    """A plain request for the checks at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    fields = f"host: h\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(f"{method} {path} HTTP/1.1\r\n{fields}".encode() + data)
    try:
        async with asyncio.timeout(ANSWER_S):
            status, _, answer = await read_answer(reader)
        return status, answer
    finally:
        writer.transport.abort()


async def aftermath(port: int) -> list[str]:
    """What the attacks left behind: health, running work, places that nobody gave back."""
    harm = []
    deadline_s = time.monotonic() + 3 * ANSWER_S
    while True:
        text = (await ask(port, "/metrics"))[1].decode()
        held = {
            k: float(v) for k, v in re.findall(r"^(tgi_batch_current_size|tgi_queue_size) (\S+)$", text, re.M)
        }
        if not any(held.values()):
            break
        if time.monotonic() > deadline_s:
            harm.append(f"still busy {3 * ANSWER_S} s after the last request: {held}")
            break
        await asyncio.sleep(0.1)
    if (await ask(port, "/health"))[0] != 200:
        harm.append("/health is not 200")
    body = {"inputs": "a", "parameters": {"max_new_tokens": 20}}
    answers = await asyncio.gather(*(ask(port, "/generate", body) for _ in range(CONCURRENT)))
    refused = [answer for answer in answers if answer[0] != 200]
    if refused:
        harm.append(f"{len(refused)} of {CONCURRENT} places are not free any more: {refused[0]}")
    return harm


async def fuzz(
    port: int, attacks: Attacks, found: Found, *, workers: int, requests: int, end_s: float
) -> None:
    """``workers`` at a time until ``requests`` are sent or the monotonic clock passes ``end_s``."""
    left = requests

    async def work() -> None:
        nonlocal left
        while left > 0 and time.monotonic() < end_s:
            left -= 1
            await strike(port, attacks.next(), found)

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work())


def main() -> int:
    """Starts the server, fuzzes it, says what happened."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--requests", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--openapi", type=Path, default=OPENAPI)
    parser.add_argument("--save", type=Path, default=None, help="folder for the offending requests")
    args = parser.parse_args()
    if not args.openapi.exists():
        parser.error(f"TGI's openapi.json is not at {args.openapi}")
    attacks, found = Attacks(json.loads(args.openapi.read_text()), args.seed), Found()
    command = [sys.executable, "-m", "loadgen", "serve", "--port=0", "--no-warm-up"]
    command.append(f"--max-concurrent-requests={CONCURRENT}")
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, cwd=ROOT)
        try:
            port = _port(process, said)
            started_s = time.monotonic()
            end_s = started_s + 60 * args.minutes
            asyncio.run(fuzz(port, attacks, found, workers=args.workers, requests=args.requests, end_s=end_s))
            took_s = time.monotonic() - started_s
            harm = asyncio.run(aftermath(port)) if process.poll() is None else ["the server has died"]
        finally:
            process.terminate()
            process.wait(30)
        said.seek(0)
        printed = said.read()
    harm += [f"printed {n} tracebacks that end in {text}" for text, n in raised(printed).items()]
    return _report(args, found, harm, took_s)


def raised(printed: str) -> collections.Counter[str]:
    """Exceptions among the server's output, without those of requests that were not HTTP at all."""
    found: collections.Counter[str] = collections.Counter()
    for block in printed.split("Traceback (most recent call last):")[1:]:
        ends = [line for line in block.splitlines() if re.match(r"[A-Za-z_][\w.]*(:|$)", line)]
        if ends and not ends[0].startswith("aiohttp.http_exceptions."):
            found[ends[0][:200]] += 1
    return found


def _port(process: subprocess.Popen[bytes], said: Any) -> int:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s and process.poll() is None:
        said.seek(0)
        match = re.search(r"http://127\.0\.0\.1:(\d+)", said.read())
        if match:
            return int(match[1])
        time.sleep(0.05)
    said.seek(0)
    raise SystemExit(f"the server did not start: {said.read()}")


def _report(args: argparse.Namespace, found: Found, harm: list[str], took_s: float) -> int:
    total = sum(found.counts.values())
    print(f"{total} answers in {took_s:.0f} s, seed {args.seed}; slowest exchange {found.slowest_s:.2f} s")
    by_kind: dict[str, list[str]] = collections.defaultdict(list)
    for (kind, status), n in sorted(found.counts.items()):
        by_kind[kind].append(f"{status}: {n}")
    for kind, texts in by_kind.items():
        print(f"  {kind:12} {', '.join(texts)}")
    for i, (text, data) in enumerate(found.defects):
        if i < 20:
            print(f"DEFECT {i}: {text}\n  request: {data[:600]!r}")
        if args.save is not None:
            args.save.mkdir(parents=True, exist_ok=True)
            (args.save / f"defect_{i:03}.bin").write_bytes(data)
    for text in harm:
        print(f"HARM: {text}")
    print(f"{len(found.defects)} defects, {len(harm)} harms")
    return 1 if found.defects or harm else 0


if __name__ == "__main__":
    sys.exit(main())
