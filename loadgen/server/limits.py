"""What a server accepts and how it batches, derived from model, board and flags as TGI and vLLM do."""

from __future__ import annotations

from dataclasses import dataclass

from loadgen.errors import CapacityError, ConfigError
from loadgen.launch import Launch
from loadgen.physics.formats import Dtype
from loadgen.physics.hardware import Gpu
from loadgen.physics.memory import MemoryBudget, memory_budget
from loadgen.physics.models import Transformer

_WIGGLE_ROOM = 0.90
"""Share of the board TGI's server uses (its TGI_WIGGLE_ROOM)."""
_LAUNCHER_SHARE = 0.95
"""The launcher's own, more generous estimate of the usable share."""
_UNKNOWN_CARD_PREFILL_TOKENS = 4096
_LARGE_BOARD_BYTES = 70 * 2**30
_LLAMA_CPP_SLOTS = 4
"""What llama.cpp's server opens when not told (its -np), as recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the server accepts, in the terms of TGI's launcher. Counts.

    ``max_concurrent_requests`` None: the server queues without limit. ``max_batch_size``
    None: as many sequences as the KV blocks hold.
    """

    model_id: str
    max_concurrent_requests: int | None
    max_best_of: int
    max_stop_sequences: int
    max_top_n_tokens: int
    max_client_batch_size: int
    validation_workers: int
    max_input_tokens: int
    max_total_tokens: int
    max_batch_prefill_tokens: int
    max_batch_total_tokens: int
    max_batch_size: int | None
    block_tokens: int


def tgi_prefill_tokens(
    model: Transformer, gpu: Gpu, dtype: Dtype, shards: int, memory_fraction: float = 1.0
) -> int:
    """``max_batch_prefill_tokens`` of TGI's launcher.

    The card's 16-bit rate times shards over FLOP per token (4096 if that is 100
    or less, or the card unknown), at most the model's positions and what the
    launcher thinks fits in ``memory_fraction`` of the memory (main.rs:2114-2153 of
    TGI at db931fc).
    """
    h, q = model.hidden, model.heads * model.head_dim
    kv = model.kv_heads * model.head_dim
    # The launcher's count, factor for factor: it takes K and V as one 2*kv product, the head not at all.
    flop_per_token = model.layers * (2 * q * h + 2 * (2 * kv * h) + 2 * (2 * q * h) + 6 * h * model.ffn)
    rate = gpu.tgi_f16_flop_per_s
    tokens = 0 if rate is None else int(rate * shards / flop_per_token)
    if tokens <= 100:
        tokens = _UNKNOWN_CARD_PREFILL_TOKENS
    usable_bytes = _LAUNCHER_SHARE * memory_fraction * gpu.memory_bytes - model.weights_bytes_per_shard(
        dtype, shards
    )
    fits = int(usable_bytes // model.kv_token_bytes_per_shard(dtype, shards))
    tokens = min(tokens, model.max_position_embeddings)
    return min(tokens, fits) if fits > 0 else tokens


def derive_limits(model: Transformer, gpu: Gpu, dtype: Dtype, launch: Launch) -> Limits:
    """The limits the launch's scheduler would choose, with the launcher's overrides.

    KV blocks fill the share of the board that the server may use, after weights,
    context and the activations of a full prefill (measured by a warm-up there, the
    widest moment of a layer here). TGI ignores a given ``max_batch_total_tokens``
    for models it can measure; so it is no flag here. Raises CapacityError with the
    sum when no request could be held, or none of the ``max_total_tokens`` given;
    ConfigError for flags that contradict each other, as the servers do.
    """
    flags = launch.launcher
    tgi = launch.scheduling == "tgi"
    prefill = _prefill_tokens(model, gpu, dtype, launch)
    share = _WIGGLE_ROOM * flags.cuda_memory_fraction if tgi else flags.gpu_memory_utilization
    budget = memory_budget(model, gpu, dtype, flags.num_shard, prefill_tokens=prefill, usable_share=share)
    block = flags.block_size or (1 if tgi else 16)
    blocks = budget.kv_tokens // block
    if blocks * block < 2:
        raise budget.refusal()
    total = _total_tokens(model, budget, blocks * block, launch)
    longest = _input_tokens(total, prefill, launch)
    given = flags.max_batch_prefill_tokens
    if tgi and given is not None and given > blocks * block:
        raise ConfigError(
            f"max_batch_prefill_tokens: expected <= the KV cache's {blocks * block} tokens, got {given}"
        )
    return Limits(
        model_id=model.hub_id,
        max_concurrent_requests=launch.max_concurrent_requests if launch.dialect == "tgi" else None,
        max_best_of=flags.max_best_of,
        max_stop_sequences=flags.max_stop_sequences,
        max_top_n_tokens=flags.max_top_n_tokens,
        max_client_batch_size=flags.max_client_batch_size,
        validation_workers=flags.validation_workers,
        max_input_tokens=longest,
        max_total_tokens=total,
        max_batch_prefill_tokens=prefill,
        max_batch_total_tokens=blocks * block,
        max_batch_size=_batch_size(gpu, launch),
        block_tokens=block,
    )


def _total_tokens(model: Transformer, budget: MemoryBudget, kv_tokens: int, launch: Launch) -> int:
    given = launch.launcher.max_total_tokens
    if given is None:
        return min(kv_tokens, model.max_position_embeddings)
    if given < 2:
        raise ConfigError(f"max_total_tokens: expected >= 2, a prompt and a reply, got {given}")
    if given > kv_tokens:
        raise CapacityError(
            f"max_total_tokens: expected <= the KV cache's {kv_tokens} tokens, got {given}; "
            f"{budget.explain()}"
        )
    # TGI takes more than the model has been trained for, vLLM does not.
    positions = model.max_position_embeddings
    if launch.scheduling == "vllm" and given > positions:
        raise ConfigError(f"max_total_tokens: expected <= the model's {positions} positions, got {given}")
    return given


def _input_tokens(total: int, prefill: int, launch: Launch) -> int:
    flags = launch.launcher
    given = flags.max_input_tokens
    if given is not None and given >= total:
        raise ConfigError(f"max_input_tokens: expected < max_total_tokens ({total}), got {given}")
    longest = total - 1 if given is None else given
    if launch.scheduling == "vllm" or flags.prefill_chunking:
        return longest
    # A prompt must fit into one forward.
    if given is not None and given > prefill:
        raise ConfigError(
            f"max_input_tokens: expected <= max_batch_prefill_tokens ({prefill}) without prefill chunking, "
            f"got {given}"
        )
    return min(longest, prefill)


def _prefill_tokens(model: Transformer, gpu: Gpu, dtype: Dtype, launch: Launch) -> int:
    flags = launch.launcher
    if launch.scheduling == "tgi":
        given = flags.max_batch_prefill_tokens
        if given is not None:
            return given
        return tgi_prefill_tokens(model, gpu, dtype, flags.num_shard, flags.cuda_memory_fraction)
    tokens = flags.max_num_batched_tokens
    if tokens is None:
        return 8192 if _is_large(gpu) else 2048
    sequences = flags.max_num_seqs or 1
    if tokens < sequences:
        raise ConfigError(f"max_num_batched_tokens: expected >= max_num_seqs ({sequences}), got {tokens}")
    return tokens


def _batch_size(gpu: Gpu, launch: Launch) -> int | None:
    flags = launch.launcher
    if launch.scheduling == "tgi":
        return flags.max_batch_size
    if flags.max_num_seqs is not None:
        return flags.max_num_seqs
    if launch.dialect == "llama.cpp":
        return _LLAMA_CPP_SLOTS
    return min(1024 if _is_large(gpu) else 256, flags.max_num_batched_tokens or 1024)


def _is_large(gpu: Gpu) -> bool:
    # vLLM's own rule for its API server: at least 70 GiB, and not an A100.
    return gpu.memory_bytes >= _LARGE_BOARD_BYTES and "A100" not in gpu.name
