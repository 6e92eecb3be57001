"""The JSON of SGLang's answers, key for key (0.5.23, read from its sources)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loadgen.server.dialects.asks import Reply
from loadgen.server.dialects.chunks import Fields, ReplyEvents
from loadgen.server.dialects.form import Form, total_usage, usage
from loadgen.server.dialects.sglang_requests import error_body
from loadgen.server.stream import event
from loadgen.server.text import EOS_ID, token_fields

VERSION = "0.5.23"
_USAGE_DETAILS: Fields = {
    "prompt_tokens_details": None,
    "reasoning_tokens": 0,
    "completion_tokens_details": None,
}


def matched(reply: Reply) -> int | str | None:
    """What ended the reply: the end marker's id, a stop string, or nothing."""
    if reply.script.plan.finish_reason != "stop":
        return None
    return EOS_ID if reply.script.stop_string is None else reply.script.stop_string


def body(replies: Sequence[Reply], form: Form) -> Fields:
    """The answer of the OpenAI routes without streaming."""
    choices = []
    for reply in replies:
        script = reply.script
        choice: Fields = {"index": reply.index}
        if form.chat:
            choice["message"] = {"role": "assistant", "content": script.text, "reasoning_content": None}
        else:
            choice["text"] = reply.prompt.text + script.text if form.echo else script.text
        choice["logprobs"] = form.logprobs_of(reply, 1, script.plan.tokens)
        choice["finish_reason"] = script.plan.finish_reason
        choice["matched_stop"] = matched(reply)
        choices.append(choice)
    kind = "chat.completion" if form.chat else "text_completion"
    metadata = {"metadata": {"weight_version": "default"}}
    return form.head(kind) | {"choices": choices, "usage": total_usage(replies) | _USAGE_DETAILS} | metadata


class Stream:
    """The events of a streamed answer of the OpenAI routes.

    In a chat all finish chunks come at the very end, whichever choice ended first.
    """

    def __init__(self, replies: Sequence[Reply], form: Form) -> None:
        self._replies = replies
        self._form = form
        self._kind = form.chunk_kind

    def events(self, reply: Reply) -> ReplyEvents:
        """The dialect of one reply."""
        form = self._form
        role = {"reasoning_content": None, "role": "assistant", "content": ""}
        return ReplyEvents(
            reply.script,
            lambda text, index: self._chunk(reply, text, index, None),
            last=lambda: self._last(reply),
            failed=failed,
            opening=event(self._fields(self._delta(reply, role, None, None))) if form.chat else b"",
            sends_empty=not form.chat,
            uniform=form.uniform,
        )

    def ending(self) -> list[bytes]:
        """What follows the last token of all: the finish chunks of a chat, the usage if asked for."""
        events = []
        if self._form.chat:
            for reply in self._replies:
                choice = self._delta(
                    reply, {"reasoning_content": None}, None, reply.script.plan.finish_reason
                )
                events.append(event(self._fields(choice | {"matched_stop": matched(reply)})))
        if self._form.include_usage:
            used = total_usage(self._replies) | _USAGE_DETAILS
            if not self._form.chat:
                used = {key: value for key, value in used.items() if value is not None}
            events.append(event(self._form.head(self._kind) | {"choices": [], "usage": used}))
        return events

    def _fields(self, choice: Fields, used: Fields | None = None) -> Fields:
        fields = self._form.head(self._kind) | {"choices": [choice]}
        if used is not None or not self._form.chat:
            fields["usage"] = used
        return fields

    def _delta(self, reply: Reply, delta: Fields, logprobs: Fields | None, reason: str | None) -> Fields:
        return {
            "index": reply.index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": reason,
            "matched_stop": None,
        }

    def _chunk(self, reply: Reply, text: str, index: int, reason: str | None) -> Fields:
        form = self._form
        used = usage(reply.prompt.tokens, index) | _USAGE_DETAILS if form.continuous_usage else None
        logprobs = form.logprobs_of(reply, index, index)
        if form.chat:
            return self._fields(
                self._delta(reply, {"reasoning_content": None, "content": text}, logprobs, None), used
            )
        choice = {
            "index": reply.index,
            "text": reply.prompt.text + text if form.echo and index == 1 else text,
            "logprobs": logprobs,
            "finish_reason": reason,
            "matched_stop": None if reason is None else matched(reply),
        }
        return self._fields(choice, used)

    def _last(self, reply: Reply) -> list[bytes]:
        plan = reply.script.plan
        text = reply.script.piece(plan.tokens)
        if self._form.chat and not text:
            return []
        return [event(self._chunk(reply, text, plan.tokens, plan.finish_reason))]


def native(reply: Reply, request_id: str, index: int, *, done: bool, now_s: float, logprobs: bool) -> Fields:
    """One object of ``/generate``: everything up to the ``index``-th token."""
    script = reply.script
    plan = script.plan
    ticket = reply.ticket
    finish: Fields | None = None
    if done and plan.finish_reason == "length":
        finish = {"type": "length", "length": plan.tokens}
    elif done:
        finish = {"type": "stop", "matched": matched(reply)}
    ids = [token_fields(n)["id"] for n in plan.numbers[:index]]
    if index > len(plan.numbers):
        ids.append(EOS_ID)
    meta: Fields = {
        "id": request_id,
        "finish_reason": finish,
        "prompt_tokens": reply.prompt.tokens,
        "weight_version": "default",
        "num_retractions": reply.preemptions,
        "completion_tokens": index,
        "cached_tokens": reply.cached_tokens,
    }
    if logprobs:
        numbers = plan.numbers[:index]
        meta["output_token_logprobs"] = [
            [token_fields(n)["logprob"], token_fields(n)["id"], None] for n in numbers
        ]
        meta["output_token_logprobs_length"] = len(numbers)
    if done and ticket is not None:
        meta["e2e_latency"] = now_s - ticket.submitted_s
    text = script.text if done else "".join([script.piece(i) for i in range(1, index + 1)])
    return {"text": text, "output_ids": ids, "meta_info": meta}


def failed(message: str) -> bytes:
    """A failure inside a stream of the OpenAI routes; ``[DONE]`` follows."""
    return event({"error": error_body(message, "INTERNAL_SERVER_ERROR", 500)})


def model_info(model: str) -> Fields:
    """``/model_info``."""
    return {
        "model_path": model,
        "served_model_name": model,
        "tokenizer_path": model,
        "is_generation": True,
        "preferred_sampling_params": None,
        "weight_version": "default",
        "load_format": "auto",
        "reasoning_parser": None,
        "tool_call_parser": None,
        "disaggregation_mode": "null",
        "has_image_understanding": False,
        "has_audio_understanding": False,
        "model_type": None,
        "architectures": None,
    }


def models_body(model: str, context_tokens: int, created_s: int) -> dict[str, Any]:
    """``/v1/models``."""
    card = {
        "id": model,
        "object": "model",
        "created": created_s,
        "owned_by": "sglang",
        "root": model,
        "parent": None,
        "max_model_len": context_tokens,
    }
    return {"object": "list", "data": [card]}
