"""What a run was of, as far as a calibration must know: board, model, format, how it was launched."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from analysis.floor import embedded_section, model_of
from analysis.run import Run
from loadgen.errors import ConfigError
from loadgen.physics.boards import GPUS
from loadgen.physics.formats import DTYPES, Dtype
from loadgen.physics.models import MODELS, Transformer, read_config
from loadgen.physics.profile import Profile, profile_of

VLLM_GRAPH_ROWS = 512
"""Decode rows up to which vLLM V1 captures CUDA graphs when not told."""


@dataclass(frozen=True, slots=True)
class Subject:
    """``gpu`` as named, ``base`` what is known of it; ``graph_rows``: decode rows replayed as one graph."""

    gpu: str
    base: Profile
    model: Transformer
    dtype: Dtype
    shards: int
    graph_rows: int
    scheduler: str
    embedded: bool


def subject_of(
    run: Run, *, gpu: str | None = None, model: str | None = None, dtype: str | None = None
) -> Subject:
    """By the manifest; what is given overrules it.

    Raises ConfigError in one line when board, model or number format is not known.
    """
    server = run.manifest.get("server") or {}
    name = gpu or _board_name(run)
    kind = str(server.get("kind"))
    embedded = kind == "embedded"
    scheduler = str(server.get("scheduler") or ("tgi" if kind == "tgi" else "vllm"))
    base = profile_of(name, place=f"{run.path.name}: server.gpu")
    graphs = embedded_section(run, "launcher").get("cuda_graphs") if embedded else None
    graph_rows = base.efficiency.graph_max_rows
    if graphs is not None:
        graph_rows = max(graphs, default=0)
    elif kind == "vllm" or (embedded and scheduler == "vllm"):
        graph_rows = VLLM_GRAPH_ROWS
    return Subject(
        name,
        base,
        _model(run, model or server.get("model")),
        _dtype(run, dtype or server.get("dtype")),
        int(server.get("shards") or 1),
        graph_rows,
        scheduler,
        embedded,
    )


def _board_name(run: Run) -> str:
    server = run.manifest.get("server") or {}
    if server.get("gpu"):
        return str(server["gpu"])
    names = sorted({str(row.get("name")) for row in run.manifest.get("gpus") or ()})
    for board in GPUS.values():
        if names == [board.name]:
            return board.id
    seen = f" (its boards are called {', '.join(names)})" if names else ""
    raise ConfigError(
        f"{run.path.name}: the run names no board of the table{seen}: say which with --gpu, one of "
        f"{', '.join(GPUS)}, or the path of a hardware profile"
    )


def _model(run: Run, name: Any) -> Transformer:
    known = model_of(run) if name == (run.manifest.get("server") or {}).get("model") else None
    if known is not None:
        return known
    text = str(name)
    if text in MODELS:
        return MODELS[text]
    path = Path(text)
    if name and (path.suffix == ".json" or path.is_dir()):
        return read_config(path)
    raise ConfigError(
        f"{run.path.name}: server.model: expected one of {', '.join(MODELS)}, or the path of a config.json "
        f"(--model), got {text}{_near(text, MODELS)}"
    )


def _dtype(run: Run, name: Any) -> Dtype:
    if name is None:
        raise ConfigError(
            f"{run.path.name}: the run names no number format: say which with --dtype, one of "
            f"{', '.join(DTYPES)}"
        )
    if name not in DTYPES:
        raise ConfigError(
            f"{run.path.name}: server.dtype: expected one of {', '.join(DTYPES)} (--dtype), got {name}"
            f"{_near(str(name), DTYPES)}"
        )
    return DTYPES[name]


def _near(name: str, known: Any) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
