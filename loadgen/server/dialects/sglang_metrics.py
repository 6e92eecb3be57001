"""``/metrics`` of SGLang: its names (0.5.23), for what this server truly has. Buckets are assumed."""

from __future__ import annotations

from loadgen.server.dialects.answers import Answers
from loadgen.server.dialects.asks import Reply
from loadgen.server.dialects.prometheus import Histogram, series

SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0,
)  # fmt: skip
_HELP = {
    "time_to_first_token_seconds": "Histogram of time to first token in seconds.",
    "inter_token_latency_seconds": "Histogram of inter-token latency in seconds.",
    "e2e_request_latency_seconds": "Histogram of End-to-end request latency in seconds",
    "queue_time_seconds": "Histogram of queueing time in seconds.",
}


class SglangMetrics:
    """The page, kept up to date by the tally of ``answers``."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._labels = {"model_name": answers.service.limits.model_id}
        self._histograms = {name: Histogram(SECONDS) for name in _HELP}
        answers.tally.watch = self._ended

    def _ended(self, reply: Reply, done: bool) -> None:
        ticket = reply.ticket
        if not done or ticket is None:
            return
        assert ticket.done_s is not None and ticket.first_s is not None and ticket.scheduled_s is not None
        histograms = self._histograms
        histograms["time_to_first_token_seconds"].observe(ticket.first_s - ticket.submitted_s)
        histograms["e2e_request_latency_seconds"].observe(ticket.done_s - ticket.submitted_s)
        histograms["queue_time_seconds"].observe(max(ticket.scheduled_s - ticket.submitted_s, 0.0))
        gaps = reply.script.plan.tokens - 1
        if gaps:
            between_s = (ticket.done_s - ticket.first_s) / gaps
            histograms["inter_token_latency_seconds"].observe(between_s, times=gaps)

    def text(self) -> str:
        """The whole page."""
        service, tally = self._answers.service, self._answers.tally
        limits = service.limits
        used = service.batch_tokens
        prompt, cached = tally.prompt_tokens, tally.cached_tokens
        finished = tally.finished
        gauges = {
            "num_running_reqs": ("The number of running requests.", service.batch_size),
            "num_queue_reqs": ("The number of requests in the waiting queue.", service.queue_size),
            "num_used_tokens": ("The number of used tokens.", used),
            "token_usage": ("The token usage.", used / limits.max_batch_total_tokens),
            "cache_hit_rate": ("The prefix cache hit rate.", cached / prompt if prompt else 0.0),
            "max_total_num_tokens": ("Maximum total number of tokens.", limits.max_batch_total_tokens),
        }
        counters = {
            "prompt_tokens_total": ("Number of prefill tokens processed.", prompt),
            "generation_tokens_total": ("Number of generation tokens processed.", tally.generated_tokens),
            "cached_tokens_total": ("Number of cached prompt tokens.", cached),
            "num_requests_total": ("Number of requests processed.", finished["stop"] + finished["length"]),
            "num_aborted_requests_total": ("Number of requests aborted.", finished["abort"]),
            "num_retracted_requests_total": ("Total number of retracted requests.", tally.preemptions),
        }
        lines: list[str] = []
        for kind, group in (("gauge", gauges), ("counter", counters)):
            for name, (help_text, value) in group.items():
                lines += series(f"sglang:{name}", kind, help_text, [(self._labels, value)])
        for name, histogram in self._histograms.items():
            lines += histogram.lines(f"sglang:{name}", _HELP[name], self._labels)
        return "\n".join(lines) + "\n"
