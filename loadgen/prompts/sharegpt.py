"""ShareGPT JSON as vLLM's benchmarks take it: a list of ``{"id", "conversations": [{"from", "value"}]}``.

Read record by record, so a truncated download is used as far as it goes, and said so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from loadgen.errors import ConfigError
from loadgen.prompts.files import numbered, read_text
from loadgen.prompts.synthetic import THANKS
from loadgen.prompts.tokens import count_tokens
from loadgen.types import Request

_USER, _ASSISTANT = frozenset({"human", "user"}), frozenset({"gpt", "chatgpt", "assistant", "bing", "bard"})


class SharegptSource:
    """``turns="first"``: the first human turn; its answer gives the reply length, as in vLLM's benchmark.
    ``turns="all"``: the alternating chat from the first human turn on, ending in "Thank you!".

    Records that offer neither are left out and counted in ``notes``. Reply lengths
    are estimates of `count_tokens`. Raises ConfigError when the file is no ShareGPT JSON.
    """

    def __init__(
        self,
        path: Path,
        *,
        turns: Literal["first", "all"] = "first",
        max_new_tokens: int = 256,
        repeat: bool = False,
        shuffle: bool = False,
    ) -> None:
        self.repeat, self.shuffle = repeat, shuffle
        self.notes: list[str] = []
        text, cut = read_text(path)
        records, whole = read_records(text)
        if not records:
            raise ConfigError(f"{path}: expected a JSON list of conversations, got {text[:40]!r}")
        if cut or not whole:
            self.notes.append(
                f"{path.name}: truncated, no complete JSON after record {len(records)}; using those before"
            )
        make = _first_turn if turns == "first" else _whole_chat
        bodies = [make(record, max_new_tokens) for record in records]
        self._bodies = [body for body in bodies if body is not None]
        if not self._bodies:
            raise ConfigError(f"{path}: expected conversations with human and gpt turns, got none")
        if len(self._bodies) < len(records):
            self.notes.append(f"{path.name}: {len(records) - len(self._bodies)} records have no usable turns")

    def requests(self, rng: np.random.Generator) -> Iterator[Request]:
        return numbered(self._bodies, rng, shuffle=self.shuffle, repeat=self.repeat)


def read_records(text: str) -> tuple[list[Any], bool]:
    """The complete objects of a JSON list, and whether the list itself was complete."""
    decoder, records = json.JSONDecoder(), list[Any]()
    at = _skip(text, 0)
    if text[at : at + 1] != "[":
        return [], False
    at = _skip(text, at + 1)
    while at < len(text) and text[at] != "]":
        try:
            record, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            return records, False
        records.append(record)
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
    return records, at < len(text)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n\ufeff":
        at += 1
    return at


def _turns(record: object) -> list[tuple[str, str]]:
    """(role, content) of a record's turns; turns of unknown speakers end it."""
    turns: list[tuple[str, str]] = []
    raw = (record.get("conversations") or record.get("conversation")) if isinstance(record, dict) else None
    for turn in raw if isinstance(raw, list) else []:
        speaker, value = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        role = "user" if speaker in _USER else "assistant" if speaker in _ASSISTANT else None
        if role is None or not isinstance(value, str) or not value.strip():
            if turns:
                break
            continue
        turns.append((role, value))
    while turns and turns[0][0] != "user":
        turns.pop(0)
    return turns


def _named(record: Any) -> dict[str, Any]:
    return {} if record.get("id") is None else {"source_id": str(record["id"])}


def _first_turn(record: Any, max_new_tokens: int) -> dict[str, Any] | None:
    turns = _turns(record)
    if len(turns) < 2 or turns[1][0] != "assistant":
        return None
    reply_tokens = max(count_tokens(turns[1][1]), 1)
    return _named(record) | {
        "prompt": turns[0][1],
        "prompt_tokens": count_tokens(turns[0][1]),
        "max_new_tokens": reply_tokens,
        "output_tokens": reply_tokens,
    }


def _whole_chat(record: Any, max_new_tokens: int) -> dict[str, Any] | None:
    chat: list[dict[str, str]] = []
    for role, content in _turns(record):
        if chat and chat[-1]["role"] == role:
            break
        chat.append({"role": role, "content": content})
    if chat and chat[-1]["role"] == "user":
        chat.pop()
    if not chat:
        return None
    chat.append({"role": "user", "content": THANKS})
    return _named(record) | {
        "messages": chat,
        "prompt_tokens": sum(count_tokens(m["content"]) for m in chat),
        "max_new_tokens": max_new_tokens,
    }
