"""What a board's memory is spent on, and the sum that shows when it is not enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loadgen.errors import CapacityError, ConfigError
from loadgen.physics.formats import DTYPES, Dtype
from loadgen.physics.hardware import Gpu
from loadgen.physics.models import Transformer

CONTEXT_BYTES = 512 * 2**20
"""CUDA context, kernels and captured graphs. Assumed."""
_RESERVE = "reserve"
_TRIED_SHARDS = (1, 2, 4, 8)
_LEAST_TRIED_PREFILL_TOKENS = 4096
_LEAST_KV_TOKENS = 2  # a prompt of one token and its reply


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """The memory of one of ``shards`` equal boards.

    ``items`` maps each use but the KV cache to its bytes: weights, context,
    activations of a full prefill, reserve (what the server leaves alone).
    ``free_for_kv_bytes`` is what they leave, negative when they do not fit.
    """

    model: Transformer
    gpu: Gpu
    dtype: Dtype
    shards: int
    prefill_tokens: int
    usable_share: float
    items: Mapping[str, float]
    free_for_kv_bytes: float

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values fit into what is left. >= 0."""
        token = self.model.kv_token_bytes_per_shard(self.dtype, self.shards)
        return max(0, int(self.free_for_kv_bytes // token))

    @property
    def fits(self) -> bool:
        """Whether a request of one prompt token and one reply token can be held."""
        return self.kv_tokens >= _LEAST_KV_TOKENS

    def explain(self) -> str:
        """The sum in one line, in GB of 1e9 bytes; what would fit instead, when it does not."""
        reserve = f"{100 * (1 - self.usable_share):.0f} % {_RESERVE}"
        terms = " + ".join(
            f"{reserve if name == _RESERVE else name} {size / 1e9:.1f} GB"
            for name, size in self.items.items()
            if size
        )
        each = "" if self.shards == 1 else "on each "
        line = (
            f"{self.model.id} in {self.dtype.name} on {self.shards} x {self.gpu.id}: "
            f"{each}{terms} = {sum(self.items.values()) / 1e9:.1f} GB"
        )
        has = f"{self.gpu.memory_bytes / 1e9:.1f} GB"
        if self.fits:
            left = f"{self.free_for_kv_bytes / 1e9:.1f} GB"
            return f"{line} of {has}, leaving {left} for the KV cache of {self.kv_tokens} tokens"
        if self.free_for_kv_bytes < 0:
            return f"{line} > {has}; {self._alternatives()}"
        return f"{line} of {has}, leaving no room for a KV cache; {self._alternatives()}"

    def refusal(self) -> CapacityError:
        """The error to raise when it does not fit: ``explain()``."""
        return CapacityError(self.explain())

    def _alternatives(self) -> str:
        shards = [str(p) for p in _TRIED_SHARDS if p > self.shards and self._would_fit(self.dtype, p)]
        dtypes = [
            d.name
            for d in DTYPES.values()
            if d.weight_bytes < self.dtype.weight_bytes and self._would_fit(d, self.shards)
        ]
        flags = [f"--num-shard {'|'.join(shards)}"] if shards else []
        flags += [f"--dtype {'|'.join(dtypes)}"] if dtypes else []
        if flags:
            return f"fits with {' or '.join(flags)}"
        both = next(
            (
                f"--num-shard {p} --dtype {d.name}"
                for p in _TRIED_SHARDS
                for d in DTYPES.values()
                if p > self.shards and self._would_fit(d, p)
            ),
            None,
        )
        return f"fits with {both}" if both else f"no format fits it on {_TRIED_SHARDS[-1]} such boards"

    def _would_fit(self, dtype: Dtype, shards: int) -> bool:
        tokens = max(self.prefill_tokens, _LEAST_TRIED_PREFILL_TOKENS)
        try:
            dtype.rate_on(self.gpu)
            return memory_budget(
                self.model, self.gpu, dtype, shards, tokens, usable_share=self.usable_share
            ).fits
        except ConfigError:
            return False


def memory_budget(
    model: Transformer,
    gpu: Gpu,
    dtype: Dtype,
    shards: int,
    prefill_tokens: int,
    *,
    usable_share: float = 0.90,
) -> MemoryBudget:
    """What one of ``shards`` boards holds beside the KV cache.

    Activations are the widest moment of a layer for ``prefill_tokens`` rows:
    gate, up and their product of the MLP and two residual streams.
    ``usable_share`` is the part of the board that the server may fill, 0.90 as
    TGI does. Raises ConfigError when the model cannot be split so.
    """
    mlp = (model.ffn * max(model.experts_per_token, 1) + model.shared_ffn) // shards
    items = {
        "weights": float(model.weights_bytes_per_shard(dtype, shards)),
        "context": float(CONTEXT_BYTES),
        "activations": float(prefill_tokens * (3 * mlp + 2 * model.hidden) * dtype.activation_bytes),
    }
    free = usable_share * gpu.memory_bytes - sum(items.values())
    items[_RESERVE] = (1.0 - usable_share) * gpu.memory_bytes
    return MemoryBudget(model, gpu, dtype, shards, prefill_tokens, usable_share, items, free)
