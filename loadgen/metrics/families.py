"""What TGI, vLLM, SGLang and llama.cpp call the same six quantities on their ``/metrics`` pages.

Pure: bytes of a page in, a `ServerSample` out. Several series of one name (engines,
shards, sources) add up. A series that is not on the page is None, never 0: TGI shows
one only after its first sample. docs/metrics.md says what each server counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from loadgen.types import ServerSample

_RANKS = frozenset({"tp_rank", "pp_rank", "moe_ep_rank", "pid"})
"""SGLang's processes that share one engine. (Its data-parallel engines differ in ``dp_rank``.)"""
MOST_SERIES = 10_000
"""On one page: parsing more would hold up the loop that sends requests (7 us each)."""
_LINE_FEED, _AFTER_NAME = 0x0A, b" \t{"


class PageError(ValueError):
    """A page is not the text format of Prometheus."""


@dataclass(frozen=True, slots=True)
class Family:
    """One server's names. All its names begin with ``prefix``.

    ``names``: for each field of `ServerSample` the names whose values add up to it;
    one of them that is not on the page counts as nothing, as long as the first is there.
    ``copies``: by name, labels whose series repeat or split one count, which is then the
    largest of them; series that differ in other labels add up.
    """

    name: str
    prefix: bytes
    names: Mapping[str, tuple[str, ...]]
    copies: Mapping[str, frozenset[str]] = field(default_factory=dict)


TGI = Family(
    "tgi",
    b"tgi_",
    {
        "running": ("tgi_batch_current_size",),
        "waiting": ("tgi_queue_size",),
        "prompt_tokens": ("tgi_request_input_length_sum",),
        "output_tokens": ("tgi_request_generated_tokens_sum",),
    },
)
VLLM = Family(
    "vllm",
    b"vllm:",
    {
        "running": ("vllm:num_requests_running",),
        "waiting": ("vllm:num_requests_waiting",),
        "prompt_tokens": ("vllm:prompt_tokens_total",),
        "output_tokens": ("vllm:generation_tokens_total",),
        "cached_tokens": ("vllm:prefix_cache_hits_total",),
        "preemptions": ("vllm:num_preemptions_total",),
    },
)
SGLANG = Family(
    "sglang",
    b"sglang:",
    {
        "running": ("sglang:num_running_reqs",),
        "waiting": ("sglang:num_queue_reqs",),
        "prompt_tokens": ("sglang:prompt_tokens_total",),
        "output_tokens": ("sglang:generation_tokens_total",),
        "cached_tokens": ("sglang:cached_tokens_total",),
        "preemptions": ("sglang:num_retracted_requests_total",),
    },
    {
        "sglang:num_running_reqs": _RANKS | {"priority"},
        "sglang:num_queue_reqs": _RANKS | {"priority"},
        "sglang:num_retracted_requests_total": _RANKS,
    },
)
LLAMA_CPP = Family(
    "llama.cpp",
    b"llamacpp:",
    {
        "running": ("llamacpp:requests_processing",),
        "waiting": ("llamacpp:requests_deferred",),
        # The first leaves out what the cache had; the second is missing from older builds.
        "prompt_tokens": ("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),
        "output_tokens": ("llamacpp:tokens_predicted_total",),
        "cached_tokens": ("llamacpp:prompt_tokens_cached_total",),
    },
)
FAMILIES = (TGI, VLLM, SGLANG, LLAMA_CPP)


def family_of(page: bytes) -> Family | None:
    """Whose page it is, by the beginning of the names on it; None when it is nobody's known."""
    for family in FAMILIES:
        if page.startswith(family.prefix) or b"\n" + family.prefix in page:
            return family
    return None


def server_sample(page: bytes, family: Family, t_s: float) -> ServerSample:
    """The six quantities on a page, stamped ``t_s`` (clock.now). Raises PageError for a garbled line.

    A value that is not finite is a missing one.
    """
    wanted = tuple({name: None for names in family.names.values() for name in names})
    found = {
        name: _total(rows, family.copies.get(name, frozenset()))
        for name, rows in samples(page, wanted).items()
    }
    values: dict[str, float] = {}
    for quantity, names in family.names.items():
        if names[0] in found:
            total = sum(found[name] for name in names if name in found)
            if math.isfinite(total):
                values[quantity] = total
    return ServerSample(t_s, **values)


def samples(page: bytes, names: tuple[str, ...]) -> dict[str, list[Sample]]:
    """The samples of the given names, name by name. Raises PageError, also for more than `MOST_SERIES`.

    Only their lines are parsed: 6 of a vLLM page of 364 take 0.2 ms, where the whole
    page takes 7 (docs/metrics.md).
    """
    lines = [line for name in names for line in _lines(page, name.encode())]
    if len(lines) > MOST_SERIES:
        raise PageError(f"{len(lines)} series of {', '.join(names[:2])}, ...: more than {MOST_SERIES}")
    text = b"".join(lines)
    found: dict[str, list[Sample]] = {}
    try:
        for metric in text_string_to_metric_families(text.decode()):
            for sample in metric.samples:
                found.setdefault(sample.name, []).append(sample)
    except (ValueError, IndexError, KeyError) as exc:
        raise PageError(f"not Prometheus text: {' '.join(str(exc).split())[:120]}") from exc
    return found


def _lines(page: bytes, name: bytes) -> Iterator[bytes]:
    """The sample lines of exactly this name, each with its line feed, exemplars cut off.

    A last line without a line feed may be cut in mid-number: it is left out.
    """
    at = page.find(name)
    while at >= 0 and (end := page.find(b"\n", at)) >= 0:
        begins_line = at == 0 or page[at - 1] == _LINE_FEED
        after = page[at + len(name) : at + len(name) + 1]
        if begins_line and after and after in _AFTER_NAME:
            yield page[at:end].partition(b" # {")[0] + b"\n"
        at = page.find(name, end)


def _total(rows: list[Sample], copies: frozenset[str]) -> float:
    """The sum over the series, those that differ only in ``copies`` counted once, by the largest."""
    largest: dict[frozenset[tuple[str, str]], float] = {}
    for row in rows:
        engine = frozenset((k, v) for k, v in row.labels.items() if k not in copies)
        before = largest.get(engine)
        largest[engine] = row.value if before is None else max(before, row.value)
    return sum(largest.values())
