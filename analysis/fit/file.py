"""model.json: a model on disk, read back as it was.

| key | what |
|---|---|
| ``schema``, ``kind`` | 1, ``loadgen-fit``; readers refuse another |
| ``subject`` | ``model``, ``gpu``, ``dtype``, ``boards``, ``shards``, ``server``, ``scheduler``, \
``constants``: the same in all runs; null where not told. ``profile`` (of its constants, 8 hex digits), \
``sm_clock_mhz``, ``power_cap_w``: only where a simulated board was set to one |
| ``runs`` | names of the run directories |
| ``load`` | ``one at a time`` or ``batched`` |
| ``label`` | of the energies: ``measured``, ``estimated``, ``simulated``, or null without any |
| ``requests``, ``alone`` | successes, and those that were alone on the server |
| ``fitted`` | one object a fit (below), in the order in which they are printed |
| ``refused`` | fit: why it could not be made |
| ``weights`` | ``time_s`` and ``active_j`` (7 coefficients each), ``overlap_tokens``, ``graph_rows``, \
``source``; or null |
| ``notes`` | sentences about the whole |

A fit: ``name``, ``formula``, ``unit``; ``terms`` (``name``, ``value``, ``low``, ``high``: 95 %, ``unit``,
``powers`` of the inputs that it multiplies, ``reason`` of a null value); ``r2``, ``spread`` (residual
standard error), ``relative_error`` (median), ``condition``, ``n``, ``range`` (of each input and of
``in_flight``: ``least``, ``p5``, ``p95``, ``greatest``), ``covariance``, ``freedom``, ``block``,
``residuals`` (``inputs``, ``observed``, ``predicted``: at most 400 of them), ``notes``.
A value is the sum over the terms of ``value`` times its inputs to their ``powers``. Inputs: ``s``
prompt tokens, ``n`` reply tokens less one, ``q`` sum of squared prompt lengths, ``rows``
and ``context`` (cached tokens of all rows) of a step, ``t`` seconds, the tariff's units. SI units.
Not a number is written as null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import orjson

from analysis.attribution.weights import Tariff, Weights
from analysis.fit.model import FitError, Fitted, Load, Model, Range, Residuals, Term
from analysis.plain import plain
from loadgen.types import Floats

SCHEMA, KIND = 1, "loadgen-fit"


def as_object(model: Model) -> dict[str, Any]:
    """The object of model.json: numbers, texts, lists, None."""
    return {"schema": SCHEMA, "kind": KIND, **plain(model)}


def write_model(model: Model, path: Path) -> None:
    """Writes model.json. Raises FitError when it cannot be written."""
    try:
        path.write_bytes(orjson.dumps(as_object(model), option=orjson.OPT_INDENT_2) + b"\n")
    except OSError as exc:
        raise FitError(f"{path}: cannot be written: {exc.strerror}") from exc


def read_model(path: Path | str) -> Model:
    """Reads model.json. Raises FitError when it is none, damaged or of another schema."""
    path = Path(path)
    try:
        found = orjson.loads(path.read_bytes())
    except OSError as exc:
        raise FitError(f"{path}: cannot be read: {exc.strerror}") from exc
    except orjson.JSONDecodeError as exc:
        raise FitError(f"{path}: expected a model.json of loadgen fit, got no JSON ({exc})") from exc
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise FitError(f"{path}: expected a model.json of loadgen fit (kind {KIND})")
    if found.get("schema") != SCHEMA:
        raise FitError(f"{path}: expected schema {SCHEMA}, got {found.get('schema')}; fit the runs again")
    try:
        return _model(found)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise FitError(f"{path}: damaged: {type(exc).__name__}: {exc}") from exc


def _array(values: list[float | None]) -> Floats:
    return np.array([math.nan if v is None else float(v) for v in values], dtype=np.float64)


def _model(found: Mapping[str, Any]) -> Model:
    if found["load"] not in get_args(Load):
        raise ValueError(f"load: expected one of {', '.join(get_args(Load))}, got {found['load']!r}")
    weights = found["weights"]
    return Model(
        subject=dict(found["subject"]),
        runs=tuple(found["runs"]),
        load=found["load"],
        label=found["label"],
        requests=int(found["requests"]),
        alone=int(found["alone"]),
        fitted=tuple(_read(row) for row in found["fitted"]),
        refused=dict(found["refused"]),
        weights=None
        if weights is None
        else Weights(
            Tariff(**weights["time_s"]),
            Tariff(**weights["active_j"]),
            float(weights["overlap_tokens"]),
            int(weights["graph_rows"]),
            str(weights["source"]),
        ),
        notes=tuple(found["notes"]),
    )


def _read(row: Mapping[str, Any]) -> Fitted:
    kept = row["residuals"]
    return Fitted(
        name=row["name"],
        formula=row["formula"],
        unit=row["unit"],
        terms=tuple(Term(**term) for term in row["terms"]),
        r2=row["r2"],
        spread=float(row["spread"]),
        relative_error=row["relative_error"],
        condition=float(row["condition"]),
        n=int(row["n"]),
        range={name: Range(**seen) for name, seen in row["range"].items()},
        covariance=np.array([_array(line) for line in row["covariance"]]).reshape(len(row["terms"]), -1),
        freedom=int(row["freedom"]),
        block=int(row["block"]),
        residuals=Residuals(
            {name: _array(values) for name, values in kept["inputs"].items()},
            _array(kept["observed"]),
            _array(kept["predicted"]),
        ),
        notes=tuple(row["notes"]),
    )
