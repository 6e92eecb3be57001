"""Shapes against published parameter counts; config.json files, read and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadgen.errors import ConfigError
from loadgen.physics.formats import DTYPES, Dtype
from loadgen.physics.models import MODELS, Transformer, read_config

BF16 = DTYPES["bfloat16"]

# Keys of the published config.json files, and the parameter counts of their checkpoints on the hub.
LLAMA_KEYS: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "TinyLlama-1.1B": (1_100_048_384, {}),
    "SmolLM2-135M": (
        134_515_008,
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        },
    ),
    "Mistral-7B-v0.1": (
        7_241_732_096,
        {
            "model_type": "mistral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
    ),
    "Phi-3-mini": (
        3_821_079_552,
        {
            "model_type": "phi3",
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32064,
        },
    ),
    "Qwen3-8B": (
        8_190_735_360,
        {
            "model_type": "qwen3",
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
        },
    ),
    "gemma-2b": (
        2_506_172_416,
        {
            "model_type": "gemma",
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "num_attention_heads": 8,
            "num_hidden_layers": 18,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "vocab_size": 256000,
            "tie_word_embeddings": None,
        },
    ),
    "gemma-2-9b": (
        9_241_705_984,
        {
            "model_type": "gemma2",
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "num_attention_heads": 16,
            "num_hidden_layers": 42,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "vocab_size": 256000,
            "tie_word_embeddings": None,
        },
    ),
    "Mixtral-8x7B": (
        46_702_792_704,
        {
            "model_type": "mixtral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    "Qwen1.5-MoE-A2.7B": (
        14_315_784_192,
        {
            "model_type": "qwen2_moe",
            "intermediate_size": 5632,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "num_key_value_heads": 16,
            "vocab_size": 151936,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "decoder_sparse_step": 1,
        },
    ),
    "Qwen3-30B-A3B": (
        30_532_122_624,
        {
            "model_type": "qwen3_moe",
            "intermediate_size": 6144,
            "num_hidden_layers": 48,
            "head_dim": 128,
            "vocab_size": 151936,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
    ),
}


def config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(LLAMA_KEYS | changes), encoding="utf-8")
    return path


def published(folder: Path, name: str) -> Transformer:
    return read_config(config(folder, **PUBLISHED[name][1]))


@pytest.mark.parametrize(
    ("model_id", "parameters"),
    [
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("mistral-7b", 7_248_023_552),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-3b", 3_085_938_688),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-14b", 14_770_033_664),
    ],
)
def test_known_models_have_the_published_number_of_parameters(model_id: str, parameters: int) -> None:
    assert MODELS[model_id].parameters == parameters
    assert MODELS[model_id].id == model_id


def test_known_models_are_those_listed() -> None:
    assert len(MODELS) == 8


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_file_gives_the_published_number_of_parameters(name: str, tmp_path: Path) -> None:
    assert published(tmp_path, name).parameters == PUBLISHED[name][0]


def test_a_directory_stands_for_the_config_in_it_and_names_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    path = config(folder)
    model = read_config(folder)
    assert model == read_config(path)
    assert (model.id, model.hub_id, model.source) == ("my-model", "my-model", str(path))
    config(folder, _name_or_path="TinyLlama/TinyLlama-1.1B")
    assert read_config(str(folder)).hub_id == "TinyLlama/TinyLlama-1.1B"
    other = tmp_path / "tiny.json"
    other.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    assert read_config(other).id == "tiny"


def test_a_reread_table_entry_is_the_table_entry(tmp_path: Path) -> None:
    # The hub's config.json of Qwen2.5-7B-Instruct, keys that matter.
    path = config(
        tmp_path,
        model_type="qwen2",
        architectures=["Qwen2ForCausalLM"],
        hidden_size=3584,
        intermediate_size=18944,
        num_attention_heads=28,
        num_hidden_layers=28,
        num_key_value_heads=4,
        vocab_size=152064,
        max_position_embeddings=32768,
        use_sliding_window=False,
    )
    model, known = read_config(path), MODELS["qwen2.5-7b"]
    assert model.gemm_shapes == known.gemm_shapes
    assert model.weights_bytes(BF16) == known.weights_bytes(BF16) == 2 * 7_615_616_512
    assert model.kv_token_bytes(BF16) == 2 * 28 * 4 * 128 * 2


def test_biases_are_counted_where_a_config_turns_them_on(tmp_path: Path) -> None:
    plain = read_config(config(tmp_path))
    biased = read_config(config(tmp_path, attention_bias=True, mlp_bias=True))
    # Q 2048, K and V 4 heads of 64 each, O 2048; gate and up 5632 each, down 2048.
    assert biased.parameters - plain.parameters == 22 * (2048 + 2 * 256 + 2048 + 2 * 5632 + 2048)


def test_layers_that_attend_to_a_window_are_read_as_the_others(tmp_path: Path) -> None:
    windows = ["sliding_attention", "full_attention"] * 11
    assert read_config(config(tmp_path, layer_types=windows)) == read_config(config(tmp_path))


def test_an_unlisted_kind_is_read_as_llama_if_its_mlp_is_gated(tmp_path: Path) -> None:
    model = read_config(
        config(tmp_path, model_type="brandnew", architectures=["NewForCausalLM"], hidden_act="silu")
    )
    assert model.parameters == PUBLISHED["TinyLlama-1.1B"][0]


def test_an_unlisted_kind_that_does_not_say_has_tied_heads_as_in_transformers(tmp_path: Path) -> None:
    new = {"model_type": "brandnew", "architectures": ["NewForCausalLM"], "hidden_act": "silu"}
    assert read_config(config(tmp_path, **new, tie_word_embeddings=None)).tied_embeddings
    assert not read_config(config(tmp_path, tie_word_embeddings=None)).tied_embeddings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": None}, ("hidden_size", "a whole number >= 1", "got null")),
        ({"num_hidden_layers": -3}, ("num_hidden_layers", "a whole number >= 1", "got -3")),
        ({"vocab_size": True}, ("vocab_size", "got true")),
        ({"intermediate_size": 5632.0}, ("intermediate_size", "got 5632.0")),
        ({"max_position_embeddings": "long"}, ("max_position_embeddings", 'got "long"')),
        (
            {"num_key_value_heads": 5},
            ("num_key_value_heads", "a divisor of num_attention_heads, 32", "got 5"),
        ),
        ({"num_attention_heads": 30, "num_key_value_heads": 30}, ("head_dim", "got nothing")),
        ({"tie_word_embeddings": "yes"}, ("tie_word_embeddings", "true or false", 'got "yes"')),
        ({"model_type": None}, ("model_type", "got null")),
        ({"model_type": "t5", "is_encoder_decoder": True}, ("is_encoder_decoder", "decoder-only")),
        (
            {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
            ("architectures", "decoder-only", "BertForMaskedLM"),
        ),
        (
            {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu"},
            ("hidden_act", "expected silu", 'got "gelu"'),
        ),
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, ("kv_lora_rank", "latent attention", "got 512")),
        ({"model_type": "gemma3", "text_config": {"hidden_size": 1}}, ("text_config",)),
        ({"num_experts": 8}, ("num_experts_per_tok", "got nothing")),
        ({"num_experts": 8, "num_experts_per_tok": 9}, ("num_experts_per_tok", "at most num_experts, 8")),
        (
            {"num_experts": 8, "num_experts_per_tok": 2, "mlp_only_layers": [0]},
            ("mlp_only_layers", "got [0]"),
        ),
        (
            {"num_experts": 8, "num_experts_per_tok": 2, "decoder_sparse_step": 2},
            ("decoder_sparse_step", "got 2"),
        ),
        # Found: hybrids (Qwen3-Next, LFM2, ...) and Llama 4 Maverick were read as if all layers were alike.
        (
            {"model_type": "qwen3_next", "hidden_act": "silu", "linear_num_value_heads": 32},
            ("linear_num_value_heads", "linear attention", "got 32"),
        ),
        (
            {"layer_types": ["full_attention", "conv"]},
            ("layer_types", "full_attention, sliding_attention or chunked_attention", '"conv"'),
        ),
        ({"layer_types": "full"}, ("layer_types", 'got "full"')),
        ({"layer_types": ["full_attention"] * 3}, ("layer_types", "one a layer, 22", '"full_attention"]')),
        ({"hidden_size": 10**400}, ("hidden_size", "at most 1,000,000,000", "0...")),
        ({"n_routed_experts": 64}, ("n_routed_experts", "num_local_experts", "got 64")),
        ({"moe_num_experts": 64}, ("moe_num_experts", "num_experts", "got 64")),
        ({"intermediate_size_mlp": 16384}, ("intermediate_size_mlp", "a mix of dense", "got 16384")),
        (
            {"num_local_experts": 8, "num_experts_per_tok": 2, "interleave_moe_layer_step": 2},
            ("interleave_moe_layer_step", "got 2"),
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_a_config_that_does_not_fit_is_refused_by_key_and_value(
    changes: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    path = config(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {words[0]}: expected ")
    assert all(word in message for word in words)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"{", "expected JSON"),
        (b"\xff", "expected JSON"),
        (b"[]", "got list"),
        (b'{"hidden_size": ' + b"1" * 5000 + b"}", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
    ],
)
def test_a_file_that_is_no_config_is_refused(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda m: m.id)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda d: d.name)
@pytest.mark.parametrize("shards", [2, 4, 8])
def test_the_shards_add_up_to_the_whole_and_what_is_repeated(
    model: Transformer, dtype: Dtype, shards: int
) -> None:
    if model.heads % shards:
        with pytest.raises(ConfigError, match=f"num_shard: {model.id} has {model.heads} heads"):
            model.weights_bytes_per_shard(dtype, shards)
        return
    copies = max(1, shards // model.kv_heads)
    repeated_kv = (copies - 1) * model.layers * 2 * model.kv_heads * model.head_dim * model.hidden
    biases = (copies - 1) * model.layers * 2 * model.kv_heads * model.head_dim * model.qkv_bias
    norms = (shards - 1) * (2 * model.layers + 1) * model.hidden
    expected = (
        model.weights_bytes(dtype) + repeated_kv * dtype.weight_bytes + (biases + norms) * dtype.table_bytes
    )
    total = shards * model.weights_bytes_per_shard(dtype, shards)
    assert expected <= total <= expected + shards  # each rounded up to whole bytes
    kv = shards * model.kv_token_bytes_per_shard(dtype, shards)
    assert kv == copies * model.kv_token_bytes(dtype)


@pytest.mark.parametrize(("shards", "words"), [(0, "expected >= 1, got 0"), (3, "one of 1, 2, 4, 8, 16, 32")])
def test_a_split_that_does_not_divide_the_heads_is_refused(shards: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MODELS["llama-3.1-8b"].check_shards(shards)


def test_an_expert_model_counts_the_products_of_one_token(tmp_path: Path) -> None:
    # "uses 12.9B parameters per token" (Mixtral's announcement): all but the experts left out.
    mixtral = published(tmp_path, "Mixtral-8x7B")
    per_token = 32 * sum(k * n for k, n in mixtral.gemm_shapes) + 2 * 32000 * 4096
    assert per_token == pytest.approx(12.9e9, rel=0.003)
    # "A2.7B": activated, embeddings included.
    qwen = published(tmp_path, "Qwen1.5-MoE-A2.7B")
    per_token = 24 * sum(k * n for k, n in qwen.gemm_shapes) + 2 * 151936 * 2048
    assert per_token == pytest.approx(2.7e9, rel=0.01)
