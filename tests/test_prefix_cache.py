"""The prefix cache against a set of block prefixes with least-recently-used eviction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loadgen.server.prefix_cache import Match, PrefixCache


def key(*ids: int) -> bytes:
    return np.array(ids, np.uint64).tobytes()


class Blocks:
    """Every cached block by its whole prefix, with the instant of its last use."""

    def __init__(self, block_tokens: int) -> None:
        self.bytes = 8 * block_tokens
        self.used: dict[bytes, int] = {}
        self.pins: list[bytes] = []
        self.time = 0

    def prefixes(self, ids: bytes) -> list[bytes]:
        return [ids[:end] for end in range(self.bytes, len(ids) + 1, self.bytes)]

    def touch(self, ids: bytes) -> bytes:
        self.time += 1
        longest = b""
        for prefix in self.prefixes(ids):
            if prefix not in self.used:
                break
            self.used[prefix] = self.time
            longest = prefix
        return longest

    def match(self, ids: bytes) -> bytes:
        longest = self.touch(ids)
        self.pins.append(longest)
        return longest

    def insert(self, ids: bytes) -> int:
        self.touch(ids)
        new = [prefix for prefix in self.prefixes(ids) if prefix not in self.used]
        self.used.update(dict.fromkeys(new, self.time))
        return len(new)

    def pinned(self, prefix: bytes) -> bool:
        return any(pin.startswith(prefix) for pin in self.pins)

    def evict(self, blocks: int) -> int:
        for freed in range(blocks):
            last = [
                prefix
                for prefix in self.used
                if not self.pinned(prefix)
                and not any(len(other) > len(prefix) and other.startswith(prefix) for other in self.used)
            ]
            if not last:
                return freed
            del self.used[min(last, key=self.used.__getitem__)]
        return blocks


keys = st.lists(st.integers(0, 2), max_size=14).map(lambda ids: key(*ids))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), keys),
        st.tuples(st.just("match"), keys),
        st.tuples(st.just("use"), keys),
        st.tuples(st.just("release"), st.integers(0, 10)),
        st.tuples(st.just("evict"), st.integers(0, 6)),
    ),
    max_size=40,
)


def long_life(seed: int) -> list[tuple]:
    """The life of a full cache: few keys with common beginnings, met again whole and in part."""
    rng = np.random.default_rng(seed)
    pool = [key(0, *rng.integers(0, 3, 15)) for _ in range(12)]
    steps: list[tuple] = []
    for step in rng.choice(
        ["insert", "match", "use", "release", "evict"], 400, p=[0.3, 0.1, 0.25, 0.15, 0.2]
    ):
        ids = pool[rng.integers(len(pool))]
        whole = ids if rng.random() < 0.6 else ids[: 8 * int(rng.integers(len(ids) // 8))]
        steps.append((step, int(rng.integers(8)) if step in ("release", "evict") else whole))
    return steps


@given(st.integers(1, 3), operations)
@example(1, long_life(1))
@example(1, long_life(2))
@example(2, long_life(3))
@example(3, long_life(4))
@settings(max_examples=300, deadline=None)
def test_the_cache_does_what_a_set_of_block_prefixes_does(block_tokens: int, steps: list[tuple]) -> None:
    cache, blocks = PrefixCache(block_tokens), Blocks(block_tokens)
    matches: list[Match] = []
    inserted = evicted = 0
    for step, value in steps:
        if step == "insert":
            new = cache.insert(value)
            assert new == blocks.insert(value)
            inserted += new
        elif step in ("match", "use"):
            matches.append(cache.match(value))
            assert matches[-1].tokens == len(blocks.match(value)) // 8
            if step == "use":
                cache.release(matches.pop())
                blocks.pins.pop()
        elif step == "release" and matches:
            cache.release(matches.pop(value % len(matches)))
            blocks.pins.pop(value % len(blocks.pins))
        elif step == "evict":
            evictable = cache.evictable_blocks
            freed = cache.evict(value)
            assert freed == blocks.evict(value) == min(value, evictable)
            evicted += freed
        assert cache.size_blocks == len(blocks.used) == inserted - evicted
        assert cache.pinned_blocks == sum(map(blocks.pinned, blocks.used))
    for prefix in blocks.used:
        assert cache.match(prefix).tokens == len(prefix) // 8


def test_a_prefix_is_found_to_the_last_whole_block_that_agrees() -> None:
    cache = PrefixCache(4)
    assert cache.insert(key(*range(11))) == 2
    assert cache.match(key(*range(11))).tokens == 8
    assert cache.match(key(*range(7), 99)).tokens == 4
    assert cache.match(key(*range(3))).tokens == 0
    assert cache.match(b"").tokens == 0


@pytest.mark.parametrize("block_tokens", [1, 16])
def test_the_length_of_a_common_prefix_is_exact_at_every_length(block_tokens: int) -> None:
    ids = np.arange(1, 161, dtype=np.uint64)
    for shared in range(len(ids) + 1):
        cache = PrefixCache(block_tokens)
        cache.insert(ids.tobytes())
        other = ids.copy()
        other[shared:] += np.uint64(1000)
        assert cache.match(other.tobytes()).tokens == shared // block_tokens * block_tokens
        # The same, where the key ends instead of differing.
        assert cache.match(ids[:shared].tobytes()).tokens == shared // block_tokens * block_tokens


def test_the_least_recently_used_leaf_goes_first_and_shrinks_from_its_end() -> None:
    # TGI's own example (radix.rs, evict): 0 1 2 3 {5 6 7 | 4} and 1 2 3 over single tokens.
    cache = PrefixCache(1)
    for ids in ([0, 1, 2], [0, 1, 2, 3, 5, 6, 7], [0, 1, 2, 3, 4], [1, 2, 3]):
        cache.insert(key(*ids))
    assert cache.size_blocks == 11

    def cached(*ids: int) -> int:
        match = cache.match(key(*ids))
        cache.release(match)
        return match.tokens

    assert cache.evict(1) == 1
    assert cached(0, 1, 2, 3, 5, 6, 7) == 6
    assert (cached(0, 1, 2, 3, 4), cached(1, 2, 3)) == (5, 3)
    assert cache.evict(2) == 2
    assert cached(0, 1, 2, 3, 5, 6, 7) == 4
    assert cached(1, 2, 3) == 3
    assert cache.evict(3) == 3
    assert cached(0, 1, 2, 3, 4) == 2
    assert cache.evict(10) == 5
    assert cache.size_blocks == 0


def test_a_pin_keeps_its_path_and_nothing_below() -> None:
    cache = PrefixCache(2)
    cache.insert(key(1, 2, 3, 4, 5, 6))
    cache.insert(key(1, 2, 7, 8))
    match = cache.match(key(1, 2, 3, 4))
    assert (cache.pinned_blocks, cache.evictable_blocks) == (2, 2)
    assert cache.clear() == 2
    # A second key through the middle of what is pinned cuts the edge; the pin covers both parts.
    cache.insert(key(1, 2, 9, 9))
    assert cache.clear() == 1
    cache.release(match)
    assert cache.pinned_blocks == 0
    assert cache.evict(9) == 2


def test_a_match_is_released_once() -> None:
    cache = PrefixCache(1)
    match = cache.match(key(1))
    cache.release(match)
    with pytest.raises(ValueError, match="released twice"):
        cache.release(match)


def test_a_block_holds_at_least_one_token() -> None:
    with pytest.raises(ValueError, match="block_tokens"):
        PrefixCache(0)
