"""Log-probabilities of replies, which are stable fillers, in the shapes of these servers."""

from __future__ import annotations

from typing import Any

from loadgen.server.dialects.script import Script
from loadgen.server.text import EOS_TEXT, WORDS, token_fields


def token_bytes(text: str) -> list[int]:
    """The UTF-8 bytes of a token."""
    return list(text.encode())


def candidates(script: Script, index: int, count: int) -> list[tuple[int, str, float]]:
    """(id, text, log-probability) of the ``index``-th token and ``count - 1`` runners-up, likeliest first.

    Each is half a unit less likely than the one before. There are no more than the words of all replies.
    """
    numbers = script.plan.numbers
    number = numbers[index - 1] if index <= len(numbers) else None
    fields = token_fields(number)
    text = EOS_TEXT if number is None else script.token_text(index)
    found = [(int(fields["id"]), text, float(fields["logprob"]))]
    for k in range(1, min(count, len(WORDS))):
        other = token_fields(((number or 0) + k) % len(WORDS))
        found.append((int(other["id"]), str(other["text"]), found[0][2] - k / 2))
    return found


def chat_content(script: Script, first: int, last: int, top: int, *, with_ids: bool = False) -> list[Any]:
    """``logprobs.content`` of chat for tokens ``first`` to ``last``; the end marker is not among them."""
    content = []
    for index in range(first, min(last, len(script.plan.numbers)) + 1):
        found = [
            ({"id": i} if with_ids else {})
            | {"token": t}
            | (
                {"bytes": token_bytes(t), "logprob": p}
                if with_ids
                else {"logprob": p, "bytes": token_bytes(t)}
            )
            for i, t, p in candidates(script, index, max(top, 1))
        ]
        content.append(found[0] | {"top_logprobs": found[:top]})
    return content


def completion_logprobs(script: Script, first: int, last: int, top: int) -> dict[str, Any]:
    """The ``logprobs`` object of completions for tokens ``first`` to ``last``."""
    offset = sum(len(script.token_text(i)) for i in range(1, first))
    offsets, values, tokens, tops = [], [], [], []
    for index in range(first, min(last, len(script.plan.numbers)) + 1):
        found = candidates(script, index, max(top, 1))
        offsets.append(offset)
        values.append(found[0][2])
        tokens.append(found[0][1])
        tops.append({t: p for _, t, p in found})
        offset += len(found[0][1])
    return {"text_offset": offsets, "token_logprobs": values, "tokens": tokens, "top_logprobs": tops}
