"""Reading request bodies with the strictness and the words of TGI's JSON layer.

TGI's router is typed: a body is first refused by its HTTP layer (plain text: 415
for the content type, 400 for what is not JSON, 422 for a field of the wrong
type), and only then looked at by its validation (JSON errors). This module is
the first of the two. Unknown fields are ignored everywhere, as there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson


class Unreadable(Exception):
    """A body refused before validation: HTTP ``status`` and a text/plain message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _WrongType(Exception):
    """A field does not hold what its type wants; the message lacks the place."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


class Kind:
    """A field's type: a number range, a flag, a text, a map, or a list whose members are ``items``."""

    __slots__ = ("expected", "high", "items", "low", "nullable", "types")

    def __init__(
        self,
        expected: str,
        types: tuple[type, ...],
        *,
        nullable: bool,
        low: float | None = None,
        high: float | None = None,
        items: Kind | None = None,
    ) -> None:
        self.expected = expected
        self.types = types
        self.nullable = nullable
        self.low = low
        self.high = high
        self.items = items

    def check(self, path: str, value: Any) -> Any:
        """The value, if it is of this type. Raises `_WrongType`."""
        if value is None:
            if self.nullable:
                return None
            raise _WrongType(path, f"invalid type: null, expected {self.expected}")
        # `type`, not isinstance: a bool is an int in Python and not in JSON.
        if type(value) not in self.types:
            raise _WrongType(path, f"invalid type: {shown(value)}, expected {self.expected}")
        if self.low is not None and self.high is not None and not self.low <= value <= self.high:
            raise _WrongType(path, f"invalid value: {shown(value)}, expected {self.expected}")
        if self.items is not None:
            for i, item in enumerate(value):
                self.items.check(f"{path}[{i}]", item)
        return value


def _integer(name: str, low: int, high: int, *, nullable: bool = True) -> Kind:
    return Kind(name, (int,), nullable=nullable, low=low, high=high)


TEXT = Kind("a string", (str,), nullable=False)
TEXT_OR_NULL = Kind("a string", (str,), nullable=True)
TEXTS = Kind("a sequence", (list,), nullable=False, items=TEXT)
TEXTS_OR_NULL = Kind("a sequence", (list,), nullable=True, items=TEXT)
FLAG = Kind("a boolean", (bool,), nullable=False)
FLAG_OR_NULL = Kind("a boolean", (bool,), nullable=True)
F32 = Kind("f32", (int, float), nullable=True)
F32S_OR_NULL = Kind("a sequence", (list,), nullable=True, items=Kind("f32", (int, float), nullable=False))
U32 = _integer("u32", 0, 2**32 - 1)
U64 = _integer("u64", 0, 2**64 - 1)
USIZE = _integer("usize", 0, 2**64 - 1)
I32 = _integer("i32", -(2**31), 2**31 - 1)


def _syntax_error(raw: bytes, error: orjson.JSONDecodeError) -> str:
    """What is wrong with a text that is no JSON, in serde's words as far as one can tell."""
    if raw and not error.doc:
        return "invalid unicode code point at line 1 column 1"
    if error.pos >= len(error.doc.rstrip()):
        return f"EOF while parsing a value at line {error.lineno} column {error.colno - 1}"
    what = "trailing characters" if error.msg.startswith("unexpected content") else "expected value"
    return f"{what} at line {error.lineno} column {error.colno}"


def shown(value: Any) -> str:
    """A JSON value as serde names it where another type was expected."""
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean `{str(value).lower()}`"
        case int():
            return f"integer `{value}`"
        case float():
            return f"floating point `{value}`"
        case str():
            return f"string {json.dumps(value, ensure_ascii=False)}"
        case list():
            return "sequence"
        case _:
            return "map"


class Fields:
    """One JSON body being read. The methods raise `Unreadable` in the words of serde and axum."""

    __slots__ = ("_raw", "top")

    def __init__(self, raw: bytes, struct: str) -> None:
        self._raw = raw
        try:
            top = orjson.loads(raw)
        except orjson.JSONDecodeError as exc:
            wrong = _syntax_error(raw, exc)
            raise Unreadable(400, f"Failed to parse the request body as JSON: {wrong}") from None
        if type(top) is not dict:
            raise self.refused("", f"invalid type: {shown(top)}, expected struct {struct}")
        self.top: dict[str, Any] = top

    def take(self, kinds: Mapping[str, Kind], *, prefix: str = "", struct: str = "") -> dict[str, Any]:
        """The fields named in ``kinds`` that the object holds, each checked.

        ``prefix`` names an object inside the body (absent: no fields).
        """
        source: Any = self.top if not prefix else self.top.get(prefix, {})
        if type(source) is not dict:
            raise self.refused(prefix, f"invalid type: {shown(source)}, expected struct {struct}")
        taken = {}
        try:
            for name, value in source.items():
                kind = kinds.get(name)
                if kind is not None:
                    taken[name] = kind.check(f"{prefix}.{name}" if prefix else name, value)
        except _WrongType as exc:
            raise self.refused(exc.path, str(exc)) from None
        return taken

    def require(self, name: str) -> None:
        """Raises when the top object lacks ``name``."""
        if name not in self.top:
            raise self.refused("", f"missing field `{name}`")

    def refused(self, path: str, message: str) -> Unreadable:
        """The 422 for a field, with the place where its value ends in the body."""
        line, column = self._end_of(path)
        where = f"{path}: " if path else ""
        return Unreadable(
            422,
            "Failed to deserialize the JSON body into the target type: "
            f"{where}{message} at line {line} column {column}",
        )

    def _end_of(self, path: str) -> tuple[int, int]:
        """Line and column (from 1) of the end of a field's value; of the body's end without a path."""
        text = self._raw.decode("utf-8", "replace")
        end = len(text.rstrip())
        name = path.partition("[")[0].rpartition(".")[2]
        if name:
            found = re.search(rf'"{re.escape(name)}"\s*:\s*', text)
            if found:
                try:
                    end = json.JSONDecoder().raw_decode(text, found.end())[1]
                except ValueError:
                    end = found.end()
        before = text[:end]
        return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1)


def is_json(content_type: str) -> bool:
    """Whether a Content-Type header names JSON as axum sees it."""
    main = content_type.partition(";")[0].strip().lower()
    return main == "application/json" or (main.startswith("application/") and main.endswith("+json"))


def chat_messages(fields: Fields) -> list[dict[str, str]]:
    """The ``messages`` of a chat body as plain ``role`` and ``content`` texts.

    Content parts are joined in order; an image part becomes its Markdown link,
    as it does for a model without eyes.
    """
    fields.require("messages")
    given = fields.top["messages"]
    if type(given) is not list:
        raise fields.refused("messages", f"invalid type: {shown(given)}, expected a sequence")
    messages = []
    for i, message in enumerate(given):
        path = f"messages[{i}]"
        if type(message) is not dict:
            raise fields.refused(path, f"invalid type: {shown(message)}, expected struct Message")
        role = message.get("role")
        if type(role) is not str:
            raise fields.refused(
                path,
                "missing field `role`"
                if "role" not in message
                else f"invalid type: {shown(role)}, expected a string",
            )
        text = _content(message)
        if text is None:
            raise fields.refused(path, "data did not match any variant of untagged enum MessageBody")
        messages.append({"role": role, "content": text})
    return messages


def _content(message: Mapping[str, Any]) -> str | None:
    content = message.get("content")
    if type(content) is str:
        return content
    if content is None:
        return "" if type(message.get("tool_calls")) is list else None
    if not isinstance(content, Sequence):
        return None
    parts = []
    for part in content:
        match part:
            case {"type": "text", "text": str(text)}:
                parts.append(text)
            case {"type": "image_url", "image_url": {"url": str(url)}}:
                parts.append(f"![]({url})")
            case _:
                return None
    return "".join(parts)
