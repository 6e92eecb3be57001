"""What llama.cpp's server tells of itself: models, properties, slots and metrics (b1-7e4c0a9, recorded).

Left out: the counts of ``llama_decode()`` calls and of speculation. A slot is a
place in the running batch. Generated tokens are counted when their reply has ended,
and the two rates are those since the page was last asked for.
"""

from __future__ import annotations

from typing import Any

from loadgen import clock
from loadgen.server.dialects.answers import Answers
from loadgen.server.dialects.asks import Reply
from loadgen.server.dialects.llama_cpp_wire import BUILD, prompt_s, settings
from loadgen.server.text import EOS_TEXT


class LlamaCppStatus:
    """The status pages of one server of ``slots`` slots."""

    def __init__(self, answers: Answers, slots: int) -> None:
        self._answers = answers
        self._count = slots
        self._prompt_s = 0.0
        self._predicted_tokens = 0
        self._predicted_s = 0.0
        self._predicted_gaps = 0
        self._longest_tokens = 0
        self._last_page = (0, 0.0, 0, 0.0)
        answers.tally.watch = self._ended

    def _ended(self, reply: Reply, done: bool) -> None:
        ticket = reply.ticket
        if ticket is None or ticket.first_s is None:
            return
        self._prompt_s += prompt_s(reply)
        self._predicted_tokens += reply.emitted_tokens
        self._predicted_gaps += reply.emitted_tokens - 1
        self._predicted_s += (clock.now() if ticket.done_s is None else ticket.done_s) - ticket.first_s
        # The last token is never written to the KV cache.
        self._longest_tokens = max(self._longest_tokens, reply.prompt.tokens + reply.emitted_tokens - 1)

    def models(self, created_s: int) -> dict[str, Any]:
        """``/v1/models``: Ollama's list and OpenAI's in one."""
        limits = self._answers.service.limits
        model = limits.model_id
        details = {
            "parent_model": "",
            "format": "gguf",
            "family": "",
            "families": [""],
            "parameter_size": "",
            "quantization_level": "",
        }
        ollama = {
            "name": model,
            "model": model,
            "modified_at": "",
            "size": "",
            "digest": "",
            "type": "model",
            "description": "",
            "tags": [""],
            "capabilities": ["completion"],
            "parameters": "",
            "details": details,
        }
        transformer = self._answers.service.deployment.model
        meta = {
            "vocab_type": 2,
            "n_vocab": transformer.vocabulary,
            "n_ctx": limits.max_total_tokens,
            "n_ctx_train": transformer.max_position_embeddings,
            "n_embd": transformer.hidden,
        }
        card = {
            "id": model,
            "aliases": [model],
            "tags": [],
            "object": "model",
            "created": created_s,
            "owned_by": "llamacpp",
            "meta": meta,
        }
        return {"models": [ollama], "object": "list", "data": [card]}

    def props(self) -> dict[str, Any]:
        """``/props``."""
        limits = self._answers.service.limits
        return {
            "default_generation_settings": {"params": settings({}), "n_ctx": limits.max_total_tokens},
            "total_slots": self._count,
            "model_alias": limits.model_id,
            "model_path": limits.model_id,
            "modalities": {"vision": False, "video": False, "audio": False},
            "endpoint_slots": True,
            "endpoint_props": False,
            "endpoint_metrics": True,
            "chat_template": "",
            "bos_token": "<|begin_of_text|>",
            "eos_token": EOS_TEXT,
            "build_info": BUILD,
            "is_sleeping": False,
        }

    def slots(self) -> list[dict[str, Any]]:
        """``/slots``: the running requests first, then the free places."""
        context = self._answers.service.limits.max_total_tokens
        running = [
            r for r in self._answers.tally.live if r.ticket is not None and r.ticket.scheduled_s is not None
        ]
        slots: list[dict[str, Any]] = []
        for number, reply in enumerate(running[: self._count]):
            emitted = reply.emitted_tokens
            following = {
                "has_next_token": True,
                "has_new_line": False,
                "n_remain": reply.ask.max_new_tokens - emitted,
                "n_decoded": emitted,
            }
            slot = {"id": number, "n_ctx": context, "speculative": False, "is_processing": True}
            prompt = {
                "id_task": reply.script.plan.request_id,
                "n_prompt_tokens": reply.prompt.tokens + emitted,
                "n_prompt_tokens_processed": reply.prompt.tokens - reply.cached_tokens,
                "n_prompt_tokens_cache": reply.cached_tokens,
            }
            slots.append(slot | prompt | {"next_token": [following]})
        idle = {"n_ctx": context, "speculative": False, "is_processing": False}
        return slots + [{"id": number} | idle for number in range(len(slots), self._count)]

    def metrics(self) -> str:
        """``/metrics``."""
        service, tally = self._answers.service, self._answers.tally
        evaluated = tally.prompt_tokens - tally.cached_tokens
        prompts_s = self._prompt_s + sum(map(prompt_s, tally.live))
        page = (evaluated, prompts_s, self._predicted_gaps, self._predicted_s)
        new_evaluated, new_prompts_s, new_gaps, new_gaps_s = (
            now - before for now, before in zip(page, self._last_page, strict=True)
        )
        self._last_page = page
        rows: list[tuple[str, str, str, float]] = [
            ("prompt_tokens_total", "counter", "Number of prompt tokens processed, excluding cached tokens",
             evaluated),
            ("prompt_tokens_cached_total", "counter", "Number of prompt tokens reused from the cache",
             tally.cached_tokens),
            ("prompt_seconds_total", "counter", "Total time spent processing prompts", prompts_s),
            ("tokens_predicted_total", "counter", "Number of generation tokens processed",
             self._predicted_tokens),
            ("tokens_predicted_seconds_total", "counter", "Total time spent generating tokens",
             self._predicted_s),
            ("n_tokens_max", "counter", "Largest observed sequence length (prompt + generation)",
             self._longest_tokens),
            ("prompt_tokens_seconds", "gauge", "Average prompt throughput in tokens/s",
             new_evaluated / new_prompts_s if new_prompts_s > 0 else 0),
            ("predicted_tokens_seconds", "gauge", "Average generation throughput in tokens/s",
             new_gaps / new_gaps_s if new_gaps_s > 0 else 0),
            ("requests_processing", "gauge", "Number of requests processing", service.batch_size),
            ("requests_deferred", "gauge", "Number of requests deferred", service.queue_size),
        ]  # fmt: skip
        lines = []
        for name, kind, help_text, value in rows:
            lines += [f"# HELP llamacpp:{name} {help_text}.".rstrip("."), f"# TYPE llamacpp:{name} {kind}"]
            lines.append(
                f"llamacpp:{name} {value:g}" if isinstance(value, float) else f"llamacpp:{name} {value}"
            )
        return "\n".join(lines) + "\n"
