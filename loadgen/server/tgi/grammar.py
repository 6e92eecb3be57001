"""Grammars and tools: which requests ask for one.

A reply is not computed here, so no text can obey a grammar: the server is a TGI
started with ``--disable-grammar-support``, which reads these fields, refuses what
it cannot read or combine, and answers the rest with ``grammar is not supported``.
"""

from __future__ import annotations

from typing import Any

from loadgen.server.body import Fields, shown
from loadgen.server.tgi.errors import tool_error

_TYPES = ("json", "regex", "json_schema")
_ALIASES = ("json_object",)


def check_grammar(fields: Fields, path: str, value: Any) -> None:
    """Raises Unreadable unless ``value``, at ``path`` of the body, is null or a grammar."""
    if value is None:
        return
    if type(value) is not dict:
        wrong = f"invalid type: {shown(value)}, expected adjacently tagged enum GrammarType"
        raise fields.refused(path, wrong)
    if "type" not in value:
        raise fields.refused(path, "missing field `type`")
    kind = value["type"]
    if kind not in _TYPES and kind not in _ALIASES:
        said = f"`{kind}`" if type(kind) is str else shown(kind)
        expected = ", ".join(f"`{name}`" for name in _TYPES)
        raise fields.refused(path, f"unknown variant {said}, expected one of {expected}")
    if "value" not in value:
        raise fields.refused(path, "missing field `value`")
    if kind == "json_schema" and not (type(value["value"]) is dict and "schema" in value["value"]):
        raise fields.refused(path, "missing field `schema`")
    if kind == "regex" and type(value["value"]) is not str:
        raise fields.refused(path, f"invalid type: {shown(value['value'])}, expected a string")


def check_tools(fields: Fields) -> None:
    """Raises Unreadable unless the body's ``tools`` are absent, null or a list of functions."""
    tools = fields.top.get("tools")
    if tools is None:
        return
    if type(tools) is not list:
        raise fields.refused("tools", f"invalid type: {shown(tools)}, expected a sequence")
    for i, tool in enumerate(tools):
        path = f"tools[{i}]"
        if type(tool) is not dict:
            raise fields.refused(path, f"invalid type: {shown(tool)}, expected struct Tool")
        for name in ("type", "function"):
            if name not in tool:
                raise fields.refused(path, f"missing field `{name}`")
        function = tool["function"]
        if type(function) is not dict:
            raise fields.refused(path, f"invalid type: {shown(function)}, expected struct FunctionDefinition")
        if type(function.get("name")) is not str:
            raise fields.refused(path, "missing field `name`")
        if not {"arguments", "parameters"} & function.keys():
            raise fields.refused(path, "missing field `arguments`")


def chat_grammar(fields: Fields) -> dict[str, Any] | None:
    """The grammar that a chat's ``response_format``, or its tools, would impose; None for none.

    Raises Unreadable, and ApiError where the two exclude each other or the tool
    that was chosen is not there.
    """
    check_tools(fields)
    check_grammar(fields, "response_format", fields.top.get("response_format"))
    choice = _tool_choice(fields)
    tools: list[dict[str, Any]] | None = fields.top.get("tools")
    grammar: dict[str, Any] | None = fields.top.get("response_format")
    if grammar is not None:
        if tools is not None:
            raise tool_error("Grammar and tools are mutually exclusive")
        return grammar
    if tools is None or choice == "none" or (choice == "required" and not tools):
        return None
    if choice not in ("auto", "required") and choice not in [tool["function"]["name"] for tool in tools]:
        raise tool_error(f"Tool with name {choice} not found")
    return {"type": "json", "value": tools}


def _tool_choice(fields: Fields) -> str:
    """``auto``, ``none``, ``required`` or a function's name."""
    match fields.top.get("tool_choice"):
        case None:
            return "auto"
        case str(choice) | {"function": {"name": str(choice)}}:
            return choice
        case _:
            wrong = "data did not match any variant of untagged enum ToolTypeDeserializer"
            raise fields.refused("tool_choice", wrong)
