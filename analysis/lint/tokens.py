"""Who counted the tokens, and whether the counts agree."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.lint.rule import Check, Rule
from analysis.run import Run
from analysis.server_metrics import AGREEMENT, RESTARTED, disagreements, token_deltas

_TIME = "docs/method.md, Time"
_METRICS = "docs/format.md, metrics.jsonl"
_CONVENTIONS = "docs/method.md, Token counts without a tokenizer"

COUNTED = Check("tokens-reported", "the server reported the tokens of its replies", "replies", _CONVENTIONS)
KNOWN = Check("tokens-known", "every reply has a token count", "replies", _CONVENTIONS)
CHUNKS = Check("chunks-are-tokens", "a text event brought one token", "tokens per event", _TIME)
SERVER = Check("tokens-by-server", "the server's counters moved by what the records explain", "1", _METRICS)
ONE_SERVER = Check("one-server", "one server answered from start to end", "", _METRICS)
CHECKS = (COUNTED, KNOWN, CHUNKS, SERVER, ONE_SERVER)


def rules(run: Run) -> Iterator[Rule]:
    """In the order of CHECKS."""
    ok = run.ok
    if len(ok):
        yield from _counts(run)
    else:
        yield from (check.not_judged("no request succeeded") for check in (COUNTED, KNOWN, CHUNKS))
    yield from _server(run)


def _counts(run: Run) -> Iterator[Rule]:
    ok = run.ok
    counted = int(ok["tokens_from"].isin(["chunks", "planned"]).sum())
    if counted:
        yield COUNTED.warns(
            f"output tokens of {counted} of {len(ok)} replies are counted here, not reported by the server",
            counted,
            0,
        )
    else:
        yield COUNTED.holds(f"no reply of {len(ok)} was counted here", 0, 0)
    unknown = int(ok["output_tokens"].isna().sum())
    if unknown:
        yield KNOWN.warns(
            f"{unknown} of {len(ok)} replies have no token count; they are left out of figures per token",
            unknown,
            0,
        )
    else:
        yield KNOWN.holds(f"all {len(ok)} replies have a count", 0, 0)
    yield _chunks(run)


def _chunks(run: Run) -> Rule:
    """Replies whose text came in fewer events than the server counts tokens, end marker aside."""
    ok = run.ok
    known = ok[ok["output_tokens"].notna()]
    told = [
        (int(tokens), sum(chunks))
        for tokens, chunks in zip(known["output_tokens"], known["chunk_tokens"], strict=True)
        if chunks
    ]
    if not told:
        return CHUNKS.not_judged("no reply came with both a token count and the times of its events")
    held = [(tokens, events) for tokens, events in told if tokens > events + 1]
    if not held:
        tokens, events = (sum(column) for column in zip(*told, strict=True))
        return CHUNKS.holds(f"{tokens:,} tokens in {events:,} events", tokens / max(1, events), 1)
    tokens, events = (sum(column) for column in zip(*held, strict=True))
    return CHUNKS.warns(
        f"{len(held)} of {len(ok)} replies brought {tokens:,} tokens in {events:,} events: "
        "itl is the gap between events; read tpot",
        tokens / max(1, events),
        1,
    )


def _server(run: Run) -> Iterator[Rule]:
    if not len(run.metrics):
        why = str(
            (run.manifest.get("metrics") or {}).get("reason") or "the server's metrics were not collected"
        )
        yield from (check.not_judged(why) for check in (SERVER, ONE_SERVER))
        return
    deltas, said = token_deltas(run), disagreements(run)
    for delta in deltas:
        line = next((line for line in said if f" {delta.kind} tokens and" in line), None)
        if line is not None:
            yield SERVER.warns(line, delta.excess, AGREEMENT)
        elif delta.agrees:
            counts = (
                f"the server counted {delta.server:.0f} {delta.kind} tokens, the records {delta.records:.0f}"
            )
            yield SERVER.holds(counts, delta.excess, AGREEMENT)
        else:
            yield SERVER.not_judged(f"{delta.kind} tokens: {delta.reason or 'not told'}")
    if restarted := [line for line in said if RESTARTED in line]:
        yield from (ONE_SERVER.warns(line) for line in restarted)
    elif any(delta.server is not None for delta in deltas):
        yield ONE_SERVER.holds("the server's counters never fell")
    else:
        yield ONE_SERVER.not_judged(deltas[0].reason or "the server does not count its tokens")
