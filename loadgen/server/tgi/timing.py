"""How long the parts of a request took, and TGI's response headers that say so. Pure but for the clock."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen import clock
from loadgen.server.service import Ticket
from loadgen.server.tgi.validation import Work


def times(started_s: float, ticket: Ticket, tokens: int) -> tuple[float, float, float, float, float]:
    """Total, validation, queue, inference and per-token seconds, as TGI divides them (server.rs:377-412)."""
    now_s = clock.now() if ticket.done_s is None else ticket.done_s
    # A late loop stamps the submission after the instant at which the engine took it up.
    scheduled_s = now_s if ticket.scheduled_s is None else max(ticket.scheduled_s, ticket.submitted_s)
    inference_s = max(now_s - scheduled_s, 0.0)
    return (
        max(now_s - started_s, 0.0),
        max(ticket.submitted_s - started_s, 0.0),
        max(scheduled_s - ticket.submitted_s, 0.0),
        inference_s,
        inference_s / tokens,
    )


def timing_headers(
    started_s: float, ticket: Ticket, tokens: int, work: Work, compute_type: str
) -> dict[str, str]:
    """TGI's headers of a response without streaming; whole milliseconds are truncated, as there."""
    total_s, validation_s, queue_s, inference_s, per_token_s = times(started_s, ticket, tokens)
    return {
        "x-compute-type": compute_type,
        "x-compute-time": f"{total_s:.9f}".rstrip("0").rstrip("."),
        "x-compute-characters": str(len(work.inputs)),
        "x-total-time": str(int(total_s * 1e3)),
        "x-validation-time": str(int(validation_s * 1e3)),
        "x-queue-time": str(int(queue_s * 1e3)),
        "x-inference-time": str(int(inference_s * 1e3)),
        "x-time-per-token": str(int(per_token_s * 1e3)),
        "x-prompt-tokens": str(work.prompt_tokens),
        "x-generated-tokens": str(tokens),
    }


def summed(each: Sequence[dict[str, str]]) -> dict[str, str]:
    """Headers of a response to several prompts: sums, and no ``x-compute-time`` (server.rs:989-1135)."""
    names = [name for name in each[0] if name not in ("x-compute-type", "x-compute-time")]
    sums = {name: str(sum(int(headers[name]) for headers in each)) for name in names}
    return {"x-compute-type": each[0]["x-compute-type"]} | sums
