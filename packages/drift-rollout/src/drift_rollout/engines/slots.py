"""Who holds which row of the cache, and what a newcomer can take over from those who are there."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from drift_rollout.engine import Request
from drift_rollout.engines.kv_cache import SlotCache


@dataclass(slots=True, eq=False)
class Sequence:
    """One request and what the engine knows of it; it holds a cache while it has a row."""

    request: Request
    tokens: list[int]
    """The prompt, then what was sampled; the last one is never cached yet."""
    limit: int
    """Length at which sampling stops."""
    root: tuple[int, ...]
    """The first prompt of its trajectory, which its tokens begin with."""
    row: int = -1
    """Its row of the cache, −1 for none."""
    cached: int = 0
    """How many of its tokens lie in the cache."""
    logprobs: list[float] = field(default_factory=list)
    active: bool = False

    @property
    def used(self) -> int:
        """Columns of its row that hold something, or will in the next pass."""
        return len(self.tokens) if self.active else self.cached

    @property
    def need(self) -> int:
        """Columns that its row may come to need before it finishes."""
        return self.limit if self.active else self.cached


class Slots:
    """Rows of a cache and their holders.

    Args:
        cache: the tensors.
    """

    def __init__(self, cache: SlotCache) -> None:
        self._cache = cache
        self._rows: list[Sequence | None] = []
        self._roots: dict[tuple[int, ...], Sequence] = {}

    @property
    def demand(self) -> tuple[int, int]:
        """Rows that are held, and the columns that the longest of them may come to need."""
        needs = [s.need for s in self._rows if s is not None]
        return len(needs), max(needs, default=0)

    def take(self, sequence: Sequence) -> None:
        """Give a sequence a row, if it has none."""
        if sequence.row >= 0:
            return
        if None not in self._rows:
            self._rows.append(None)
        sequence.row = self._rows.index(None)
        self._rows[sequence.row] = sequence

    def drop(self, sequence: Sequence) -> None:
        """Take a sequence's row, and with it its cache."""
        if sequence.row >= 0:
            self._rows[sequence.row] = None
        if self._roots.get(sequence.root) is sequence:
            del self._roots[sequence.root]
        sequence.row, sequence.cached = -1, 0

    def inherit(self, sequence: Sequence, before: Sequence) -> None:
        """Hand a finished sequence's row over, as far as the new tokens begin with what it holds."""
        common = _common_prefix(before.tokens[: before.cached], sequence.tokens[:-1])
        row, root = before.row, before.root
        self.drop(before)
        if row < 0 or common == 0:
            return
        sequence.row, sequence.cached = row, common
        self._rows[row] = sequence
        if common >= len(root):
            sequence.root = root
            self._roots.setdefault(root, sequence)

    def sources(self, newcomers: Many[Sequence]) -> list[tuple[Sequence, Sequence]]:
        """Pairs (holder, newcomer) in which the newcomer can copy its first prompt from the holder.

        The holder may itself be a newcomer: the first of several with equal prompts.
        """
        pairs = []
        for sequence in newcomers:
            holder = self._roots.setdefault(sequence.root, sequence)
            if sequence.cached == 0 and holder is not sequence:
                pairs.append((holder, sequence))
        return pairs

    def copy(self, pairs: Many[tuple[Sequence, Sequence]]) -> None:
        """Copy what each holder has of the first prompt that it shares with the newcomer."""
        for holder, sequence in pairs:
            shared = min(len(sequence.root), holder.cached)
            sequence.cached = min(shared, len(sequence.tokens) - 1)
        if pairs:
            width = max(s.cached for _, s in pairs)
            self._cache.move([s.row for s, _ in pairs], [s.row for _, s in pairs], width)

    def gather(self, sequences: Many[Sequence]) -> None:
        """Bring sequences into the first rows, in any order, swapping with whoever is there."""
        count = len(sequences)
        members = {id(s) for s in sequences}
        late = [s.row for s in sequences if s.row >= count]
        if not late:
            return
        holes = [row for row in range(count) if id(self._rows[row]) not in members]
        source, target = [*late, *holes], [*holes, *late]
        moved = [self._rows[row] for row in source]
        self._cache.move(source, target, max(s.cached for s in moved if s is not None))
        for row, sequence in zip(target, moved, strict=True):
            self._rows[row] = sequence
            if sequence is not None:
                sequence.row = row

    def reserve(self) -> None:
        """Make the cache large enough for all tokens of all holders."""
        while self._rows and self._rows[-1] is None:
            self._rows.pop()
        holders = [s for s in self._rows if s is not None]
        length = max((s.used for s in holders), default=0)
        if not self._cache.holds(len(self._rows), length):
            self.gather(holders)
            del self._rows[len(holders) :]
        self._cache.reserve(len(self._rows), length)

    def clear(self) -> None:
        """Forget all holders."""
        self._rows.clear()
        self._roots.clear()


def _common_prefix(first: Many[int], second: Many[int]) -> int:
    size = min(len(first), len(second))
    if first[:size] == second[:size]:
        return size
    return next(i for i in range(size) if first[i] != second[i])
