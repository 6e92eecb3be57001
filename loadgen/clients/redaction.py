"""What may be shown of headers and addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping

MASK = "***"
_SECRET_NAMES = re.compile(r"auth|key|cookie|token|secret|passw|credential|session|signature", re.IGNORECASE)
_NOT_SECRET = frozenset({"x-prompt-tokens", "x-generated-tokens", "x-time-per-token"})
_USERINFO = re.compile(r"(?<=://)[^/?#\s\"'<>]+@")


def redact(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with every credential's value replaced by ``***``.

    Secret by name: anything with auth, key, cookie, token, secret, passw, credential,
    session or signature in it, in any case, except TGI's token counts.
    Values of other headers lose the user part of any address in them.
    """
    return {
        name: MASK if _SECRET_NAMES.search(name) and name.lower() not in _NOT_SECRET else redact_url(value)
        for name, value in headers.items()
    }


def redact_url(text: str) -> str:
    """The text with ``user:password@`` taken out of every address in it."""
    return _USERINFO.sub(f"{MASK}@", text)
