"""The JSON of llama.cpp's answers, key for key (b1-7e4c0a9, recorded).

A role chunk leaves with the first text, and never if the first token is held
back. The last token is a chunk of its own, the finish after it; a chat with
usage has that in the same HTTP chunk as the finish. Usage and timings are those
of one choice. A completion's finish always has its usage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loadgen.server.dialects.asks import Reply
from loadgen.server.dialects.chunks import Fields, ReplyEvents
from loadgen.server.dialects.llama_cpp_requests import error_body
from loadgen.server.dialects.logprobs import candidates, chat_content
from loadgen.server.stream import event

BUILD = "b1-7e4c0a9"
_F32 = {
    "temperature": 0.800000011920929, "top_p": 0.949999988079071, "min_p": 0.05000000074505806,
    "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "typical_p": 1.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Form:
    """How one request is to be answered. ``logprobs``: how many per token, None for none."""

    id: str
    created_s: int
    model: str
    chat: bool
    include_usage: bool = False
    timings_per_token: bool = False
    logprobs: int | None = None


def usage(reply: Reply) -> Fields:
    """The ``usage`` object of one choice, in tokens."""
    prompt, completion = reply.prompt.tokens, reply.script.plan.tokens
    return {
        "completion_tokens": completion,
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
    }


def prompt_s(reply: Reply) -> float:
    """How long the prompt was worked on; 0 before its first token."""
    ticket = reply.ticket
    if ticket is None or ticket.first_s is None or ticket.scheduled_s is None:
        return 0.0
    return max(ticket.first_s - max(ticket.scheduled_s, ticket.submitted_s), 0.0)


def timings(reply: Reply, tokens: int, now_s: float) -> Fields:
    """The ``timings`` object after ``tokens`` tokens. The first token belongs to the prompt's time."""
    ticket = reply.ticket
    prompt_ms = prompt_s(reply) * 1e3
    predicted_ms = 0.0
    if ticket is not None and ticket.first_s is not None:
        predicted_ms = max((now_s - ticket.first_s) * 1e3, 0.001)
    evaluated, gaps = reply.prompt.tokens - reply.cached_tokens, max(tokens - 1, 0)
    return {
        "cache_n": reply.cached_tokens,
        "prompt_n": evaluated,
        "prompt_ms": round(prompt_ms, 3),
        "prompt_per_token_ms": prompt_ms / evaluated if evaluated else 0.0,
        "prompt_per_second": 1e3 * evaluated / prompt_ms if prompt_ms else 0.0,
        "predicted_n": tokens,
        "predicted_ms": round(predicted_ms, 3),
        "predicted_per_token_ms": predicted_ms / gaps if gaps else 0.0,
        "predicted_per_second": 1e3 * gaps / predicted_ms if gaps else 0.0,
    }


def body(replies: list[Reply], form: Form, now_s: float) -> Fields:
    """The answer of the OpenAI routes without streaming; usage and timings of the first choice."""
    first = replies[0]
    fields: Fields = {"choices": [_choice(reply, form) for reply in replies]}
    fields |= {"created": form.created_s, "model": form.model, "system_fingerprint": BUILD}
    fields["object"] = "chat.completion" if form.chat else "text_completion"
    fields["usage"] = usage(first)
    return fields | {"id": form.id, "timings": timings(first, first.script.plan.tokens, now_s)}


def _choice(reply: Reply, form: Form) -> Fields:
    script = reply.script
    plan = script.plan
    logprobs = _logprobs(reply, form, 1, plan.tokens)
    if form.chat:
        message = {"role": "assistant", "content": script.text}
        choice: Fields = {"finish_reason": plan.finish_reason, "index": reply.index, "message": message}
        return choice if logprobs is None else choice | {"logprobs": logprobs}
    return {
        "text": script.text,
        "index": reply.index,
        "logprobs": logprobs,
        "finish_reason": plan.finish_reason,
    }


def _logprobs(reply: Reply, form: Form, first: int, last: int) -> Fields | None:
    if form.logprobs is None:
        return None
    return {"content": chat_content(reply.script, first, last, form.logprobs, with_ids=True)}


class Stream:
    """The events of a streamed answer of the OpenAI routes; ``now_s`` is the clock."""

    def __init__(self, form: Form, now_s: Any) -> None:
        self._form = form
        self._now_s = now_s

    def events(self, reply: Reply) -> ReplyEvents:
        """The dialect of one reply."""
        form = self._form
        opening = b""
        if form.chat:
            role = {"role": "assistant", "content": None}
            opening = event(self._fields({"finish_reason": None, "index": reply.index, "delta": role}))
        return ReplyEvents(
            reply.script,
            lambda text, index: self._chunk(reply, text, index),
            last=lambda: self._last(reply),
            failed=failed,
            opening=opening,
            opens_with_text=True,
            uniform=form.logprobs is None and not form.timings_per_token,
        )

    def _chunk(self, reply: Reply, text: str, index: int) -> Fields:
        form = self._form
        logprobs = _logprobs(reply, form, index, index)
        if form.chat:
            choice: Fields = {"finish_reason": None, "index": reply.index, "delta": {"content": text}}
            if logprobs is not None:
                choice["logprobs"] = logprobs
        else:
            choice = {"text": text, "index": reply.index, "logprobs": logprobs, "finish_reason": None}
        fields = self._fields(choice)
        if form.timings_per_token:
            fields["timings"] = timings(reply, index, self._now_s())
        return fields

    def _last(self, reply: Reply) -> list[bytes]:
        script = reply.script
        plan = script.plan
        text = script.piece(plan.tokens)
        events = [event(self._chunk(reply, text, plan.tokens))] if text else []
        measured = {"timings": timings(reply, plan.tokens, self._now_s())}
        if not self._form.chat:
            return [*events, event(self._finish_of_completion(reply) | measured)]
        finish = self._fields({"finish_reason": plan.finish_reason, "index": reply.index, "delta": {}})
        if not self._form.include_usage:
            return [*events, event(finish | measured)]
        used = self._fields(None) | {"usage": usage(reply)} | measured
        return [*events, event(finish) + event(used)]

    def _finish_of_completion(self, reply: Reply) -> Fields:
        """The finish chunk of a completion, up to its timings."""
        plan = reply.script.plan
        choice = {"text": "", "index": reply.index, "logprobs": None, "finish_reason": plan.finish_reason}
        fields = self._fields(choice)
        del fields["id"]
        return fields | {"usage": usage(reply), "id": self._form.id}

    def _fields(self, choice: Fields | None) -> Fields:
        form = self._form
        choices = [] if choice is None else [choice]
        if form.chat:
            return {
                "choices": choices,
                "created": form.created_s,
                "id": form.id,
                "model": form.model,
                "system_fingerprint": BUILD,
                "object": "chat.completion.chunk",
            }
        return {
            "choices": choices,
            "created": form.created_s,
            "model": form.model,
            "system_fingerprint": BUILD,
            "object": "text_completion",
            "id": form.id,
        }


def settings(given: Fields) -> Fields:
    """The sampling settings that a client asked for, over the defaults."""
    fields: Fields = {"seed": 4294967295} | _F32 | {"top_k": 40}
    fields |= {key: given[key] for key in fields if given.get(key) is not None}
    most = next((given[k] for k in ("n_predict", "max_tokens") if given.get(k) is not None), -1)
    return fields | {
        "stop": given.get("stop") or [],
        "max_tokens": most,
        "n_predict": most,
        "n_keep": 0,
        "ignore_eos": bool(given.get("ignore_eos")),
        "stream": bool(given.get("stream")),
        "n_probs": given.get("n_probs") or 0,
        "chat_format": "Content-only",
        "samplers": [
            "penalties",
            "dry",
            "top_n_sigma",
            "top_k",
            "typ_p",
            "top_p",
            "min_p",
            "xtc",
            "temperature",
        ],
        "timings_per_token": bool(given.get("timings_per_token")),
    }


def native_chunk(reply: Reply, text: str, index: int, probabilities: int | None) -> Fields:
    """An event of ``/completion`` that is not the last."""
    (token, *_) = candidates(reply.script, index, 1)
    fields: Fields = {
        "index": reply.index,
        "content": text,
        "tokens": [token[0]],
        "stop": False,
        "id_slot": -1,
        "tokens_predicted": index,
        "tokens_evaluated": reply.prompt.tokens,
    }
    if probabilities is not None:
        fields |= native_probabilities(reply, index, index, probabilities)
    return fields


def native_probabilities(reply: Reply, first: int, last: int, top: int) -> Fields:
    """What ``n_probs`` adds for tokens ``first`` to ``last``."""
    return {"completion_probabilities": chat_content(reply.script, first, last, top, with_ids=True)}


def native_end(
    reply: Reply, given: Fields, model: str, slots: int, now_s: float, *, streamed: bool
) -> Fields:
    """The last event of ``/completion``, or the whole answer."""
    script = reply.script
    plan = script.plan
    stop_type = "limit" if plan.finish_reason == "length" else "word" if script.stop_string else "eos"
    if not plan.tokens:
        stop_type = "none"
    return {
        "index": reply.index,
        "content": "" if streamed else script.text,
        "tokens": [],
        "id_slot": plan.request_id % slots,
        "stop": True,
        "model": model,
        "tokens_predicted": plan.tokens,
        "tokens_evaluated": reply.prompt.tokens,
        "generation_settings": settings(given),
        "prompt": reply.prompt.text,
        "has_new_line": False,
        "truncated": False,
        "stop_type": stop_type,
        "stopping_word": script.stop_string or "",
        "tokens_cached": max(reply.prompt.tokens + plan.tokens - 1, 0),
        "timings": timings(reply, plan.tokens, now_s),
    }


def failed(message: str) -> bytes:
    """A failure inside a stream."""
    return event(error_body(500, message, "server_error"))
