"""Clients: one protocol each, over the transport of `loadgen.clients.http`.

``CLIENTS`` maps a protocol id to ``module:Class``. Every class takes
``(base_url, *, model, headers, streaming=True, extra_body=None, dial=None,
exact_lengths=None)`` and obeys `loadgen.types.Client`; nothing is imported until
it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from loadgen.errors import ConfigError
from loadgen.types import Client

CLIENTS: dict[str, str] = {
    "tgi": "loadgen.clients.tgi:TgiClient",
    "openai-chat": "loadgen.clients.openai:OpenAiChatClient",
    "openai-completions": "loadgen.clients.openai:OpenAiCompletionsClient",
    "null": "loadgen.clients.null:NullClient",
}


def make_client(protocol: str, base_url: str, **options: Any) -> Client:
    """The client of a protocol id, not yet entered. Raises ConfigError for an unknown id."""
    target = CLIENTS.get(protocol)
    if target is None:
        raise ConfigError(f"protocol: expected one of {', '.join(CLIENTS)}, got {protocol!r}")
    module, _, name = target.partition(":")
    client: Client = getattr(import_module(module), name)(base_url, **options)
    return client
