"""What served a run: the board, the model, how the server was launched, as its manifest tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.run import Run
from loadgen.errors import ConfigError
from loadgen.physics.boards import GPUS
from loadgen.physics.clocks import at_clock
from loadgen.physics.hardware import VLLM_GRAPH_ROWS, Efficiency, Gpu
from loadgen.physics.models import MODELS, Transformer
from loadgen.physics.profile import Profile
from loadgen.physics.profile_file import parse_profile, profile_of


def profile_served(run: Run) -> Profile | None:
    """The board of the run at its own clock; None if unknown.

    As the manifest keeps it, by id, by the path of a profile, or by the name the driver gives. A path
    whose file is gone is not known: the table's board is not the run's.
    """
    server = run.manifest.get("server") or {}
    name, held = str(server.get("gpu")), server.get("profile")
    try:
        if held is not None:
            return parse_profile(held, f"{run.path / 'run.json'} server.profile")
        if name in GPUS or name.endswith(".json"):
            return profile_of(name)
    except ConfigError:
        return None
    names = {row.get("name") for row in run.manifest.get("gpus") or ()}
    return next((profile_of(gpu.id) for gpu in GPUS.values() if names == {gpu.name}), None)


def board_of(run: Run) -> tuple[Gpu, Efficiency] | None:
    """The board of the run and its kernels at its locked clock; None if unknown."""
    found = profile_served(run)
    if found is None:
        return None
    locked_mhz = embedded_section(run, "hardware").get("sm_clock_mhz")
    if locked_mhz is None:
        return found.gpu, found.efficiency
    return at_clock(found.gpu, found.efficiency, locked_mhz)


def gpu_of(run: Run) -> Gpu | None:
    """The board of the run at its locked clock; None if unknown."""
    found = board_of(run)
    return None if found is None else found[0]


def model_of(run: Run) -> Transformer | None:
    """The model served, by id or by its name on the hub; None if unknown."""
    name = str((run.manifest.get("server") or {}).get("model"))
    return MODELS.get(name) or next((m for m in MODELS.values() if m.hub_id == name), None)


def graph_rows(run: Run, efficiency: Efficiency) -> int:
    """Decode rows up to which a step of the run's server is replayed as one CUDA graph; 0 for never."""
    server = run.manifest.get("server") or {}
    captured = embedded_section(run, "launcher").get("cuda_graphs")
    if captured is not None:
        return max(captured, default=0)
    vllm = "vllm" in (server.get("kind"), server.get("scheduler"))
    return VLLM_GRAPH_ROWS if vllm else efficiency.graph_max_rows


def drawn(run: Run) -> bool:
    """Whether an embedded run drew its board's constants anew: the table's bounds are then not its own."""
    return embedded_section(run, "hardware").get("draw") is not None


def embedded_section(run: Run, section: str) -> Mapping[str, Any]:
    """A section of the scenario's ``server``, as ``launcher``; empty when there is none."""
    server = (run.manifest.get("scenario") or {}).get("server") or {}
    return server.get(section) or {}
