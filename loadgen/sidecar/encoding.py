"""Rows as the bytes of an answer: events of a stream, or one JSON object. A missing value is null."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import orjson

from loadgen.sidecar.table import Arrays, TableReader

_PART_ROWS = 100


def as_events(found: Arrays) -> bytes:
    """Each row as a server-sent event whose id is its seq."""
    names = found.columns
    return b"".join(
        b"id: %d\ndata: %b\n\n"
        % (
            seq,
            orjson.dumps(
                {
                    "seq": seq,
                    "t_s": t_s,
                    "values": dict(zip(names, values, strict=True)),
                    "lag_s": dict(zip(names, lags, strict=True)),
                }
            ),
        )
        for seq, t_s, values, lags in _rows(found)
    )


def as_json(
    table: TableReader, name: str, after: int | None, since_s: float | None, until_s: float | None, limit: int
) -> bytes:
    """The object of /v1/samples with at most ``limit`` rows; for a thread, as ten thousand take a while."""
    found = table.arrays(after, since_s, until_s, limit)
    listed = list(_rows(found))
    # In parts: one call of orjson would hold the interpreter, and /v1/clock with it, all the while.
    parts = [orjson.dumps(listed[i : i + _PART_ROWS])[1:-1] for i in range(0, len(listed), _PART_ROWS)]
    head = {"table": name, "columns": found.columns, "first_seq": table.first_seq, "last_seq": table.last_seq}
    return orjson.dumps(head)[:-1] + b',"rows":[' + b",".join(parts) + b"]}"


def _rows(found: Arrays) -> Iterator[tuple[int, float, list[float], list[float]]]:
    # The lag is a 32 bit number: in nanoseconds, so that it is not written as a long 64 bit one.
    lags = np.round(found.lag_s, 9).tolist()
    return zip(found.seq.tolist(), found.t_s.tolist(), found.value.tolist(), lags, strict=True)
