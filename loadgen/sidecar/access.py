"""Where the sidecar listens and who may ask: its address, its token, and the check of both."""

from __future__ import annotations

import hmac
import re
import socket
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from aiohttp import hdrs, web

from loadgen.errors import ConfigError

DEFAULT_PORT = 9400
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_SHAPE = re.compile(r"(?:\[(?P<v6>[^\]]*)\]|(?P<host>[^:\[\]]*)):(?P<port>[^:]*)")
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; port 0 is any free one."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this host can reach it. Raises ConfigError for a name that has no address."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as exc:
            raise ConfigError(f"--listen {self.host}: this name has no address ({exc.strerror})") from exc
        return all(ip_address(str(place[4][0]).partition("%")[0]).is_loopback for place in found)


def parse_listen(text: str) -> Address:
    """``HOST:PORT``, ``[IPv6]:PORT``. Raises ConfigError with what was expected."""
    expected = f"--listen {text}: expected HOST:PORT, e.g. 127.0.0.1:{DEFAULT_PORT} or [::1]:{DEFAULT_PORT}"
    match = _SHAPE.fullmatch(text)
    if match is None:
        hint = "; an IPv6 address stands in brackets" if text.count(":") > 1 else ""
        raise ConfigError(f"{expected}{hint}")
    host = match["host"] if match["v6"] is None else match["v6"]
    if not host:
        raise ConfigError(f"{expected}; 0.0.0.0 is every IPv4 address of this host, [::] every address")
    if match["v6"] is not None:
        try:
            ip_address(host.partition("%")[0])
        except ValueError:
            raise ConfigError(f"{expected}; {host} is no IPv6 address") from None
    port = match["port"]
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ConfigError(f"{expected}; the port is a whole number from 0 to 65535, got {port!r}")
    return Address(host, int(port))


def read_token(path: Path) -> tuple[str, str | None]:
    """The token in a file, and a warning when others on this host can read it.

    Raises ConfigError when there is none in it, or none that fits into a header.
    """
    try:
        with path.open("rb") as file:
            token = file.read(8192).decode("utf-8", "replace").strip()
            mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as exc:
        raise ConfigError(f"--token-file {path}: {exc.strerror}") from exc
    if not token:
        raise ConfigError(f"--token-file {path}: is empty; make one: openssl rand -hex 32 > {path}")
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"--token-file {path}: expected one line of visible ASCII without spaces")
    # Not refused: a secret that a container is given is often mounted readable for all of it.
    readable = f"--token-file {path}: every user of this host can read it; chmod 600 {path}"
    return token, readable if mode & stat.S_IROTH else None


def demand_token(address: Address, token_file: Path | None) -> None:
    """Raises ConfigError when others could reach ``address`` and no token keeps them out."""
    if token_file is None and not address.loopback:
        raise ConfigError(
            f"--listen {address.host}: other machines could read the samples: give --token-file F "
            "(openssl rand -hex 32 > F; chmod 600 F), or listen on 127.0.0.1 and forward the port "
            f"(ssh -L {address.port}:localhost:{address.port} HOST)"
        )


def guard(token: str | None) -> Any:
    """The middleware: a bearer token if there is one, else only those who address this host as local.

    ``/health`` and the page at ``/``, which holds no data, are open. Without a token
    the Host header must be a local one: a page of another site that has its name
    point to 127.0.0.1 (DNS rebinding) sends its own.
    """
    expected = None if token is None else token.encode()

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if expected is None:
            if not _local(request.host):
                raise web.HTTPBadRequest(
                    text=f"the Host header names {request.host!r:.80}: without --token-file only "
                    "localhost and loopback addresses are answered"
                )
        elif request.path not in ("/health", "/"):
            scheme, _, given = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
            # In constant time; as bytes, since it refuses text that is not ASCII.
            right = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), expected)
            if scheme.lower() != "bearer" or not right:
                raise web.HTTPUnauthorized(
                    text="expected the header Authorization: Bearer TOKEN, with the token the sidecar "
                    "was started with (--token-file)",
                    headers={hdrs.WWW_AUTHENTICATE: "Bearer"},
                )
        return await handler(request)

    return guarded


def _local(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    name = name.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
