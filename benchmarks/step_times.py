"""Does the embedded server keep its model's step times in real time, over TCP, under many streams?

    python benchmarks/step_times.py [--streams 100] [--tokens 300]

Starts `loadgen serve` on one core and reads the streams on another, each read with
the kernel's receive stamp. While all streams decode, every gap between two tokens
of a stream should be the step time of the model at that batch and context; printed
is how far the gaps and the token instants are from it. n, quantiles, milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import selectors
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np

from loadgen.launch import Launch
from loadgen.server.deployment import Deployment

SO_TIMESTAMPNS = 35
PROMPT = "Could you tell me how a bicycle stays upright, step by step?"
_EVENT = re.compile(rb'"index":(\d+)')


@dataclass
class Stream:
    """One connection: the receive instant of each token, in seconds of the kernel's wall clock."""

    socket: socket.socket
    token_s: dict[int, float] = field(default_factory=dict)
    ended: bool = False
    _tail: bytes = b""

    def read(self) -> None:
        data, ancillary, _, _ = self.socket.recvmsg(65536, 64)
        if not data:
            self.ended = True
            return
        seconds, nanoseconds = struct.unpack("qq", ancillary[0][2][:16])
        text = self._tail + data
        for found in _EVENT.finditer(text):
            self.token_s.setdefault(int(found.group(1)), seconds + nanoseconds * 1e-9)
        self._tail = text[-64:]
        self.ended = text.endswith(b"0\r\n\r\n")


def start_server(core: int) -> tuple[subprocess.Popen[str], str, int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen", "serve", "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    os.sched_setaffinity(process.pid, {core})
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.search(r"at http://([\d.]+):(\d+)", line)
    if found is None:
        raise SystemExit(f"the server did not start: {line}")
    return process, found.group(1), int(found.group(2))


def measure(host: str, port: int, streams: int, tokens: int) -> list[Stream]:
    parameters = {"max_new_tokens": tokens, "ignore_eos": True, "details": True}
    body = json.dumps({"inputs": PROMPT, "parameters": parameters}).encode()
    head = f"POST /generate_stream HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    request = f"{head}content-type: application/json\r\n\r\n".encode() + body
    selector = selectors.DefaultSelector()
    opened = []
    for _ in range(streams):
        connection = socket.create_connection((host, port))
        connection.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        stream = Stream(connection)
        opened.append(stream)
        selector.register(connection, selectors.EVENT_READ, stream)
    for stream in opened:
        stream.socket.sendall(request)
    left = streams
    while left:
        for key, _ in selector.select():
            key.data.read()
            if key.data.ended:
                selector.unregister(key.data.socket)
                left -= 1
    return opened


def report(name: str, values_s: np.ndarray) -> None:
    p = np.quantile(values_s * 1e3, [0.5, 0.9, 0.99, 1.0])
    print(f"{name:42} n={values_s.size:6}  p50 {p[0]:.3f}  p90 {p[1]:.3f}  p99 {p[2]:.3f}  max {p[3]:.3f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=300)
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    process, host, port = start_server(cores[-1])
    os.sched_setaffinity(0, {cores[0]})
    try:
        streams = measure(host, port, args.streams, args.tokens)
    finally:
        process.terminate()
        process.wait()
    # The span in which every stream has begun and none has ended; same index, same step from then on
    # only within streams admitted together, so gaps are compared step by step in time, not by index.
    first_s = max(s.token_s[1] for s in streams)
    last_s = min(s.token_s[args.tokens] for s in streams)
    times = [np.array([t for t in s.token_s.values() if first_s < t < last_s]) for s in streams]
    steps = min(len(t) for t in times) - 1
    grid = np.array([t[:steps] for t in times])  # (streams, steps)
    ended = sum(1 for s in streams if len(s.token_s) == args.tokens)
    prompt = _prompt_tokens()
    begun = np.array([sum(1 for t in s.token_s.values() if t <= first_s) for s in streams])
    context = float(np.sum(prompt + begun)) + np.arange(steps - 1) * args.streams
    line = Deployment(Launch()).step_model.decode_line(args.streams)
    assert line is not None
    model_s = line.base_s + line.slope_s * context
    print(
        f"{ended} of {args.streams} streams complete; {steps} steps with all decoding, "
        f"model {model_s.mean() * 1e3:.3f} ms a step"
    )
    report("|gap - model step|, every token", np.abs(np.diff(grid, axis=1) - model_s).ravel())
    report("|step - model step|, first token out", np.abs(np.diff(grid.min(axis=0)) - model_s))
    report("spread of one step over the streams", grid.max(axis=0) - grid.min(axis=0))
    drift = (grid[:, -1] - grid[:, 0]) - model_s.sum()
    print(f"drift over {model_s.sum():.2f} s: {np.mean(drift) * 1e3:+.3f} ms (mean over streams)")


def _prompt_tokens() -> int:
    from loadgen.prompts.tokens import count_tokens

    return count_tokens(PROMPT)


if __name__ == "__main__":
    main()
