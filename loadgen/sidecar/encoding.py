"""Rows as the bytes of an answer: events of a stream, or one JSON object. A missing value is null."""

from __future__ import annotations

import numpy as np
import orjson

from loadgen.sidecar.table import Arrays, TableReader

_PART_ROWS = 100


def as_events(found: Arrays) -> bytes:
    """Each row as a server-sent event whose id is its seq."""
    return b"".join(
        b"id: %d\ndata: %b\n\n"
        % (
            seq,
            orjson.dumps({"seq": seq, "t_s": t_s, "values": dict(zip(found.columns, values, strict=True))}),
        )
        for seq, t_s, values in zip(found.seq.tolist(), found.t_s.tolist(), found.value.tolist(), strict=True)
    )


def as_json(
    table: TableReader, name: str, after: int | None, since_s: float | None, until_s: float | None, limit: int
) -> bytes:
    """The object of /v1/samples with at most ``limit`` rows; for a thread, as ten thousand take a while."""
    found = table.arrays(after, since_s, until_s, limit)
    # The lag is a 32 bit number: in nanoseconds, so that it is not written as a long 64 bit one.
    rows = zip(
        found.seq.tolist(),
        found.t_s.tolist(),
        found.value.tolist(),
        np.round(found.lag_s, 9).tolist(),
        strict=True,
    )
    listed = list(rows)
    # In parts: one call of orjson would hold the interpreter, and /v1/clock with it, all the while.
    parts = [orjson.dumps(listed[i : i + _PART_ROWS])[1:-1] for i in range(0, len(listed), _PART_ROWS)]
    head = {"table": name, "columns": found.columns, "first_seq": table.first_seq, "last_seq": table.last_seq}
    return orjson.dumps(head)[:-1] + b',"rows":[' + b",".join(parts) + b"]}"
