"""What a run was of, as far as a calibration must know: board, model, format, how it was launched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from analysis.run import Run
from analysis.served import graph_rows, model_of, profile_served
from loadgen.config import known
from loadgen.errors import ConfigError
from loadgen.physics.boards import GPUS
from loadgen.physics.formats import DTYPES, Dtype
from loadgen.physics.models import MODELS, Transformer, find_model
from loadgen.physics.profile import Profile
from loadgen.physics.profile_file import profile_of


@dataclass(frozen=True, slots=True)
class Subject:
    """``named``: the board as the run names it, None where it does not; ``gpu`` as given, else as named.

    ``base``: what is known of ``gpu``; ``graph_rows``: decode rows replayed as one graph.
    """

    named: str | None
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
    kind = str(server.get("kind"))
    base = _board(run) if gpu is None else profile_of(gpu, place=f"{run.path.name}: server.gpu")
    named = server.get("gpu")
    return Subject(
        None if named is None else str(named),
        gpu or str(named or base.gpu.id),
        base,
        _model(run, model or server.get("model")),
        _dtype(run, dtype or server.get("dtype")),
        int(server.get("shards") or 1),
        graph_rows(run, base.efficiency),
        str(server.get("scheduler") or ("tgi" if kind == "tgi" else "vllm")),
        kind == "embedded",
    )


def _board(run: Run) -> Profile:
    """What the run names. Raises ConfigError when it names none, or one that is not known."""
    found = profile_served(run)
    if found is not None:
        return found
    name = (run.manifest.get("server") or {}).get("gpu")
    if name:
        return profile_of(str(name), place=f"{run.path.name}: server.gpu")
    names = sorted({str(row.get("name")) for row in run.manifest.get("gpus") or ()})
    seen = f" (its boards are called {', '.join(names)})" if names else ""
    raise ConfigError(
        f"{run.path.name}: the run names no board of the table{seen}: say which with --gpu, one of "
        f"{', '.join(GPUS)}, or the path of a hardware profile"
    )


def _model(run: Run, name: Any) -> Transformer:
    if not name:
        raise ConfigError(
            f"{run.path.name}: the run names no model: say which with --model, one of {', '.join(MODELS)}, "
            "or the path of a config.json"
        )
    own = model_of(run) if name == (run.manifest.get("server") or {}).get("model") else None
    return own or find_model(str(name), f"{run.path.name}: server.model (--model)")


def _dtype(run: Run, name: Any) -> Dtype:
    if name is None:
        raise ConfigError(
            f"{run.path.name}: the run names no number format: say which with --dtype, one of "
            f"{', '.join(DTYPES)}"
        )
    return known(f"{run.path.name}: server.dtype (--dtype)", str(name), DTYPES)
