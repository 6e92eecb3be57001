"""What the engine schedules: sequences, the KV blocks they hold, and the running batch.

All rows that decode advance together, one token a forward, so the batch keeps
sums and one counter instead of visiting its rows: a decoding sequence stores its
progress relative to the counter, and a heap knows at which forward the next row
ends. A forward costs O(1) however many rows it has.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from loadgen.server.prefix_cache import Match, PrefixCache


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside the engine, from submission to its last token.

    ``reply_tokens`` is how many tokens it will emit. ``prompt_ids`` holds the
    prompt's token ids, 8 bytes each, little-endian; None: its prefix is neither
    looked up nor kept. ``cached_tokens`` is the prefix found in the cache at its
    first admission, ``preemptions`` how often its blocks were taken away.
    Instants are on the caller's clock; ``scheduled_s`` is the start of the first
    step that holds a chunk of it, ``first_s`` and ``done_s`` the ends of the
    steps that emit its first and last token. A cancelled sequence has no
    ``done_s``.

    A sequence runs in one or more *stretches*: after TGI's 1,024 tokens or a
    preemption it waits again, with what it has emitted added to what it must
    prefill (``stretch_prompt_tokens``); ``stretch_new_tokens`` bounds what the
    stretch may emit.
    """

    id: int
    prompt_tokens: int
    max_new_tokens: int
    reply_tokens: int
    finish_reason: str = "length"
    prompt_ids: bytes | None = field(default=None, repr=False)
    cached_tokens: int = field(default=0, init=False)
    preemptions: int = field(default=0, init=False)
    cancelled: bool = field(default=False, init=False)
    submitted_s: float | None = field(default=None, init=False)
    scheduled_s: float | None = field(default=None, init=False)
    first_s: float | None = field(default=None, init=False)
    done_s: float | None = field(default=None, init=False)
    stretch_prompt_tokens: int = field(default=0, init=False)
    stretch_new_tokens: int = field(default=0, init=False)
    match: Match | None = field(default=None, init=False, repr=False)
    order: int = field(default=-1, init=False, repr=False)
    """Number of its latest admission, counted over the engine."""
    # While it decodes (batch set), computed and emitted are relative to batch.forwards.
    batch: Batch | None = field(default=None, init=False, repr=False)
    computed: int = field(default=0, init=False, repr=False)
    emitted: int = field(default=0, init=False, repr=False)
    ends_at: int = field(default=-1, init=False, repr=False)
    # Blocks of its own; while it decodes and they grow with it, those it holds in the cache instead.
    blocks: int = field(default=0, init=False, repr=False)
    grows_by: int = field(default=0, init=False, repr=False)
    serial: int = field(default=-1, init=False, repr=False)

    @property
    def computed_tokens(self) -> int:
        """Tokens whose KV is in memory, a cached prefix included."""
        return self.computed if self.batch is None else self.computed + self.batch.forwards

    @property
    def emitted_tokens(self) -> int:
        """Tokens emitted so far, over all stretches."""
        return self.emitted if self.batch is None else self.emitted + self.batch.forwards

    @property
    def reserved_blocks(self) -> int:
        """KV blocks that are its own: neither free nor in the prefix cache."""
        if self.batch is None or not self.grows_by:
            return self.blocks
        return -(-(self.computed + self.batch.begun) // self.grows_by) - self.blocks

    def stretch_ids(self) -> bytes:
        """Ids of the tokens this stretch prefills; what it emitted has ids that nobody else's equal."""
        assert self.prompt_ids is not None
        emitted = self.stretch_prompt_tokens - self.prompt_tokens
        if not emitted:
            return self.prompt_ids
        if self.serial < 0:
            self.serial = next(_serials)
        first = 1 << 63 | self.serial << 24
        return self.prompt_ids + array("Q", range(first, first + emitted)).tobytes()


_serials = count()


class BlockPool:
    """KV blocks: held by sequences, in the prefix cache, or free. The three always add to the total.

    ``releases`` counts the events after which a request that found no room may
    find some. Blocks are of ``block_tokens`` tokens.
    """

    __slots__ = ("block_tokens", "cache", "free_blocks", "releases", "total_blocks")

    def __init__(self, total_blocks: int, block_tokens: int = 1, *, prefix_caching: bool = True) -> None:
        self.total_blocks = total_blocks
        self.free_blocks = total_blocks
        self.block_tokens = block_tokens
        self.cache = PrefixCache(block_tokens) if prefix_caching else None
        self.releases = 0

    @property
    def cached_blocks(self) -> int:
        """Blocks in the prefix cache, in use or not."""
        return 0 if self.cache is None else self.cache.size_blocks

    @property
    def held_blocks(self) -> int:
        """Blocks that belong to one sequence each."""
        return self.total_blocks - self.free_blocks - self.cached_blocks

    @property
    def available_blocks(self) -> int:
        """Blocks that are free or can be evicted from the prefix cache."""
        return self.free_blocks + (0 if self.cache is None else self.cache.evictable_blocks)

    def blocks(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_tokens)

    def take(self, blocks: int) -> bool:
        """Takes the blocks, or returns False and takes none.

        Evicts from the prefix cache what is missing, also where that turns out
        not to suffice, as TGI's allocator does.
        """
        if blocks > self.free_blocks:
            if self.cache is not None:
                self.free_blocks += self.cache.evict(blocks - self.free_blocks)
            if blocks > self.free_blocks:
                return False
        self.free_blocks -= blocks
        return True

    def give(self, blocks: int) -> None:
        """Takes the blocks back."""
        self.free_blocks += blocks
        self.releases += 1

    def find(self, sequence: Sequence, limit_tokens: int) -> Match | None:
        """The longest cached prefix of the first ``limit_tokens`` tokens of the stretch, pinned."""
        if self.cache is None or sequence.prompt_ids is None:
            return None
        return self.cache.match(sequence.stretch_ids()[: 8 * limit_tokens])

    def unpin(self, match: Match | None) -> None:
        """Gives up a prefix found before."""
        if match is not None:
            assert self.cache is not None
            self.cache.release(match)

    def keep(self, sequence: Sequence, tokens: int) -> int:
        """Moves the stretch's first ``tokens`` tokens to the prefix cache: how many blocks were new there."""
        if self.cache is None or sequence.prompt_ids is None:
            return 0
        return self.cache.insert(sequence.stretch_ids()[: 8 * tokens])


class Batch:
    """The sequences that hold KV blocks, oldest admission first: those that prefill and those that decode.

    ``forwards`` counts finished forwards of the decoding rows, ``begun`` those
    begun (one more while one runs); ``rows`` is how many rows decode and
    ``context_tokens`` the sum of their computed tokens.
    """

    __slots__ = (
        "_admissions",
        "_ends",
        "begun",
        "context_tokens",
        "forwards",
        "members",
        "prefilling",
        "rows",
    )

    def __init__(self) -> None:
        self.members: dict[Sequence, None] = {}
        self.prefilling: list[Sequence] = []
        self.rows = 0
        self.context_tokens = 0
        self.forwards = 0
        self.begun = 0
        self._admissions = 0
        # (forward after which it ends, admission, sequence); stale where the sequence says otherwise.
        self._ends: list[tuple[int, int, Sequence]] = []

    def admit(self, sequence: Sequence) -> None:
        """Its prefill begins."""
        sequence.order = self._admissions
        self._admissions += 1
        self.members[sequence] = None
        self.prefilling.append(sequence)

    def decode(self, sequence: Sequence, forwards: int) -> None:
        """Its prefill is complete: it decodes, and ends with the ``forwards``-th forward from now."""
        self.prefilling.remove(sequence)
        now = self.forwards
        self.rows += 1
        self.context_tokens += sequence.computed
        sequence.computed -= now
        sequence.emitted -= now
        sequence.batch = self
        self.end_after(sequence, forwards)

    def end_after(self, sequence: Sequence, forwards: int) -> None:
        """Lets a decoding sequence end with the ``forwards``-th forward from now."""
        at = self.forwards + forwards
        if sequence.ends_at != at:
            sequence.ends_at = at
            heappush(self._ends, (at, sequence.order, sequence))

    def leave(self, sequence: Sequence) -> None:
        """It holds no blocks any more; its counts become absolute."""
        del self.members[sequence]
        if sequence.batch is None:
            self.prefilling.remove(sequence)
            return
        sequence.batch = None
        sequence.ends_at = -1
        sequence.computed += self.forwards
        sequence.emitted += self.forwards
        self.rows -= 1
        self.context_tokens -= sequence.computed

    def advance(self, forwards: int) -> None:
        """So many forwards of the decoding rows have finished."""
        self.forwards += forwards
        self.context_tokens += forwards * self.rows

    def ending(self) -> Sequence | None:
        """Takes the next sequence that ends with the forward just finished; None when there is no more."""
        ends = self._ends
        while ends and ends[0][0] <= self.forwards:
            at, order, sequence = heappop(ends)
            if sequence.ends_at == at and sequence.order == order:
                return sequence
        return None

    def forwards_left(self) -> int:
        """Forwards until the next decoding row ends. Needs at least one row."""
        ends = self._ends
        while True:
            at, order, sequence = ends[0]
            if sequence.ends_at == at and sequence.order == order:
                return at - self.forwards
            heappop(ends)
