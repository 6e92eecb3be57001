"""A small exporter for the tests: serves what a function returns, on loopback, as DCGM-exporter does."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Exporter:
    """``pages``: path to a function giving (status, body); ``asked`` and ``heads``: of each request."""

    pages: dict[str, Callable[[], tuple[int, bytes]]]
    asked: list[str] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def exporting(pages: dict[str, Callable[[], tuple[int, bytes]]]) -> Iterator[Exporter]:
    """Serves ``pages`` in threads while the block runs."""
    exporter = Exporter(pages)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            exporter.asked.append(self.path)
            exporter.heads.append({k.lower(): v for k, v in self.headers.items()})
            page = exporter.pages.get(self.path.partition("?")[0])
            status, body = page() if page is not None else (404, b"")
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            if status in (301, 302):
                self.send_header("location", body.decode())
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Silence: tests' output is their result."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    exporter.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield exporter
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def answering(answer: bytes, drip: bytes = b"") -> Iterator[str]:
    """The address of a server that sends these bytes to who connects first, then drips or hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(answer)
            while drip:
                connection.sendall(drip)
                time.sleep(0.05)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join()
        listener.close()


def dcgm_rows(
    gpu: int,
    power_w: float,
    energy_j: float,
    *,
    uuid: str = "",
    model: str = "NVIDIA H100 80GB HBM3",
    host: str = "n1",
    more: str = "",
    since_4_9: bool = False,
) -> str:
    """One board's rows of a DCGM-exporter's page; ``since_4_9``: by the names of its version 4.9."""
    labels = (
        f'gpu="{gpu}",UUID="{uuid or f"GPU-{gpu}aaa"}",pci_bus_id="00000000:37:00.0",device="nvidia{gpu}",'
        f'modelName="{model}",Hostname="{host}"{more}'
    )
    if since_4_9:
        return (
            f"DCGM_FI_DEV_SM_CLOCK_HERTZ{{{labels}}} 1980000000\n"
            f"DCGM_FI_DEV_BOARD_POWER_WATTS{{{labels}}} {power_w:.6f}\n"
            f"DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL{{{labels}}} {energy_j:.0f}\n"
        )
    return (
        f"DCGM_FI_DEV_SM_CLOCK{{{labels}}} 1980\n"
        f"DCGM_FI_DEV_POWER_USAGE{{{labels}}} {power_w:.6f}\n"
        f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{labels}}} {energy_j * 1e3:.0f}\n"
    )
