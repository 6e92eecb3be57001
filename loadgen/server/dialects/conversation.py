"""Chat messages as a prompt, for servers that take text only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loadgen.prompts.template import render_llama3


class NotText(Exception):
    """A content part is none of text; ``kind`` is its type, ``place`` the number of its message."""

    def __init__(self, kind: object, place: int) -> None:
        super().__init__(kind, place)
        self.kind = kind
        self.place = place


def prompt_text(messages: Sequence[dict[str, Any]]) -> str:
    """The prompt through Llama 3's template; content parts of one message are put together.

    A message without content is empty. Raises NotText.
    """
    turns = []
    for place, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(_part(part, place) for part in content)
        elif content is not None and not isinstance(content, str):
            raise NotText(None, place)
        turns.append({"role": str(message.get("role")), "content": content or ""})
    return render_llama3(turns)


def _part(part: Any, place: int) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        raise NotText(kind, place)
    return str(part["text"])
