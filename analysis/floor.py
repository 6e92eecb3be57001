"""The least energy that the work of a run can have cost.

Hard floor, impossible below, for G boards over a window of T seconds:

    E >= G P_idle T + (P_act - P_idle) max(F / peak, B / bandwidth)

F is the arithmetic actually computed, B the bytes that must have crossed HBM,
P_act the least power of a working board. P_idle is bare idle, plus what a CUDA
context adds at least, where the board's bare idle is a measured figure: a server
that answers holds a context. Soft floor, a warning below: TDP F / peak.

Only what is certain is counted. Prompt tokens that a prefix cache may have saved
enter F for the soft floor alone; B is left out where speculation could have cut
the number of steps; of failed requests nothing is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.run import Run
from analysis.served import drawn, embedded_section, model_of, profile_served
from loadgen.physics.clocks import least_board
from loadgen.physics.formats import DTYPES, Dtype
from loadgen.physics.hardware import Gpu
from loadgen.physics.models import Transformer
from loadgen.types import Floats

LEAST_CONTEXT_W = 26.0
"""A CUDA context adds 26-50 W on HBM boards (arXiv 2605.23918)."""


@dataclass(frozen=True, slots=True)
class Floor:
    """Joules over the window that cannot be undercut, and ``soft_j``, which only lower clocks can.

    ``standing_j``: the boards idle with a server's context (``idle_w`` each). ``flop_j``,
    ``byte_j``: that, and what was certainly computed, or moved, on top at the least power
    of a working board. None when the model is not known, ``byte_j`` also where speculation
    could have cut the number of steps.
    """

    standing_j: float
    idle_w: float
    flop_j: float | None = None
    byte_j: float | None = None
    soft_j: float | None = None

    @property
    def hard_j(self) -> float:
        """The highest of the floors that cannot be undercut."""
        return max(self.standing_j, self.flop_j or 0.0, self.byte_j or 0.0)


def least_idle_w(gpu: Gpu) -> float:
    """The least power of this board with a server's context on it."""
    if any(gpu.sources[name].startswith("assumed") for name in ("bare_idle_w", "context_idle_w")):
        return gpu.bare_idle_w
    # Boards without HBM may add less: no more than the least seen with a context.
    seen_w = gpu.context_idle_w / (1.0 + gpu.uncertainty["context_idle_w"])
    return min(gpu.bare_idle_w + LEAST_CONTEXT_W, seen_w)


def physical_floor(run: Run, window_s: float, boards: int) -> Floor | None:
    """The floor under the GPU energy of the window; None when the boards' constants are not known."""
    found = profile_served(run)
    if found is None or drawn(run):
        return None
    hardware = embedded_section(run, "hardware")
    gpu = least_board(found.gpu, found.efficiency, hardware.get("sm_clock_mhz"), hardware.get("power_cap_w"))
    idle_w = least_idle_w(gpu)
    standing_j = boards * idle_w * window_s
    model = model_of(run)
    if model is None:
        return Floor(standing_j, idle_w)
    server = run.manifest.get("server") or {}
    embedded = server.get("kind") == "embedded"
    dtype = DTYPES.get(str(server.get("dtype")))
    peak = peak_flop_per_s(gpu, dtype)
    prompt, output = _tokens(run)
    # Which prompts a prefix cache saved is not known; without one, all were computed.
    cached = not embedded or bool(embedded_section(run, "launcher").get("prefix_caching"))
    flop = float(np.sum(_flop(model, prompt, output, prefilled=not cached)))
    byte_j = None
    if embedded and dtype is not None:
        byte_s = _traffic_bytes(model, run, prompt, output, dtype) / gpu.bandwidth_bytes_per_s
        byte_j = standing_j + (gpu.active_w - idle_w) * byte_s
    return Floor(
        standing_j,
        idle_w,
        flop_j=standing_j + (gpu.active_w - idle_w) * flop / peak,
        byte_j=byte_j,
        soft_j=gpu.tdp_w * float(np.sum(_flop(model, prompt, output, prefilled=True))) / peak,
    )


def peak_flop_per_s(gpu: Gpu, dtype: Dtype | None) -> float:
    """Of the layers' products; a server that hides its format (None) may use the board's fastest."""
    if dtype is None:
        return max(gpu.peak_flop_per_s.values())
    others = (peak for _, peak in other_arithmetic(gpu, dtype))
    return max([gpu.peak_flop_per_s[dtype.rate_on(gpu)], *others])


def other_arithmetic(gpu: Gpu, dtype: Dtype) -> tuple[tuple[str, float], ...]:
    """What else a server may compute this format's products with, in words, and its peak, FLOP/s.

    Four-bit weights meet activations of 8 bits in llama.cpp; GeForce boards run 16-bit products
    that are summed in 16 bits twice as fast (NVIDIA Ada GPU architecture white paper, 330.3 TFLOP/s).
    """
    found = []
    if dtype.name == "int4":
        found.append(("the products ran in INT8", gpu.peak_flop_per_s["int8"]))
    if dtype.rate == "float16" and gpu.id.startswith("rtx-"):
        found.append(("the products were summed in FP16", 2.0 * gpu.peak_flop_per_s["float16"]))
    return tuple(found)


def _tokens(run: Run) -> tuple[Floats, Floats]:
    """Prompt and output tokens of the successful requests that have both counts, (n,) each."""
    ok = run.ok
    prompt = ok["prompt_tokens"].to_numpy(dtype=np.float64)
    output = ok["output_tokens"].to_numpy(dtype=np.float64)
    known = ~(np.isnan(prompt) | np.isnan(output)) & (output >= 1)
    return prompt[known], output[known]


def prefill_flop(model: Transformer, prompt_tokens: Floats) -> Floats:
    """FLOP of each prompt (n,) up to its first token, with nothing of it cached; (n,)."""
    return _flop(model, prompt_tokens, np.ones(len(prompt_tokens)), prefilled=True)


def _flop(model: Transformer, prompt: Floats, output: Floats, *, prefilled: bool) -> Floats:
    """FLOP of the layers' products, causal attention and LM head, of each request, (n,).

    A prompt of s tokens attends s(s+1)/2 pairs; a reply of g tokens takes g - 1
    further passes whose contexts sum to (g - 1)(2s + g) / 2.
    """
    per_row = 2.0 * model.layers * sum(k * n for k, n in model.gemm_shapes)
    per_pair = 4.0 * model.layers * model.heads * model.head_dim
    head = 2.0 * model.hidden * model.vocabulary
    rows = output - 1
    pairs = rows * (2 * prompt + output) / 2
    if prefilled:
        rows = rows + prompt
        pairs = pairs + prompt * (prompt + 1) / 2
    total: Floats = per_row * rows + per_pair * pairs + head * output
    return total


def request_flop(
    model: Transformer, prompt_tokens: float, output_tokens: float, cached_tokens: float = 0.0
) -> float:
    """FLOP of one request whose first ``cached_tokens`` prompt tokens were not computed.

    Convex in the token counts: at mean counts it is at most the mean over requests.
    """
    prompt, output = np.array([prompt_tokens]), np.array([output_tokens])
    cached, first = np.array([cached_tokens]), np.ones(1)
    saved = _flop(model, cached, first, prefilled=True) - _flop(model, cached, first, prefilled=False)
    return float((_flop(model, prompt, output, prefilled=True) - saved)[0])


def layer_weight_bytes(model: Transformer, dtype: Dtype) -> float:
    """Bytes of the weights that one token's pass through the layers must read."""
    return (model.layers * sum(k * n for k, n in model.gemm_shapes)) * dtype.weight_bytes


def _traffic_bytes(model: Transformer, run: Run, prompt: Floats, output: Floats, dtype: Dtype) -> float:
    """Bytes that decoding must read: its contexts' KV, and the weights once a step.

    One step yields at most one token to each request in flight, so there were at
    least (decode tokens) / (largest number in flight) steps.
    """
    kv_token = model.kv_token_bytes(dtype)
    contexts = float(np.sum((output - 1) * (2 * prompt + output) / 2))
    weights = (model.layers * sum(k * n for k, n in model.gemm_shapes)) * dtype.weight_bytes
    steps = float(np.sum(output - 1)) / max(1, most_in_flight(run))
    return kv_token * contexts + weights * steps


def most_in_flight(run: Run) -> int:
    """The largest number of requests between sent and done at one instant."""
    spans = run.requests[["sent_s", "done_s"]].dropna().to_numpy(dtype=np.float64)
    if not len(spans):
        return 0
    instants = np.concatenate([spans[:, 0], spans[:, 1]])
    change = np.concatenate([np.ones(len(spans)), -np.ones(len(spans))])
    order = np.lexsort((-change, instants))  # at equal instants a start counts before an end
    return int(np.cumsum(change[order]).max())
