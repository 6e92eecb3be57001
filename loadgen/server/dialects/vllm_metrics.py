"""``/metrics`` of vLLM: its names, labels and buckets (0.32.0), for what this server truly has.

Speculation, multimodal caches, external KV stores and the ``_created`` series
are left out. Time between tokens is a request's mean, observed once per token.
"""

from __future__ import annotations

from loadgen.server.dialects.answers import Answers
from loadgen.server.dialects.asks import Reply
from loadgen.server.dialects.prometheus import Histogram, one_two_five, series

LATENCY_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
)  # fmt: skip
FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
BETWEEN_TOKENS_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
CHOICES = (1, 2, 5, 10, 20)
PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)

_HELP = {
    "request_prompt_tokens": "Number of prefill tokens processed.",
    "request_generation_tokens": "Number of generation tokens processed.",
    "request_max_num_generation_tokens": "Histogram of maximum number of requested generation tokens.",
    "request_params_n": "Histogram of the n request parameter.",
    "request_params_max_tokens": "Histogram of the max_tokens request parameter.",
    "time_to_first_token_seconds": "Histogram of time to first token in seconds.",
    "inter_token_latency_seconds": "Histogram of inter-token latency in seconds.",
    "request_time_per_output_token_seconds": "Histogram of time_per_output_token_seconds per request.",
    "e2e_request_latency_seconds": "Histogram of e2e request latency in seconds.",
    "request_queue_time_seconds": "Histogram of time spent in WAITING phase for request.",
    "request_inference_time_seconds": "Histogram of time spent in RUNNING phase for request.",
    "request_prefill_time_seconds": "Histogram of time spent in PREFILL phase for request.",
    "request_decode_time_seconds": "Histogram of time spent in DECODE phase for request.",
    "request_num_preemptions": "Histogram of the number of times a request was preempted.",
    "request_prefill_kv_computed_tokens": (
        "Histogram of new KV tokens computed during prefill (excluding cached tokens)."
    ),
}


class VllmMetrics:
    """The page, kept up to date by the tally of ``answers``."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._labels = {"engine": "0", "model_name": answers.service.limits.model_id}
        tokens = one_two_five(answers.service.limits.max_total_tokens)
        bounds: dict[str, tuple[float, ...]] = {
            "request_params_n": CHOICES,
            "request_num_preemptions": PREEMPTIONS,
            "time_to_first_token_seconds": FIRST_TOKEN_S,
            "inter_token_latency_seconds": BETWEEN_TOKENS_S,
            "request_time_per_output_token_seconds": BETWEEN_TOKENS_S,
        }
        self._histograms = {
            name: Histogram(bounds.get(name, LATENCY_S if name.endswith("_seconds") else tokens))
            for name in _HELP
        }
        answers.tally.watch = self._ended

    def _ended(self, reply: Reply, done: bool) -> None:
        ticket = reply.ticket
        if not done or ticket is None:
            return
        assert ticket.done_s is not None and ticket.first_s is not None and ticket.scheduled_s is not None
        tokens = reply.script.plan.tokens
        decode_s = ticket.done_s - ticket.first_s
        values = {
            "request_prompt_tokens": reply.prompt.tokens,
            "request_generation_tokens": tokens,
            "request_params_max_tokens": reply.ask.max_new_tokens,
            "time_to_first_token_seconds": ticket.first_s - ticket.submitted_s,
            "request_time_per_output_token_seconds": decode_s / (tokens - 1) if tokens > 1 else 0.0,
            "e2e_request_latency_seconds": ticket.done_s - ticket.submitted_s,
            "request_queue_time_seconds": max(ticket.scheduled_s - ticket.submitted_s, 0.0),
            "request_inference_time_seconds": ticket.done_s - ticket.scheduled_s,
            "request_prefill_time_seconds": ticket.first_s - ticket.scheduled_s,
            "request_decode_time_seconds": decode_s,
            "request_num_preemptions": reply.preemptions,
            "request_prefill_kv_computed_tokens": reply.prompt.tokens - reply.cached_tokens,
        }
        if reply.index % reply.ask.n == 0:
            values["request_params_n"] = reply.ask.n
            values["request_max_num_generation_tokens"] = tokens
        for name, value in values.items():
            self._histograms[name].observe(value)
        if tokens > 1:
            between = self._histograms["inter_token_latency_seconds"]
            between.observe(decode_s / (tokens - 1), times=tokens - 1)

    def text(self) -> str:
        """The whole page."""
        service, tally = self._answers.service, self._answers.tally
        labels = self._labels
        # Blocks of the prefix cache that nobody uses count as free there.
        used = service.batch_tokens / service.limits.max_batch_total_tokens
        prompt, cached = tally.prompt_tokens, tally.cached_tokens
        finished = [
            ({**labels, "finished_reason": reason}, float(count)) for reason, count in tally.finished.items()
        ]
        lines = [
            *self._gauge("num_requests_running", "Number of requests in model execution batches.",
                         service.batch_size),
            *self._gauge("num_requests_waiting", "Number of requests waiting to be processed.",
                         service.queue_size),
            *self._gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", used),
            *self._counter("prefix_cache_queries",
                           "Prefix cache queries, in terms of number of queried tokens.", prompt),
            *self._counter("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.",
                           cached),
            *self._counter("num_preemptions", "Cumulative number of preemption from the engine.",
                           tally.preemptions),
            *self._counter("prompt_tokens", "Number of prefill tokens processed.", prompt),
            *self._counter("prompt_tokens_cached", "Number of cached prompt tokens (local + external).",
                           cached),
            *self._counter("generation_tokens", "Number of generation tokens processed.",
                           tally.generated_tokens),
            *series("vllm:request_success_total", "counter", "Count of successfully processed requests.",
                    finished),
        ]  # fmt: skip
        for name, histogram in self._histograms.items():
            lines += histogram.lines(f"vllm:{name}", _HELP[name], labels)
        return "\n".join(lines) + "\n"

    def _gauge(self, name: str, help_text: str, value: float) -> list[str]:
        return series(f"vllm:{name}", "gauge", help_text, [(self._labels, value)])

    def _counter(self, name: str, help_text: str, value: float) -> list[str]:
        return series(f"vllm:{name}_total", "counter", help_text, [(self._labels, value)])
