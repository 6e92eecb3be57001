"""Prefix cache: which prompt prefixes have their KV in memory, as a radix trie.

An edge holds the ids of one or more whole blocks, so a prompt that shares nothing
but a template with the others costs two nodes however long it is. Reference:
the radix allocator of TGI v3's router (``backends/v3/src/radix.rs``), which keeps
it over single tokens; here the block is a parameter, so that the same trie serves
vLLM's blocks of 16.

Recency is kept exactly per block: an edge is split where a match or an insertion
ends, so all blocks of an edge were last used at the same instant, and evicting
the oldest leaf edge from its end is evicting the least recently used blocks that
no cached prefix continues. (TGI refreshes the whole edge of which a part matched.)
"""

from __future__ import annotations

from heapq import heappop, heappush, heapreplace

ID_BYTES = 8
"""Bytes of one token id in a key."""


class _Node:
    """An edge and what lies below it; ``held`` counts its own pins and its children that are held."""

    __slots__ = ("children", "held", "key", "parent", "queued", "time")

    def __init__(self, key: bytes, parent: _Node | None, time: int) -> None:
        self.key = key
        self.parent = parent
        self.time = time
        self.children: dict[bytes, _Node] = {}
        self.held = 0
        self.queued = False


class Match:
    """A cached prefix that is pinned until `PrefixCache.release`; ``tokens`` is its length."""

    __slots__ = ("_node", "tokens")

    def __init__(self, tokens: int, node: _Node) -> None:
        self.tokens = tokens
        self._node: _Node | None = node


class PrefixCache:
    """The cached prefixes, in blocks of ``block_tokens`` tokens.

    Keys are token ids, 8 bytes each; what is left after the last whole block of a
    key is ignored. Ids are compared as bytes, so equal ids must mean equal text.
    The cache has no capacity of its own: the owner of the blocks counts
    `size_blocks` against its pool and calls `evict`.

    ``match`` and ``insert`` cost O(edges on the path x log of their blocks) besides
    one comparison of the key; ``evict`` costs O(log of the edges) for each edge that
    it removes or that was used since it was last looked at.

    Raises:
        ValueError: ``block_tokens`` is below 1.
    """

    __slots__ = (
        "_block_bytes",
        "_heap",
        "_pushes",
        "_root",
        "_time",
        "block_tokens",
        "pinned_blocks",
        "size_blocks",
    )

    def __init__(self, block_tokens: int) -> None:
        if block_tokens < 1:
            raise ValueError(f"block_tokens: expected >= 1, got {block_tokens}")
        self.block_tokens = block_tokens
        self.size_blocks = 0
        """Blocks in the trie, pinned or not."""
        self.pinned_blocks = 0
        """Blocks that lie on the path of some match not yet released."""
        self._block_bytes = block_tokens * ID_BYTES
        self._root = _Node(b"", None, 0)
        self._time = 0
        # (time, push number, node): one entry a node at most. The time is that of the push, so a
        # lower bound of the node's; entries of nodes that stopped being leaves are dropped when met.
        self._heap: list[tuple[int, int, _Node]] = []
        self._pushes = 0

    @property
    def evictable_blocks(self) -> int:
        """Blocks that `evict` could free now."""
        return self.size_blocks - self.pinned_blocks

    def match(self, ids: bytes) -> Match:
        """The longest cached prefix of ``ids``, pinned and marked as used.

        ``tokens`` is a multiple of ``block_tokens`` and may be the whole key. To pin
        what was just inserted, match it.
        """
        node, at = self._walk(ids, len(ids) - len(ids) % self._block_bytes)
        match = Match(at // ID_BYTES, node)
        while node is not self._root:
            node.held += 1
            if node.held > 1:
                break
            self.pinned_blocks += len(node.key) // self._block_bytes
            assert node.parent is not None
            node = node.parent
        return match

    def release(self, match: Match) -> None:
        """Unpins a match; the order of use stays as it is.

        Raises:
            ValueError: The match was released before.
        """
        node = match._node
        if node is None:
            raise ValueError(f"match of {match.tokens} tokens: released twice")
        match._node = None
        while node is not self._root:
            node.held -= 1
            if node.held:
                break
            self.pinned_blocks -= len(node.key) // self._block_bytes
            if not node.children:
                self._queue(node)
            assert node.parent is not None
            node = node.parent

    def insert(self, ids: bytes) -> int:
        """Stores the whole blocks of ``ids`` and marks them as used: how many of them are new."""
        end = len(ids) - len(ids) % self._block_bytes
        node, at = self._walk(ids, end)
        if at == end:
            return 0
        leaf = _Node(ids[at:end], node, self._time)
        node.children[ids[at : at + self._block_bytes]] = leaf
        self._queue(leaf)
        new = (end - at) // self._block_bytes
        self.size_blocks += new
        return new

    def evict(self, blocks: int) -> int:
        """Frees up to ``blocks`` blocks, least recently used first: how many were freed.

        Only what no match pins and no cached prefix continues goes; a leaf edge with
        more blocks than needed loses its last ones, as in TGI. The result is
        ``min(blocks, evictable_blocks)``.
        """
        heap, block = self._heap, self._block_bytes
        wanted = left = max(blocks, 0)
        while left > 0 and heap:
            time, _, node = heap[0]
            if node.children or node.held:
                heappop(heap)
                node.queued = False
                continue
            if time != node.time:
                self._pushes += 1
                heapreplace(heap, (node.time, self._pushes, node))
                continue
            size = len(node.key) // block
            if size > left:
                node.key = node.key[: -left * block]
                left = 0
                break
            heappop(heap)
            left -= size
            parent = node.parent
            assert parent is not None
            del parent.children[node.key[:block]]
            if not parent.children and not parent.held and parent is not self._root:
                self._queue(parent)
        self.size_blocks -= wanted - left
        return wanted - left

    def clear(self) -> int:
        """Frees every block that is not pinned: how many."""
        return self.evict(self.size_blocks)

    def _queue(self, leaf: _Node) -> None:
        if not leaf.queued:
            leaf.queued = True
            self._pushes += 1
            heappush(self._heap, (leaf.time, self._pushes, leaf))

    def _walk(self, ids: bytes, end: int) -> tuple[_Node, int]:
        """The node where the cached prefix of ``ids[:end]`` ends, and its bytes; marks it as used."""
        block = self._block_bytes
        self._time = time = self._time + 1
        node, at = self._root, 0
        while at < end:
            child = node.children.get(ids[at : at + block])
            if child is None:
                break
            key = child.key
            if not ids.startswith(key, at):
                common = _common_bytes(key, ids, at, block)
                return self._split(child, common), at + common
            child.time = time
            node = child
            at += len(key)
        return node, at

    def _split(self, node: _Node, length: int) -> _Node:
        """Cuts the edge after ``length`` bytes: the new upper part. The lower one stays the same node."""
        block, key, parent = self._block_bytes, node.key, node.parent
        assert parent is not None
        upper = _Node(key[:length], parent, self._time)
        upper.held = 1 if node.held else 0
        upper.children[key[length : length + block]] = node
        parent.children[key[:block]] = upper
        node.key = key[length:]
        node.parent = upper
        return upper


def _common_bytes(key: bytes, ids: bytes, at: int, block: int) -> int:
    """Bytes of the blocks that ``key`` and ``ids[at:]`` share: at least the first, not all."""
    # Doubling first: what prompts share is short beside what they do not.
    low, step = block, block
    while ids.startswith(key[low : low + step], at + low) and low + step < len(key):
        low += step
        step *= 2
    high = min(low + step, len(key))
    # Blocks below low agree, some block below high does not.
    while high - low > block:
        middle = low + (high - low) // (2 * block) * block
        if ids.startswith(key[low:middle], at + low):
            low = middle
        else:
            high = middle
    return low
