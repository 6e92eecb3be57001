"""Decoder-only transformers: their shapes, and how to read them from a ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from loadgen.config import known, show
from loadgen.errors import ConfigError
from loadgen.physics.formats import Dtype


@dataclass(frozen=True, slots=True)
class Transformer:
    """The shape of a grouped-query decoder with gated MLPs. All fields are counts.

    ``ffn`` is the inner width of the MLP, of one expert where there are
    ``experts``; of those each token uses ``experts_per_token``, and besides them
    an MLP of ``shared_ffn`` that all tokens share. ``layer_vectors`` counts the
    elements of a layer's norms, and of its biases but those of Q, K and V.
    """

    id: str
    hub_id: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    max_position_embeddings: int
    tied_embeddings: bool
    layer_vectors: int
    source: str
    qkv_bias: bool = False
    experts: int = 0
    experts_per_token: int = 0
    shared_ffn: int = 0

    @property
    def gemm_shapes(self) -> tuple[tuple[int, int], ...]:
        """``(K, N)`` of the products one token takes part in: QKV, O, gate and up, down.

        With experts, gate and up and down are those of all the token's experts
        together, the shared one included; the router comes last.
        """
        q = self.heads * self.head_dim
        kv = self.kv_heads * self.head_dim
        ffn = self.ffn * max(self.experts_per_token, 1) + self.shared_ffn
        dense = ((self.hidden, q + 2 * kv), (q, self.hidden), (self.hidden, 2 * ffn), (ffn, self.hidden))
        return (*dense, (self.hidden, self.experts)) if self.experts else dense

    @property
    def parameters(self) -> int:
        """All weights: layers, embedding, final norm, LM head."""
        return self.layers * (self._layer_matrices(1) + self._layer_tables(1)) + self._tables(1)

    def _kv_heads(self, shards: int) -> int:
        """KV heads of one shard: a head cannot be split, so it is repeated."""
        return max(self.kv_heads // shards, 1)

    def _layer_matrices(self, shards: int) -> int:
        """Elements of one shard's matrices in a layer that quantisation shrinks."""
        q = self.heads * self.head_dim // shards
        kv = self._kv_heads(shards) * self.head_dim
        ffn = (self.ffn * max(self.experts, 1) + self.shared_ffn) // shards
        return self.hidden * (2 * q + 2 * kv) + 3 * self.hidden * ffn

    def _layer_tables(self, shards: int) -> int:
        """Elements of one shard's norms, biases and router in a layer."""
        q = self.heads * self.head_dim // shards
        kv = self._kv_heads(shards) * self.head_dim
        bias = q + 2 * kv if self.qkv_bias else 0
        return self.layer_vectors + bias + self.hidden * self.experts

    def _tables(self, shards: int) -> int:
        """Elements of one shard's embedding, LM head and final norm."""
        rows = (1 if self.tied_embeddings else 2) * ceil(self.vocabulary / shards)
        return rows * self.hidden + self.hidden

    def _divides(self, shards: int) -> bool:
        if any(count % shards for count in (self.heads, self.ffn, self.shared_ffn)):
            return False
        return self.kv_heads % shards == 0 or shards % self.kv_heads == 0

    def check_shards(self, shards: int) -> None:
        """Raises ConfigError unless the model can be split over that many boards."""
        if shards < 1:
            raise ConfigError(f"num_shard: expected >= 1, got {shards}")
        if not self._divides(shards):
            possible = [str(p) for p in range(1, self.heads + 1) if self._divides(p)]
            raise ConfigError(
                f"num_shard: {self.id} has {self.heads} heads ({self.kv_heads} for keys and values) and MLPs "
                f"of {self.ffn}, expected one of {', '.join(possible)}, got {shards}"
            )

    def weights_bytes(self, dtype: Dtype) -> int:
        """Resident size of all weights."""
        return self.weights_bytes_per_shard(dtype, 1)

    def weights_bytes_per_shard(self, dtype: Dtype, shards: int) -> int:
        """Resident size of the weights of one of ``shards`` boards.

        Matrices, heads and vocabulary are divided; norms and routers are on
        every board, and so is a KV head where there are fewer of them than
        boards. Raises ConfigError when the model cannot be split so.
        """
        self.check_shards(shards)
        matrices = self.layers * self._layer_matrices(shards)
        tables = self.layers * self._layer_tables(shards) + self._tables(shards)
        return ceil(matrices * dtype.weight_bytes + tables * dtype.table_bytes)

    def kv_token_bytes(self, dtype: Dtype) -> int:
        """KV cache of one token over all layers: keys and values."""
        return self.kv_token_bytes_per_shard(dtype, 1)

    def kv_token_bytes_per_shard(self, dtype: Dtype, shards: int) -> int:
        """KV cache of one token on one of ``shards`` boards. Raises ConfigError as above."""
        self.check_shards(shards)
        return 2 * self.layers * self._kv_heads(shards) * self.head_dim * dtype.kv_bytes


class _Family(NamedTuple):
    """What a config.json of this ``model_type`` leaves unsaid."""

    qkv_bias: bool = False
    norms: int = 2
    head_norms: bool = False
    tied: bool = False


_FAMILIES: dict[str, _Family] = {
    "llama": _Family(),
    "mistral": _Family(),
    "mixtral": _Family(),
    "phi3": _Family(),
    "qwen2": _Family(qkv_bias=True),
    "qwen2_moe": _Family(qkv_bias=True),
    "qwen3": _Family(head_norms=True),
    "qwen3_moe": _Family(head_norms=True),
    "gemma": _Family(tied=True),
    "gemma2": _Family(norms=4, tied=True),
    "gemma3_text": _Family(norms=4, head_norms=True, tied=True),
}
_FOREIGN = {
    "text_config": "the language model of a multimodal one cannot be told apart",
    "kv_lora_rank": "latent attention is not modelled",
    "state_size": "state-space layers are not modelled",
    "mamba_d_state": "state-space layers are not modelled",
    "linear_num_value_heads": "linear attention is not modelled",
    "first_k_dense_replace": "a mix of dense and expert layers is not modelled",
    "intermediate_size_mlp": "a mix of dense and expert layers is not modelled",
    "n_routed_experts": "experts are read from num_local_experts or num_experts",
    "moe_num_experts": "experts are read from num_local_experts or num_experts",
}
_MOST = 10**9
_ATTENTION_LAYERS = ("full_attention", "sliding_attention", "chunked_attention")
_MIXING_STEPS = ("decoder_sparse_step", "interleave_moe_layer_step")
_EXPERT_COUNTS = ("num_local_experts", "num_experts")


class _Config:
    """A config.json's keys, refused by name where they do not fit."""

    def __init__(self, keys: Mapping[str, Any], place: str) -> None:
        self.keys = keys
        self.place = place

    def refuse(self, key: str, expectation: str) -> ConfigError:
        got = show(self.keys[key]) if key in self.keys else "nothing"
        return ConfigError(f"{self.place}: {key}: expected {expectation}, got {got}")

    def count(self, key: str, default: int | None = None) -> int:
        value = self.keys.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refuse(key, "a whole number >= 1")
        if value > _MOST:
            raise self.refuse(key, f"at most {_MOST:,}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.keys.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def family(self) -> _Family:
        """The defaults of its kind; an unlisted one counts as Llama's if its MLP is SwiGLU."""
        kind = self.keys.get("model_type")
        if not isinstance(kind, str):
            raise self.refuse("model_type", "a string such as llama")
        if self.keys.get("is_encoder_decoder"):
            raise self.refuse("is_encoder_decoder", "false, for a decoder-only transformer")
        for key, why in _FOREIGN.items():
            if self.keys.get(key):
                raise self.refuse(key, f"no such key ({why})")
        layers = self.keys.get("layer_types") or []
        if not isinstance(layers, list) or any(layer not in _ATTENTION_LAYERS for layer in layers):
            *others, last = _ATTENTION_LAYERS
            raise self.refuse(
                "layer_types", f"a list of {', '.join(others)} or {last} (others are not modelled)"
            )
        if layers and len(layers) != self.keys.get("num_hidden_layers"):
            raise self.refuse("layer_types", f"one a layer, {self.keys.get('num_hidden_layers')}")
        if kind in _FAMILIES:
            return _FAMILIES[kind]
        names = self.keys.get("architectures") or []
        if not (isinstance(names, list) and names and str(names[0]).endswith("ForCausalLM")):
            raise self.refuse("architectures", "a decoder-only transformer, one that ends in ForCausalLM")
        if self.keys.get("hidden_act") not in ("silu", "swish"):
            raise self.refuse("hidden_act", f"silu, as model_type {kind} is none of {', '.join(_FAMILIES)}")
        # Transformers takes the heads as tied where neither the file nor the kind's own class says.
        return _FAMILIES["llama"]._replace(tied=True)


def transformer_from(keys: Mapping[str, Any], model_id: str, hub_id: str, place: str) -> Transformer:
    """The shape that the keys of a config.json describe; ``place`` names it in errors.

    Sliding windows are left out: attention is taken over all tokens. Raises
    ConfigError naming place, key, value and expectation.
    """
    config = _Config(keys, place)
    family = config.family()
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv_heads = config.count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.refuse("num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
    if keys.get("head_dim") is None and hidden % heads:
        raise config.refuse("head_dim", f"a value, as {heads} heads do not divide hidden_size {hidden}")
    head_dim = config.count("head_dim", hidden // heads)
    biased = config.flag("attention_bias", False)
    vectors = family.norms * hidden + (2 * head_dim if family.head_norms else 0)
    vectors += hidden if biased else 0
    ffn = config.count("intermediate_size")
    if config.flag("mlp_bias", False):
        vectors += 2 * ffn + hidden
    experts = per_token = shared = 0
    name = next((key for key in _EXPERT_COUNTS if (keys.get(key) or 0) != 0), None)
    if name is not None:
        experts, per_token = config.count(name), config.count("num_experts_per_tok")
        if per_token > experts:
            raise config.refuse("num_experts_per_tok", f"at most {name}, {experts}")
        for step in _MIXING_STEPS:
            if config.count(step, 1) != 1:
                raise config.refuse(step, "1: a mix of dense and expert layers is not modelled")
        if keys.get("mlp_only_layers"):
            raise config.refuse("mlp_only_layers", "none: a mix of dense and expert layers is not modelled")
        ffn = config.count("moe_intermediate_size", ffn)
        if keys.get("shared_expert_intermediate_size"):
            shared = config.count("shared_expert_intermediate_size")
            vectors += hidden  # its gate
    return Transformer(
        id=model_id,
        hub_id=hub_id,
        layers=config.count("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=ffn,
        vocabulary=config.count("vocab_size"),
        max_position_embeddings=config.count("max_position_embeddings"),
        tied_embeddings=config.flag("tie_word_embeddings", family.tied),
        layer_vectors=vectors,
        source=place,
        qkv_bias=family.qkv_bias or biased,
        experts=experts,
        experts_per_token=per_token,
        shared_ffn=shared,
    )


def read_config(path: str | Path) -> Transformer:
    """The model of a Hugging Face ``config.json``, or of the directory that holds one.

    Its id is the directory's name, or the file's if that is not config.json.
    Raises ConfigError naming file, key, value and expectation when the file
    cannot be read or is not the configuration of a decoder-only transformer.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected JSON: {error}") from error
    if not isinstance(keys, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(keys).__name__}")
    model_id = path.resolve().parent.name if path.name == "config.json" else path.stem
    named = keys.get("_name_or_path")
    hub_id = named if isinstance(named, str) and named and not named.startswith((".", "/")) else model_id
    return transformer_from(keys, model_id, hub_id, str(path))


def _published(model_id: str, hub_id: str, kind: str, counts: str, *, tied: bool = False) -> Transformer:
    """A row of the table below, in the order of ``_COLUMNS``."""
    values = (int(count.replace("_", "")) for count in counts.split())
    keys = {"model_type": kind, "tie_word_embeddings": tied, **dict(zip(_COLUMNS, values, strict=True))}
    return transformer_from(keys, model_id, hub_id, f"config.json of {hub_id}")


_COLUMNS = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)

MODELS: dict[str, Transformer] = {
    model.id: model
    for model in (
        _published(
            "llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", "llama", "32 4096 32 8 14336 128256 131072"
        ),
        _published(
            "llama-3.1-70b", "meta-llama/Llama-3.1-70B-Instruct", "llama", "80 8192 64 8 28672 128256 131072"
        ),
        _published(
            "mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3", "mistral", "32 4096 32 8 14336 32768 32768"
        ),
        _published(
            "qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", "qwen2", "24 896 14 2 4864 151936 32768", tied=True
        ),
        _published(
            "qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", "qwen2", "28 1536 12 2 8960 151936 32768", tied=True
        ),
        _published(
            "qwen2.5-3b", "Qwen/Qwen2.5-3B-Instruct", "qwen2", "36 2048 16 2 11008 151936 32768", tied=True
        ),
        _published("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", "qwen2", "28 3584 28 4 18944 152064 32768"),
        _published("qwen2.5-14b", "Qwen/Qwen2.5-14B-Instruct", "qwen2", "48 5120 40 8 13824 152064 32768"),
    )
}


def find_model(name: str, place: str = "model") -> Transformer:
    """The model of this id, or of the ``config.json`` at this path.

    Raises ConfigError naming ``place`` and the nearest id, or what is wrong with the file.
    """
    path = Path(name)
    if name not in MODELS and (path.suffix == ".json" or path.exists()):
        return read_config(path)
    return known(place, name, MODELS, ", or the path of a config.json")
