"""Request/answer pairs as data, and whether an answer is the one the pair asks for.

A pair names the section of the TGI v3 protocol notes that it is from. Expected
bodies are templates of the exact bytes: ``<int>``, ``<float>``, ``<text>`` (the
inside of a JSON string) and ``<any>`` stand for what may vary, ``<model_id>``,
``<max_total_tokens>`` and the other keys of ``/info`` for the server's own values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from served import Response, request_bytes

FILES = Path(__file__).parent
_PLACES = {
    "int": r"-?\d+",
    "float": r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?",
    "text": r'(?:[^"\\\x00-\x1f]|\\.)*',
    "any": r".*",
}


@dataclass(frozen=True)
class Pair:
    """One request and what must come back. ``server`` names the server it is for."""

    section: str
    name: str
    method: str
    path: str
    body: Any = None
    raw: str | None = None
    send: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    answer: str | None = None
    events: tuple[str, ...] | None = None
    server: str = "open"

    def __str__(self) -> str:
        return f"section {self.section}: {self.method} {self.path}: {self.name}"

    def request(self) -> bytes:
        """The request as it goes on the wire."""
        if self.method == "POST":
            data = self.raw.encode() if self.raw is not None else _expand(self.body)
            return request_bytes(self.path, data, **{k.replace("-", "_"): v for k, v in self.send.items()})
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            "host: h",
            *(f"{k}: {v}" for k, v in self.send.items()),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def faults(self, response: Response, info: Mapping[str, Any]) -> list[str]:
        """Every way in which ``response`` is not the one expected."""
        found = []
        if response.status != self.status:
            found.append(f"status: expected {self.status}, got {response.status}")
        # Section 1: every response carries them.
        expected = {"access-control-allow-origin": "*", "vary": "<any>"} | dict(self.headers)
        for name, template in expected.items():
            got = response.headers.get(name)
            if got is None or not _matches(template, got, info):
                found.append(f"header {name}: expected {template}, got {got}")
        found += [f"header {name} must be absent" for name in self.absent if name in response.headers]
        body = response.body.decode()
        if self.answer is not None and not _matches(self.answer, body, info):
            found.append(f"body: expected {self.answer}\n got {body[:2000]}")
        if self.events is not None:
            found += self._event_faults(response, info)
        return found

    def _event_faults(self, response: Response, info: Mapping[str, Any]) -> list[str]:
        """Section 5: one event is one HTTP frame: ``data: ``, JSON, two line feeds."""
        assert self.events is not None
        frames = [chunk.decode() for chunk in response.chunks]
        if len(frames) != len(self.events):
            return [f"events: expected {len(self.events)} frames, got {len(frames)}: {frames}"]
        return [
            f"event {i}: expected {template}\n got {frame!r}"
            for i, (template, frame) in enumerate(zip(self.events, frames, strict=True), 1)
            if not _matches(f"data: {template}\n\n", frame, info)
        ]


def _matches(template: str, text: str, info: Mapping[str, Any]) -> bool:
    pattern = ""
    for piece in re.split(r"(<\w+>)", template):
        name = piece[1:-1]
        if not re.fullmatch(r"<\w+>", piece):
            pattern += re.escape(piece)
        elif name in _PLACES:
            pattern += _PLACES[name]
        else:
            pattern += re.escape(str(info[name]))
    return re.fullmatch(pattern, text, re.DOTALL) is not None


def _expand(value: Any) -> bytes:
    """JSON of a body in which ``{repeat: text, times: n}`` stands for a long text."""

    def walk(node: Any) -> Any:
        if isinstance(node, list):
            return [walk(item) for item in node]
        if isinstance(node, dict):
            if set(node) == {"repeat", "times"}:
                return node["repeat"] * node["times"]
            return {key: walk(item) for key, item in node.items()}
        return node

    return json.dumps(walk(value)).encode()


def refusal(text: str) -> str:
    """The body of a validation error, section 7."""
    error = {"error": f"Input validation error: {text}", "error_type": "validation"}
    return json.dumps(error, separators=(",", ":"))


def all_pairs() -> list[Pair]:
    """Every pair of the ``.yaml`` files beside this one."""
    return [pair for path in sorted(FILES.glob("*.yaml")) for pair in _pairs(path)]


def _pairs(path: Path) -> Iterator[Pair]:
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    for entry in tree.get("pairs", ()):
        fields = dict(entry)
        method, target = fields.pop("request").split()
        fields.setdefault("section", tree["section"])
        fields["section"] = str(fields["section"])
        for name in ("absent", "events"):
            if name in fields:
                fields[name] = tuple(fields[name])
        yield Pair(method=method, path=target, **fields)
    for entry in tree.get("refused", ()):
        yield from _refused(str(tree["section"]), entry)
    for entry in tree.get("unreadable", ()):
        yield from _unreadable(entry)


def _refused(section: str, entry: dict[str, Any]) -> Iterator[Pair]:
    """One invalid body on every route that takes it, whole and streamed."""
    body = {"inputs": "a"} | {k: v for k, v in entry.items() if k in ("inputs", "parameters")}
    answer = refusal(entry["error"])
    name = entry.get("name", entry["error"])
    only = entry.get("only", "both")
    if only != "stream":
        for path in ("/generate", "/"):
            yield Pair(
                section,
                name,
                "POST",
                path,
                body,
                status=422,
                headers={"content-type": "application/json"},
                absent=("x-compute-time", "x-total-time", "x-compute-type"),
                answer=answer,
            )
    if only != "whole":
        for path, more in (("/generate_stream", {}), ("/", {"stream": True})):
            headers = {"content-type": "text/event-stream", "cache-control": "no-cache"}
            yield Pair(
                section, f"{name} (stream)", "POST", path, body | more, headers=headers, events=(answer,)
            )


def _unreadable(entry: dict[str, Any]) -> Iterator[Pair]:
    """A body refused before the router's own code: text/plain on each of ``routes``, streamed or not."""
    for path in entry["routes"]:
        yield Pair(
            "7",
            entry["name"],
            "POST",
            path,
            raw=entry["raw"],
            status=entry["status"],
            headers={"content-type": "text/plain<any>"},
            absent=("x-compute-type",),
            answer=entry["answer"],
        )
