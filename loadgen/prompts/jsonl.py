"""Prompts from a .jsonl file, plain or .gz: one object a line.

``messages`` (a list of ``{"role", "content"}``) or ``prompt`` (text) is required.
``output_tokens`` gives the reply's known length, ``max_new_tokens`` a limit of its
own, ``id`` a name; other keys are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from loadgen.errors import ConfigError
from loadgen.prompts.files import numbered, read_data
from loadgen.prompts.tokens import count_tokens
from loadgen.types import Request


class JsonlSource:
    """The file's prompts in order (or shuffled), once (or repeated).

    Raises ConfigError naming file, line, key, value and expectation.
    """

    def __init__(
        self, path: Path, *, max_new_tokens: int = 256, repeat: bool = False, shuffle: bool = False
    ) -> None:
        self.repeat, self.shuffle = repeat, shuffle
        self.notes: list[str] = []
        data, cut = read_data(path)
        lines = data.split(b"\n")  # as bytes: half the memory of text, and U+2028 ends no line
        del data
        if cut:
            lines = lines[:-1]
            self.notes.append(f"{path.name}: the file is cut off; using the {len(lines)} whole lines before")
        self._bodies = [
            _body(line, f"{path}:{number}", max_new_tokens)
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
        if not self._bodies:
            raise ConfigError(f"{path}: expected one JSON object a line, got none")

    def requests(self, rng: np.random.Generator) -> Iterator[Request]:
        return numbered(self._bodies, rng, shuffle=self.shuffle, repeat=self.repeat)


def _body(line: bytes, where: str, max_new_tokens: int) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        raise ConfigError(f"{where}: expected a JSON object: {exc}") from exc
    if not isinstance(row, dict) or ("messages" in row) == ("prompt" in row):
        start = line[:40].decode(errors="replace")
        raise ConfigError(f"{where}: expected an object with either messages or prompt, got {start!r}")
    body: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    if "prompt" in row:
        if not isinstance(row["prompt"], str) or not row["prompt"]:
            raise ConfigError(f"{where} prompt: expected text, got {str(row['prompt'])[:40]!r}")
        body["prompt"] = row["prompt"]
        body["prompt_tokens"] = count_tokens(row["prompt"])
    else:
        body["messages"] = checked_messages(row["messages"], where)
        body["prompt_tokens"] = sum(count_tokens(m["content"]) for m in body["messages"])
    for key in ("max_new_tokens", "output_tokens"):
        if row.get(key) is not None:
            if type(row[key]) is not int or row[key] < 1:
                raise ConfigError(f"{where} {key}: expected a whole number > 0, got {row[key]!r}")
            body[key] = row[key]
    if "output_tokens" in body:
        body["max_new_tokens"] = body["output_tokens"]
    if row.get("id") is not None:
        body["source_id"] = str(row["id"])
    return body


def checked_messages(messages: object, where: str) -> list[dict[str, str]]:
    """A chat's messages, other keys dropped. Raises ConfigError placed at ``where``."""
    if not isinstance(messages, list) or not messages:
        raise ConfigError(f"{where} messages: expected a list of messages, got {str(messages)[:40]!r}")
    checked = []
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise ConfigError(
                f"{where} messages.{index}: expected role and content as text, got {str(message)[:40]!r}"
            )
        checked.append({"role": role, "content": content})
    return checked
