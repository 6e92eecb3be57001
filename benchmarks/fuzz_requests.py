"""Requests for `fuzz_server`: bodies drawn from TGI's schemas, and all that can be wrong around a body."""

from __future__ import annotations

import gzip
import json
import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

JSON_TYPE = ("content-type", "application/json")
TEXTS = (
    "a",
    "Hello there",
    "",
    " ",
    "Grüße 🙂",
    "\x00\x1f",
    "\u2028",
    "\ud800",
    "a" * 3000,
    "word " * 900,
    "[INST]",
)
INTEGERS = (0, 1, 2, 3, 5, 7, -1, 100, 4096, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30)
NUMBERS = (0, 0.5, 1, 1.0, -1, 2.5, 1e308, -1e308, 5e-324, 1e39, float("nan"), float("inf"))
TAME = {
    "inputs": ("a", "Hello there", "word " * 300, "Grüße 🙂"),
    "prompt": ("a", ["a", "b"], ["one", "two", "three", "four"]),
    "temperature": (0.7, 1.5),
    "top_p": (0.9, None),
    "typical_p": (0.95, None),
    "top_k": (10, None),
    "best_of": (1, None),
    "frequency_penalty": (0.1, None),
    "presence_penalty": (0.1, None),
    "repetition_penalty": (1.1, None),
    "max_new_tokens": (1, 2, 9),
    "max_tokens": (1, 2, 9),
    "truncate": (5, None),
    "top_n_tokens": (0, 2, None),
    "top_logprobs": (0, 2),
    "stop": ([], ["t"]),
    "role": ("user", "system", "assistant"),
    "grammar": (None,),
    "response_format": (None,),
    "tools": (None,),
    "tool_choice": (None,),
    "suffix": (None,),
    "logit_bias": (None,),
    "tool_calls": (None,),
}


class Bodies:
    """Draws values from the description's schemas. ``tame`` ones are mostly valid."""

    def __init__(self, schemas: dict[str, Any], rng: random.Random) -> None:
        self._schemas = schemas
        self._rng = rng

    def draw(self, schema: dict[str, Any], *, tame: bool, depth: int = 0) -> Any:
        """A value for ``schema``; wild values may have any type."""
        rng = self._rng
        if not tame and (rng.random() < 0.06 or depth > 8):
            return self._anything(depth)
        if "$ref" in schema:
            return self.draw(self._schemas[schema["$ref"].rsplit("/", 1)[1]], tame=tame, depth=depth + 1)
        if schema.get("nullable") and rng.random() < 0.2:
            return None
        if "oneOf" in schema:
            options = schema["oneOf"]
            return self.draw(options[0] if tame else rng.choice(options), tame=tame, depth=depth + 1)
        if "allOf" in schema:
            parts = [self.draw(part, tame=tame, depth=depth + 1) for part in schema["allOf"]]
            if all(isinstance(part, dict) for part in parts):
                return {k: v for part in parts for k, v in part.items()}
            return parts[0]
        if "enum" in schema:
            return rng.choice(schema["enum"])
        kinds: dict[str, Callable[[], Any]] = {
            "object": lambda: self._object(schema, tame, depth),
            "array": lambda: [
                self.draw(schema.get("items", {}), tame=tame, depth=depth + 1)
                for _ in range(1 if tame else rng.choice((0, 1, 2, 3, 6)))
            ],
            "string": lambda: rng.choice(TEXTS[:2] if tame else TEXTS),
            "integer": lambda: rng.choice(INTEGERS[1:6] if tame else INTEGERS),
            "number": lambda: rng.choice(NUMBERS[1:4] if tame else NUMBERS),
            "boolean": lambda: rng.random() < 0.5,
        }
        return kinds.get(schema.get("type", ""), lambda: self._anything(depth))()

    def _object(self, schema: dict[str, Any], tame: bool, depth: int) -> dict[str, Any]:
        rng, found = self._rng, {}
        required = schema.get("required", ())
        for name, inner in schema.get("properties", {}).items():
            if rng.random() < ((1.0 if tame else 0.95) if name in required else 0.3):
                known = tame and name in TAME
                found[name] = (
                    rng.choice(TAME[name]) if known else self.draw(inner, tame=tame, depth=depth + 1)
                )
        if rng.random() < 0.1:
            found[rng.choice(("extra", "", "model_id", "stream"))] = False if tame else self._anything(depth)
        return found

    def _anything(self, depth: int) -> Any:
        rng = self._rng
        pool: list[Any] = [None, True, rng.choice(INTEGERS), rng.choice(NUMBERS), rng.choice(TEXTS), [], {}]
        if depth < 4:
            pool += [[self._anything(depth + 1)], {rng.choice(TEXTS[:5]): self._anything(depth + 1)}]
        return rng.choice(pool)


@dataclass
class Attack:
    """Bytes to send. ``whole``: an answer to each request is due; ``headless``: it has no body.

    After ``hang_up_s`` without an answer the connection is closed and that is all right.
    """

    kind: str
    data: bytes
    answers: int = 1
    whole: bool = True
    headless: bool = False
    hang_up_s: float | None = None


class Attacks:
    """Draws one attack after another."""

    def __init__(self, openapi: dict[str, Any], seed: int) -> None:
        self._rng = random.Random(seed)
        self._bodies = Bodies(openapi["components"]["schemas"], self._rng)
        self._posts = {
            path: methods["post"]["requestBody"]["content"]["application/json"]["schema"]
            for path, methods in openapi["paths"].items()
            if "post" in methods
        }
        self._gets = [path for path, methods in openapi["paths"].items() if "get" in methods]
        self._kinds: list[tuple[int, Callable[[], Attack]]] = [
            (30, lambda: self._post("tame", tame=True)),
            (30, lambda: self._post("wild", tame=False)),
            (8, self._mangled),
            (4, self._garbage),
            (6, self._odd_header),
            (6, self._chunked),
            (4, self._compressed),
            (5, self._pipelined),
            (8, self._hung_up),
            (4, self._cut),
            (5, self._elsewhere),
            (3, self._malformed),
            (1, self._huge),
        ]

    def next(self) -> Attack:
        """The next attack of the seed."""
        weights = [weight for weight, _ in self._kinds]
        return self._rng.choices([make for _, make in self._kinds], weights)[0]()

    def _body(self, *, tame: bool) -> tuple[str, bytes]:
        rng = self._rng
        path = rng.choice(list(self._posts))
        value = self._bodies.draw(self._posts[path], tame=tame)
        if isinstance(value, dict) and path in (
            "/v1/chat/completions",
            "/v1/completions",
            "/",
            "/invocations",
        ):
            value.setdefault("stream", rng.random() < 0.4)
        ascii_only = rng.random() < 0.5
        return path, json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")

    def _request(self, path: str, body: bytes, *headers: tuple[str, str], method: str = "POST") -> bytes:
        lines = [f"{method} {path} HTTP/1.1", "host: h"]
        lines += [f"{name}: {value}" for name, value in headers]
        if not any(name in ("content-length", "transfer-encoding") for name, _ in headers):
            lines.append(f"content-length: {len(body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape") + body

    def _post(self, kind: str, *, tame: bool) -> Attack:
        path, body = self._body(tame=tame)
        return Attack(kind, self._request(path, body, JSON_TYPE))

    def _mangled(self) -> Attack:
        """A body with bytes changed, cut off or doubled: bad UTF-8, bad JSON, BOMs."""
        rng = self._rng
        path, body = self._body(tame=True)
        spoilt = bytearray(body)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(spoilt) + 1)
            change = rng.randrange(5)
            if change == 0:
                spoilt[at:at] = rng.choice(
                    (b"\xff", b"\xed\xa0\x80", b"\x00", b"\xef\xbb\xbf", b'\\"', b"\\ud800")
                )
            elif change == 1:
                del spoilt[at : at + rng.randrange(1, 9)]
            elif change == 2:
                spoilt[at:at] = spoilt[at : at + 20]
            elif change == 3 and at < len(spoilt):
                spoilt[at] = rng.randrange(256)
            else:
                spoilt[at:at] = rng.choice((b"1e999", b"-0", b"NaN", b"{", b"]", b","))
        return Attack("mangled", self._request(path, bytes(spoilt), JSON_TYPE))

    def _garbage(self) -> Attack:
        rng = self._rng
        depth = rng.choice((10, 500, 3000, 100_000))
        body = rng.choice(
            (
                rng.randbytes(rng.randrange(200)),
                b"[" * depth,
                b'{"inputs":' * depth,
                b'{"inputs":"a","parameters":{"grammar":' + b"[" * depth + b"]" * depth + b"}}",
                b'{"inputs":"a","inputs":"b"}',
                b'{"inputs":"a","parameters":{"max_new_tokens":' + b"9" * 5000 + b"}}",
                b"\xef\xbb\xbf" + b'{"inputs":"a"}',
                '{"inputs":"a"}'.encode("utf-16"),
                b"null",
                b"",
            )
        )
        return Attack("garbage", self._request(rng.choice(list(self._posts)), body, JSON_TYPE))

    def _odd_header(self) -> Attack:
        rng = self._rng
        path, body = self._body(tame=True)
        odd = rng.choice(
            (
                ("content-type", "text/plain"),
                ("content-type", ""),
                ("content-type", "application/json; charset=klingon"),
                ("content-type", "multipart/form-data; boundary=x"),
                ("content-type", "\u00ff/\u00fe"),
                ("x-request-id", rng.choice(("-1", "9" * 400, "", "a b", "\u00e9"))),
                ("authorization", "Bearer " + "x" * 6000),
                ("accept", "image/png"),
                ("expect", rng.choice(("100-continue", "the unexpected"))),
                ("connection", rng.choice(("close", "upgrade", "keep-alive, x"))),
                ("upgrade", rng.choice(("websocket", "h2c"))),
                ("cookie", "a=b; " * 900),
                ("range", "bytes=0-3"),
                ("traceparent", "00-" + "z" * 40),
                ("origin", "null"),
                ("host", "another"),
                ("if-none-match", "*"),
                ("te", "trailers"),
                ("content-language", "\x7f"),
            )
        )
        headers = [odd] if odd[0] == "content-type" else [JSON_TYPE, odd]
        # A server may close instead of answering what is not HTTP.
        strict = all(32 <= ord(c) < 127 for c in odd[1]) and odd[0] not in (
            "host",
            "upgrade",
            "expect",
            "connection",
        )
        return Attack("odd header", self._request(path, body, *headers), whole=strict)

    def _chunked(self) -> Attack:
        rng = self._rng
        path, body = self._body(tame=rng.random() < 0.7)
        sizes, at, framed = [], 0, b""
        while at < len(body):
            size = rng.choice((1, 3, 50, len(body)))
            piece = body[at : at + size]
            framed += b"%x\r\n%b\r\n" % (len(piece), piece) if len(sizes) < 200 else b""
            sizes.append(size)
            at += size
            if len(sizes) == 199:
                framed += b"%x\r\n%b\r\n" % (len(body) - at, body[at:]) if at < len(body) else b""
                break
        wrong = rng.random() < 0.2
        ending = rng.choice((b"zz\r\n\r\n", b"-1\r\n\r\n", b"5\r\nab\r\n")) if wrong else b"0\r\n\r\n"
        head = self._request(path, b"", JSON_TYPE, ("transfer-encoding", "chunked"))
        hang_up_s = 0.5 if wrong else None
        return Attack("chunked", head + framed + ending, whole=not wrong, hang_up_s=hang_up_s)

    def _compressed(self) -> Attack:
        rng = self._rng
        path, body = self._body(tame=True)
        coding, data = rng.choice(
            (
                ("gzip", gzip.compress(body, mtime=0)),
                ("gzip", body),
                ("gzip", gzip.compress(body, mtime=0)[:-9]),
                ("deflate", zlib.compress(body)),
                ("deflate", b"\x00"),
                ("gzip", gzip.compress(b" " * 30_000_000, mtime=0)),
                ("br", body),
                ("nonsense", body),
            )
        )
        return Attack(
            "compressed", self._request(path, data, JSON_TYPE, ("content-encoding", coding)), whole=False
        )

    def _pipelined(self) -> Attack:
        requests = [
            self._post("", tame=self._rng.random() < 0.7).data for _ in range(self._rng.choice((2, 3, 5)))
        ]
        return Attack("pipelined", b"".join(requests), answers=len(requests))

    def _hung_up(self) -> Attack:
        count = self._rng.choice((1, 1, 3))
        data = b"".join(self._post("", tame=True).data for _ in range(count))
        return Attack("hung up", data, whole=False, hang_up_s=self._rng.choice((0.0, 0.005, 0.02, 0.1)))

    def _cut(self) -> Attack:
        """The request itself ends early, or says another length than it has."""
        rng = self._rng
        data = self._post("", tame=True).data
        cut = data[: rng.randrange(1, len(data))]
        if rng.random() < 0.3:
            cut = re.sub(rb"content-length: \d+", b"content-length: %d" % rng.choice((1, 5, 10**9)), data)
        return Attack("cut", cut, whole=False, hang_up_s=rng.choice((0.0, 0.02, 0.2)))

    def _elsewhere(self) -> Attack:
        rng = self._rng
        method = rng.choice(("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "POST"))
        path = rng.choice(
            (
                *self._gets,
                *self._posts,
                "/docs",
                "/ping",
                "/nowhere",
                "/%00",
                "/%ff",
                "/..%2f",
                "//",
                "/generate?" + "q=1&" * 300,
            )
        )
        return Attack("elsewhere", self._request(path, b"", method=method), headless=method == "HEAD")

    def _malformed(self) -> Attack:
        rng = self._rng
        path, body = self._body(tame=True)
        data = rng.choice(
            (
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"GET\r\n\r\n",
                b"GET / HTTP/9.9\r\nhost: h\r\n\r\n",
                b"GET http://h/ HTTP/1.1\r\nhost: h\r\n\r\n",
                b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
                b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nhost: h\r\n\r\n",
                b"GET / HTTP/1.1\r\nhost: h\r\nbad header\r\n\r\n",
                b"GET / HTTP/1.1\nhost: h\n\n",
                self._request(path, body, JSON_TYPE, ("content-length", "-5")),
                self._request(path, body, JSON_TYPE, ("content-length", "5"), ("content-length", "6")),
                self._request(path, body, JSON_TYPE, ("content-length", "9" * 30)),
                self._request(
                    path, body, JSON_TYPE, ("transfer-encoding", "chunked"), ("content-length", "5")
                ),
                self._request(path, body, JSON_TYPE, ("transfer-encoding", "gzip, identity")),
                self._request(path, body, JSON_TYPE, method="PO ST"),
            )
        )
        return Attack("malformed", data, whole=False, hang_up_s=1.0)

    def _huge(self) -> Attack:
        size = self._rng.choice((1_900_000, 2_000_001, 6_000_000))
        body = json.dumps(
            {"inputs": "word " * (size // 5), "messages": [{"role": "user", "content": "a" * size}]}
        )
        path = self._rng.choice(("/generate", "/generate_stream", "/v1/chat/completions", "/tokenize"))
        return Attack("huge", self._request(path, body.encode(), JSON_TYPE))
