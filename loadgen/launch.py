"""How an embedded server is started: what it simulates, its limits, its faults.

Fields of `Launcher` carry the names of TGI's launcher flags (and vLLM's, where only
vLLM has the thing), so that a deployment's settings can be copied. ``loadgen serve``
makes its flags and a scenario its ``server.launcher`` keys from the same model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from loadgen.section import Count, NotNegative, Positive, Section, Share, wrong

Dialect = Literal["tgi", "vllm", "sglang", "llama.cpp", "transformers"]
Scheduler = Literal["tgi", "vllm"]
DEFAULT_MODEL, DEFAULT_GPU, DEFAULT_DTYPE = "llama-3.1-8b", "h100-sxm", "bfloat16"


class Launcher(Section):
    """Limits and switches of the server; None where the server works the value out itself."""

    num_shard: Count = Field(1, description="tensor parallelism: GPUs that share one replica")
    max_best_of: Count = Field(2, description="most sequences of best_of")
    max_stop_sequences: Count = Field(4, description="most stop sequences of a request")
    max_top_n_tokens: Annotated[int, Field(ge=0)] = Field(5, description="largest top_n_tokens")
    max_client_batch_size: Count = Field(4, description="most prompts in one completion request")
    max_input_tokens: Count | None = Field(None, description="longest prompt (max_total_tokens - 1)")
    max_total_tokens: Count | None = Field(
        None, description="longest prompt and reply together (what fits, at most the model's positions)"
    )
    max_batch_prefill_tokens: Count | None = Field(
        None, description="tokens of one forward (from the card's 16-bit rate and the model)"
    )
    max_batch_size: Count | None = Field(None, description="most sequences in the running batch")
    waiting_served_ratio: NotNegative = Field(
        0.3, description="waiting / running at which a prefill may interrupt; without prefill chunking only"
    )
    max_waiting_tokens: Annotated[int, Field(ge=0)] = Field(
        20, description="decode steps after which waiting requests join; without prefill chunking only"
    )
    validation_workers: Count = Field(2, description="reported by /info; validation takes no time here")
    payload_limit: Count = Field(2_000_000, description="largest body in bytes, 413 beyond")
    cuda_memory_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of the board's memory the server may use"
    )
    cuda_graphs: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        strict=False,
        description="decode batch sizes with a CUDA graph, 0 for none (TGI: 1,2,4,8,16,32; vLLM: to 512)",
    )
    enable_prefill_logprobs: bool = Field(False, description="fill details.prefill when asked for")
    graceful_termination_timeout: NotNegative = Field(
        90, description="seconds in which requests under way may end after SIGTERM or Ctrl-C"
    )
    prefill_chunking: bool = Field(True, description="TGI's PREFILL_CHUNKING")
    prefix_caching: bool = Field(True, description="TGI's PREFIX_CACHING: prompts share their common start")
    block_size: Count | None = Field(
        None, description="tokens per KV block (TGI: flashinfer 1, paged 16; vLLM: 16)"
    )
    max_num_seqs: Count | None = Field(None, description="vLLM: most running sequences")
    max_num_batched_tokens: Count | None = Field(None, description="vLLM: tokens of one forward")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="vLLM: share of the board's memory for weights, activations and KV cache"
    )
    warm_up: bool = Field(True, description="answer only after a full prefill, as a real server does")


class Hardware(Section):
    """How this board differs from the typical one. Nothing by default."""

    board_seed: Annotated[int, Field(ge=0)] | None = Field(
        None, description="draws each board's power, sensor gain and publication phase from their spread"
    )
    sensor_gain: Positive = Field(1.0, description="what the board publishes over what it draws")
    sm_clock_mhz: Positive | None = Field(
        None, description="locked SM clock, within the board's range (its highest)"
    )
    power_cap_w: Positive | None = Field(
        None, description="power limit of each board: steps run at the highest clock within it (the TDP)"
    )
    draw: Annotated[int, Field(ge=0)] | None = Field(
        None, description="draws the model's uncertain constants: run --uncertainty does this"
    )


class Faults(Section):
    """Faults on demand (`loadgen.server.faults`). The rates are exclusive shares of the requests for text."""

    spike_rate: Share = Field(0.0, description="share of requests held back before they are looked at")
    spike_s: Positive = Field(1.0, description="how long they are held back")
    reset_rate: Share = Field(0.0, description="share whose connection is reset, before or inside the reply")
    stall_rate: Share = Field(0.0, description="share whose reply falls silent")
    stall_s: Positive | None = Field(None, description="how long; None for ever")
    truncate_rate: Share = Field(0.0, description="share whose reply is cut and its connection closed")
    garble_rate: Share = Field(0.0, description="share in whose reply some bytes are wrong")
    http_429_rate: Share = Field(0.0, description="share refused as overloaded")
    http_424_rate: Share = Field(0.0, description="share that fails during generation")
    http_500_rate: Share = Field(0.0, description="share that ends in an internal error")
    slow_start_s: NotNegative = Field(
        0.0, description="seconds after its warm-up in which the server refuses connections"
    )
    crash_after_requests: Count | None = Field(
        None, description="the server dies, connections and all, at the request after so many"
    )

    @field_validator(
        "reset_rate",
        "stall_rate",
        "truncate_rate",
        "garble_rate",
        "http_429_rate",
        "http_424_rate",
        "http_500_rate",
    )
    @classmethod
    def _within_the_whole(cls, rate: float, info: ValidationInfo) -> float:
        rates = {key: v for key, v in info.data.items() if key.endswith("_rate") and v > 0}
        rates[str(info.field_name)] = rate
        if math.fsum(rates.values()) > 1 + 1e-12:
            listed = " + ".join(f"{key} {v:g}" for key, v in rates.items())
            raise wrong(f"rates that sum to at most 1 ({listed})", "", f"{rate:g}")
        return rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One server to start. ``scheduler`` None: the dialect's own (TGI's for ``tgi``, else vLLM's).

    ``model`` is an id of `loadgen.physics` or the path of a ``config.json``;
    ``seed`` keys reply lengths, faults and the boards' differences.
    """

    model: str = DEFAULT_MODEL
    gpu: str = DEFAULT_GPU
    dtype: str = DEFAULT_DTYPE
    seed: int = 0
    dialect: Dialect = "tgi"
    scheduler: Scheduler | None = None
    max_concurrent_requests: int = 128
    launcher: Launcher = field(default_factory=Launcher)
    hardware: Hardware = field(default_factory=Hardware)
    faults: Faults = field(default_factory=Faults)

    @property
    def scheduling(self) -> Scheduler:
        """The scheduler in use."""
        return self.scheduler or ("tgi" if self.dialect == "tgi" else "vllm")
