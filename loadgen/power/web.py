"""One HTTP GET, for power sources that are read in a thread. Foreign errors become PowerError here."""

from __future__ import annotations

import base64
import http.client
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from loadgen import clock
from loadgen.clients.redaction import redact_url
from loadgen.errors import PowerError

TIMEOUT_S = 5.0
"""For each step of an exchange: the connection, the head, the body."""
MOST_BYTES = 64 << 20
TOKEN_VARIABLE = "LOADGEN_POWER_TOKEN"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer of its own: following one would carry the token elsewhere."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class Web:
    """GETs below one address, with its ``user:password@`` or a bearer ``token``. No proxies, no redirects."""

    def __init__(self, url: str, token: str | None = None) -> None:
        parts = urlsplit(url)
        self._base = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
        self._shown = redact_url(url)
        self._headers = {"User-Agent": "loadgen", "Accept": "application/json, text/plain;version=0.0.4"}
        if token:
            self._headers["Authorization"] = f"Bearer {token.strip()}"
        elif parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)

    def get(self, path: str, *, also: tuple[int, ...] = ()) -> bytes:
        """The body of a 200, or of a status in ``also``. Raises PowerError with the address and the cause."""
        request = urllib.request.Request(self._base + path, headers=self._headers)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                return self._body(response)
        except urllib.error.HTTPError as exc:
            with exc:
                if exc.code in also:
                    return exc.read(MOST_BYTES)
            raise PowerError(f"{self._shown}: HTTP {exc.code}{_advice(exc.code)}") from exc
        except (OSError, http.client.HTTPException) as exc:
            why = getattr(exc, "reason", None) or exc
            raise PowerError(f"{self._shown}: {why}") from exc

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        """The whole body. Raises PowerError for one that is cut short, too long, or takes too long."""
        body, until_s = bytearray(), clock.now() + TIMEOUT_S
        while part := response.read1(1 << 16):
            body += part
            if len(body) > MOST_BYTES:
                raise PowerError(f"{self._shown}: more than {MOST_BYTES} bytes")
            if clock.now() > until_s:
                raise PowerError(f"{self._shown}: the answer takes longer than {TIMEOUT_S:g} s")
        if response.length:  # what is missing of its content-length, at which http.client says nothing
            raise PowerError(f"{self._shown}: the answer was cut short")
        return bytes(body)


def _advice(status: int) -> str:
    if status in (401, 403):
        return f": set {TOKEN_VARIABLE}, or write user:password@ into power.url"
    return ": is the address right?" if status == 404 else ""
