"""What fits a board: the sum, item by item, and what is suggested when it does not."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from loadgen.errors import CapacityError, ConfigError
from loadgen.physics.boards import GPUS
from loadgen.physics.formats import DTYPES
from loadgen.physics.memory import MemoryBudget, memory_budget
from loadgen.physics.models import MODELS

BF16 = DTYPES["bfloat16"]
H100_BYTES = 81559 * 2**20


def budget(
    model: str, gpu: str, dtype: str = "bfloat16", shards: int = 1, tokens: int = 4096, share: float = 0.9
) -> MemoryBudget:
    return memory_budget(MODELS[model], GPUS[gpu], DTYPES[dtype], shards, tokens, usable_share=share)


def test_llama_8b_on_an_h100_by_hand() -> None:
    b = budget("llama-3.1-8b", "h100-sxm", tokens=59_870)
    assert b.items == {
        "weights": 16_060_522_496,
        "context": 512 * 2**20,
        "activations": 59_870 * (3 * 14336 + 2 * 4096) * 2,
        "reserve": pytest.approx(0.1 * H100_BYTES),
    }
    left = H100_BYTES - 16_060_522_496 - 2**29 - 59_870 * 51_200 * 2 - 0.1 * H100_BYTES
    assert b.free_for_kv_bytes == pytest.approx(left, rel=1e-12)
    assert b.kv_tokens == int(left / 131_072) == 413_823
    assert b.fits
    assert b.explain() == (
        "llama-3.1-8b in bfloat16 on 1 x h100-sxm: weights 16.1 GB + context 0.5 GB + activations 6.1 GB "
        "+ 10 % reserve 8.6 GB = 31.3 GB of 85.5 GB, leaving 54.2 GB for the KV cache of 413823 tokens"
    )


def test_llama_70b_on_one_h100_is_refused_with_the_sum_and_a_way_out() -> None:
    b = budget("llama-3.1-70b", "h100-sxm", tokens=13_000)
    refusal = b.refusal()
    assert isinstance(refusal, CapacityError)
    assert str(refusal).startswith(
        "llama-3.1-70b in bfloat16 on 1 x h100-sxm: weights 141.1 GB + context 0.5 GB + activations 2.7 GB "
        "+ 10 % reserve 8.6 GB = 152.9 GB > 85.5 GB; fits with --num-shard 2|4|8 or --dtype "
    )
    assert b.kv_tokens == 0
    assert not b.fits


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        ("llama-3.1-70b", "bfloat16"),
        ("llama-3.1-70b", "int8"),
        ("qwen2.5-14b", "float32"),
        ("qwen2.5-14b", "bfloat16"),
    ],
)
@pytest.mark.parametrize("gpu", ["h100-sxm", "a100-sxm", "l4", "rtx-4090"])
def test_a_suggestion_fits_and_what_is_left_out_does_not(gpu: str, model: str, dtype: str) -> None:
    b = budget(model, gpu, dtype)
    line = b.explain()
    if b.fits:
        assert "--" not in line
        return
    alone = re.search(r"fits with (?:--num-shard ([\d|]+))?(?: or )?(?:--dtype ([\w|]+))?$", line)
    assert alone is not None, line
    shards, dtypes = ((found or "").split("|") if found else [] for found in alone.groups())
    assert shards == [str(p) for p in (2, 4, 8) if budget(model, gpu, dtype, p).fits]
    smaller = [d for d in DTYPES.values() if d.weight_bytes < DTYPES[dtype].weight_bytes]
    assert dtypes == [d.name for d in smaller if budget(model, gpu, d.name).fits]
    assert shards or dtypes


def test_the_printed_terms_add_up() -> None:
    line = budget("llama-3.1-70b", "h100-sxm", shards=2).explain()
    words = line.split(" = ")[0].split(": ")[1].split()
    sizes = [float(a) for a, b in pairwise(words) if b == "GB"]
    assert line.startswith("llama-3.1-70b in bfloat16 on 2 x h100-sxm: on each weights 70.6 GB")
    assert sum(sizes) == pytest.approx(float(line.split(" = ")[1].split()[0]), abs=0.2)


def test_two_flags_together_are_suggested_when_neither_alone_is_enough() -> None:
    # 282 GB of weights on boards of 24 GB: neither 8 boards nor 4 bits on one are enough.
    assert budget("llama-3.1-70b", "l4", "float32").explain().endswith("fits with --num-shard 2 --dtype awq")


def test_nothing_is_suggested_when_nothing_helps() -> None:
    line = budget("llama-3.1-70b", "l4", "float32", share=0.05).explain()
    assert line.endswith("; no format fits it on 8 such boards")


def test_full_but_not_over_full_is_no_room_for_a_cache() -> None:
    # A share chosen so that 100 kB are left: less than two tokens of 128 KiB.
    whole = budget("llama-3.1-8b", "h100-sxm")
    share = (sum(whole.items.values()) - whole.items["reserve"] + 1e5) / H100_BYTES
    b = budget("llama-3.1-8b", "h100-sxm", share=share)
    assert 0 <= b.free_for_kv_bytes < 2 * 131_072
    assert not b.fits
    assert "leaving no room for a KV cache; fits with" in b.explain()


def test_more_shards_leave_more_on_each() -> None:
    free = [budget("llama-3.1-70b", "h200-sxm", shards=p).free_for_kv_bytes for p in (2, 4, 8)]
    assert free == sorted(free)
    tokens = [budget("llama-3.1-70b", "h200-sxm", shards=p).kv_tokens for p in (2, 4, 8)]
    assert tokens == sorted(tokens)


def test_a_split_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_shard"):
        budget("llama-3.1-8b", "h100-sxm", shards=3)
