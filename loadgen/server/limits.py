"""What a server accepts and how it batches, derived from model, board and flags as TGI and vLLM do."""

from __future__ import annotations

from dataclasses import dataclass

from loadgen.errors import ConfigError
from loadgen.launch import Launch
from loadgen.physics.formats import Dtype
from loadgen.physics.hardware import Gpu
from loadgen.physics.memory import memory_budget
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


def tgi_prefill_tokens(model: Transformer, gpu: Gpu, dtype: Dtype, shards: int) -> int:
    """``max_batch_prefill_tokens`` of TGI's launcher.

    The card's 16-bit rate times shards over FLOP per token (4096 if that is 100
    or less, or the card unknown), at most the model's positions and what the
    launcher thinks fits in memory (main.rs:2114-2153 of TGI at db931fc).
    """
    h, q = model.hidden, model.heads * model.head_dim
    kv = model.kv_heads * model.head_dim
    # The launcher's count, factor for factor: it takes K and V as one 2*kv product, the head not at all.
    flop_per_token = model.layers * (2 * q * h + 2 * (2 * kv * h) + 2 * (2 * q * h) + 6 * h * model.ffn)
    rate = gpu.tgi_f16_flop_per_s
    tokens = 0 if rate is None else int(rate * shards / flop_per_token)
    if tokens <= 100:
        tokens = _UNKNOWN_CARD_PREFILL_TOKENS
    usable_bytes = _LAUNCHER_SHARE * gpu.memory_bytes - model.weights_bytes_per_shard(dtype, shards)
    fits = int(usable_bytes // model.kv_token_bytes_per_shard(dtype, shards))
    tokens = min(tokens, model.max_position_embeddings)
    return min(tokens, fits) if fits > 0 else tokens


def derive_limits(model: Transformer, gpu: Gpu, dtype: Dtype, launch: Launch) -> Limits:
    """The limits the launch's scheduler would choose, with the launcher's overrides.

    KV blocks fill the share of the board that the server may use, after weights,
    context and the activations of a full prefill (measured by a warm-up there, the
    widest moment of a layer here). TGI ignores a given ``max_batch_total_tokens``
    for models it can measure; so it is no flag here. Raises CapacityError with the
    sum when no request could be held.
    """
    flags = launch.launcher
    tgi = launch.scheduling == "tgi"
    prefill = _prefill_tokens(model, gpu, dtype, launch)
    share = _WIGGLE_ROOM * flags.cuda_memory_fraction if tgi else flags.gpu_memory_utilization
    budget = memory_budget(model, gpu, dtype, flags.num_shard, prefill_tokens=prefill, usable_share=share)
    block = flags.block_size or (1 if tgi else 16)
    blocks = budget.kv_tokens // block
    total = min(blocks * block, model.max_position_embeddings)
    if flags.max_total_tokens is not None:
        total = min(total, flags.max_total_tokens)
    if total < 2:
        raise budget.refusal()
    longest = total - 1 if flags.max_input_tokens is None else min(flags.max_input_tokens, total - 1)
    if tgi and not flags.prefill_chunking:
        longest = min(longest, prefill)  # a prompt must then fit into one forward
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


def _prefill_tokens(model: Transformer, gpu: Gpu, dtype: Dtype, launch: Launch) -> int:
    flags = launch.launcher
    if launch.scheduling == "tgi":
        given = flags.max_batch_prefill_tokens
        return tgi_prefill_tokens(model, gpu, dtype, flags.num_shard) if given is None else given
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
