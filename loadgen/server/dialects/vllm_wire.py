"""The JSON of vLLM's answers, key for key (0.32.0, recorded)."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.server.dialects.asks import Reply
from loadgen.server.dialects.chunks import Fields, ReplyEvents
from loadgen.server.dialects.form import Form, total_usage, usage
from loadgen.server.dialects.vllm_requests import error_body
from loadgen.server.stream import event

VERSION = "0.32.0"
FINGERPRINT = f"vllm-{VERSION}-loadgen"


def body(replies: Sequence[Reply], form: Form) -> Fields:
    """The answer without streaming."""
    details = {"prompt_tokens_details": None, "completion_tokens_details": None}
    middle = {
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": total_usage(replies) | details,
    }
    end = {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}
    if form.chat:
        choices = [_chat_choice(reply, form) for reply in replies]
        prompt = {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
        return form.head("chat.completion") | {"choices": choices} | middle | prompt | end
    choices = [_completion_choice(reply, form) for reply in replies]
    return form.head("text_completion") | {"choices": choices} | middle | end


def _chat_choice(reply: Reply, form: Form) -> Fields:
    script = reply.script
    message = {
        "role": "assistant",
        "content": script.text,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "reasoning": None,
    }
    return {
        "index": reply.index,
        "message": message,
        "logprobs": form.logprobs_of(reply, 1, script.plan.tokens),
        "finish_reason": script.plan.finish_reason,
        "stop_reason": script.stop_string,
        "token_ids": None,
        "routed_experts": None,
    }


def _completion_choice(reply: Reply, form: Form) -> Fields:
    script = reply.script
    text = "" if form.hide_reply else script.text
    return {
        "index": reply.index,
        "text": reply.prompt.text + text if form.echo else text,
        "logprobs": form.logprobs_of(reply, 1, script.plan.tokens),
        "finish_reason": script.plan.finish_reason,
        "stop_reason": script.stop_string,
        "token_ids": None,
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "routed_experts": None,
    }


class Stream:
    """The events of a streamed answer to ``replies``."""

    def __init__(self, replies: Sequence[Reply], form: Form) -> None:
        self._replies = replies
        self._form = form
        self._kind = form.chunk_kind

    def events(self, reply: Reply) -> ReplyEvents:
        """The dialect of one reply; its role stands before its first token."""
        form = self._form
        return ReplyEvents(
            reply.script,
            lambda text, index: self._chunk(reply, text, index, None),
            last=lambda: [self._last(reply)],
            failed=failed,
            opening=self._roles(reply),
            sends_empty=True,
            uniform=form.uniform,
        )

    def ending(self) -> list[bytes]:
        """What follows the last token of all."""
        if not self._form.include_usage:
            return []
        head = self._form.head(self._kind)
        tail = {"usage": total_usage(self._replies), "system_fingerprint": FINGERPRINT}
        return [event(head | {"choices": []} | tail)]

    def _roles(self, reply: Reply) -> bytes:
        if not self._form.chat:
            return b""
        choice = {
            "index": reply.index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        fields = self._form.head(self._kind) | {"choices": [choice]} | self._running_usage(reply, 0)
        return event(fields | {"prompt_token_ids": None, "prompt_text": None})

    def _running_usage(self, reply: Reply, tokens: int) -> Fields:
        if not self._form.continuous_usage:
            return {}
        details = {"completion_tokens_details": None} if self._form.chat else {}
        return {"usage": usage(reply.prompt.tokens, tokens) | details}

    def _chunk(self, reply: Reply, text: str, index: int, finish_reason: str | None) -> Fields:
        form = self._form
        choice: Fields = {"index": reply.index}
        if form.chat:
            choice["delta"] = {"content": text}
        else:
            shown = "" if form.hide_reply else text
            choice["text"] = reply.prompt.text + shown if form.echo and index == 1 else shown
        choice["logprobs"] = form.logprobs_of(reply, index, index)
        choice["finish_reason"] = finish_reason
        if finish_reason is not None or not form.chat:
            choice["stop_reason"] = None if finish_reason is None else reply.script.stop_string
        if not form.chat:
            choice["prompt_token_ids"] = None
        choice["token_ids"] = None
        return form.head(self._kind) | {"choices": [choice]} | self._running_usage(reply, index)

    def _last(self, reply: Reply) -> bytes:
        plan = reply.script.plan
        fields = self._chunk(reply, reply.script.piece(plan.tokens), plan.tokens, plan.finish_reason)
        if not self._form.include_usage:
            fields["system_fingerprint"] = FINGERPRINT
        return event(fields)


def failed(message: str) -> bytes:
    """A failure inside a stream; ``[DONE]`` follows."""
    return event(error_body(message, "InternalServerError", 500))


def models_body(model: str, max_model_len: int, created_s: int, permission_id: str) -> Fields:
    """``/v1/models``."""
    permission = {
        "id": f"modelperm-{permission_id}",
        "object": "model_permission",
        "created": created_s,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    card = {
        "id": model,
        "object": "model",
        "created": created_s,
        "owned_by": "vllm",
        "root": model,
        "parent": None,
        "max_model_len": max_model_len,
        "permission": [permission],
    }
    return {"object": "list", "data": [card]}
