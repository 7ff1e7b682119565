"""In which order rows of a table are asked about, and their fields shown, so that prompts begin alike.

An engine computes what consecutive prompts begin with once. So rows that say the same in a column are
put one after the other with that field in front: of all values the one that saves most makes the first group,
the rows that are left make the next, and each group is then treated the same way. To group by all values of
the best column at once is tried too, and what shares most is taken. Pure.

Source: greedy group recursion, arXiv 2403.05821 (docs/decisions/0013-rows-in-shared-order.md says what
differs). It looks at repeated values and at columns that others follow from, and stops early.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

Fields = Sequence[tuple[str, str]]
"""One row: names of columns, each at most once, and values."""

MAX_VISITS = 10_000_000
"""Fields looked at in groups, the largest first, about a microsecond each; each way of grouping has as many.
Groups that are left then are sorted by fixed columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOrder:
    """An order of rows, and of the fields of each."""

    rows: tuple[int, ...]
    """Places of the rows, in the order in which they are asked about."""
    fields: tuple[tuple[int, ...], ...]
    """Of each row, by its own place: the places of its fields, in the order in which they are shown."""
    num_shared: tuple[int, ...]
    """Of each row, by its own place: how many fields it begins with as the row asked before it does."""


def text_bytes(column: str, value: str) -> int:
    """Return the bytes of a field in a line, with what stands between name, value and next field."""
    return len(column.encode()) + len(value.encode()) + len(":  | ")


def given_order(rows: Sequence[Fields]) -> RowOrder:
    """Return the order in which rows and fields are given."""
    table = _Table(rows, text_bytes)
    return table.order(range(len(rows)), table.rows)


def shared_order(
    rows: Sequence[Fields],
    *,
    weigh: Callable[[str, str], int] = text_bytes,
    max_visits: int = MAX_VISITS,
) -> RowOrder:
    """Return the order in which rows share most of what they begin with, as far as is found.

    It shares no less than the given order, than the rows sorted with their fields as given, and than the
    rows sorted by one order of columns. The same rows give the same order.

    Args:
        rows: Of one table. They need not have the same columns.
        weigh: What it costs to show a field once: its bytes, as prefilling does.
        max_visits: How many fields to look at in groups.
    """
    if not rows:
        return given_order(rows)
    table = _Table(rows, weigh)
    ranked = table.by_column()
    best: _Shown = (range(len(rows)), table.rows)
    most = table.saved(*best)
    others: Sequence[Callable[[], _Shown]] = (
        lambda: (_sorted(table.rows), table.rows),
        lambda: (_sorted(ranked), ranked),
        lambda: _Grouping(table, ranked, _Grouping.by_value, max_visits).run(),
        lambda: _Grouping(table, ranked, _Grouping.by_column, max_visits).run(),
    )
    for attempt in others:
        found = attempt()
        if (saved := table.saved(*found)) > most:
            best, most = found, saved
    return table.order(*best)


def _sorted(shown: Sequence[list[int]]) -> list[int]:
    """Return the places of rows sorted as they are shown, so that equal pairs come together."""
    return sorted(range(len(shown)), key=shown.__getitem__)


_Shown = tuple[Sequence[int], Sequence[list[int]]]
"""Places of rows in their order, and by place the pairs of each as they are shown."""


class _Table:
    """Rows as numbers of their (column, value) pairs, in the order in which these are met."""

    def __init__(self, rows: Sequence[Fields], weigh: Callable[[str, str], int]) -> None:
        pairs: dict[tuple[str, str], int] = {}
        columns: dict[str, int] = {}
        self.rows = [[pairs.setdefault(one, len(pairs)) for one in row] for row in rows]
        self.weights = [weigh(column, value) for column, value in pairs]
        self.columns = [columns.setdefault(column, len(columns)) for column, _ in pairs]
        self.values = [value for _, value in pairs]
        self.counts = [0] * len(pairs)
        for pair in itertools.chain.from_iterable(self.rows):
            self.counts[pair] += 1

    def order(self, places: Iterable[int], shown: Sequence[Sequence[int]]) -> RowOrder:
        """Return the order of rows by place, each with its pairs as they are shown."""
        rows = tuple(places)
        num_shared = [0] * len(rows)
        before: Sequence[int] = ()
        for place in rows:
            num_shared[place] = num_alike(before, shown[place])
            before = shown[place]
        fields = []
        for given, own in zip(self.rows, shown, strict=True):
            at = {pair: place for place, pair in enumerate(given)}
            fields.append(tuple([at[pair] for pair in own]))
        return RowOrder(rows=rows, fields=tuple(fields), num_shared=tuple(num_shared))

    def saved(self, places: Iterable[int], shown: Sequence[list[int]]) -> int:
        """Return the weight of what the rows begin with as the row before them does."""
        weights, before, total = self.weights, list[int](), 0
        for place in places:
            own = shown[place]
            for pair in own[: num_alike(before, own)]:
                total += weights[pair]
            before = own
        return total

    def by_column(self) -> list[list[int]]:
        """Return the rows with their fields in one order of columns: what saves most first."""
        saved = [0] * (max(self.columns, default=-1) + 1)
        for weight, column, count in zip(self.weights, self.columns, self.counts, strict=True):
            saved[column] += weight * (count - 1)
        ranks = [(-saved[column], column, pair) for pair, column in enumerate(self.columns)]
        return [sorted(row, key=ranks.__getitem__) for row in self.rows]

    @cached_property
    def implied(self) -> list[tuple[int, ...]]:
        """Return what each pair brings along: the pairs of the columns that follow from its own."""
        columns = [[-1] * len(self.rows) for _ in range(max(self.columns, default=-1) + 1)]
        for place, row in enumerate(self.rows):
            for pair in row:
                columns[self.columns[pair]][place] = pair
        repeated = {c for c, count in zip(self.columns, self.counts, strict=True) if count > 1}
        found: dict[int, list[int]] = defaultdict(list)
        for first, second in itertools.permutations(sorted(repeated), 2):
            for pair, other in _follows(columns[first], columns[second]).items():
                if other >= 0:
                    found[pair].append(other)
        return [tuple(found[pair]) if pair in found else () for pair in range(len(self.counts))]


def num_alike(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many numbers both begin with."""
    number = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        number += 1
    return number


def _follows(first: Sequence[int], second: Sequence[int]) -> dict[int, int]:
    """Return what each pair of the first column goes with in the second; empty where that differs."""
    found: dict[int, int] = {}
    for pair, other in zip(first, second, strict=True):
        if pair >= 0 and found.setdefault(pair, other) != other:
            return {}
    return found


@dataclass(slots=True)
class _Group:
    """Rows that begin alike, and the groups that they are taken apart into."""

    members: list[int]
    inner: list[_Group] = field(default_factory=list)


_Gains = Mapping[int, int]
"""What each pair saves per row but the first, with what follows from it."""
_Having = Mapping[int, list[int]]
"""Places of the rows that have a pair."""


class _Grouping:
    """Takes the rows of a table apart, group in group; each row lies in one group at a time."""

    def __init__(
        self,
        table: _Table,
        ranked: Sequence[Sequence[int]],
        choose: Callable[[_Grouping, _Gains, _Having], Sequence[tuple[int, list[int]]]],
        max_visits: int,
    ) -> None:
        self._table, self._ranked, self._left = table, ranked, max_visits
        self._choose, self._implied = choose, table.implied
        self._front: list[list[int]] = [[] for _ in ranked]
        self._open = [[pair for pair in row if table.counts[pair] > 1] for row in ranked]
        """Of each row the pairs that others of its group have too, and whose place is not settled."""

    def run(self) -> tuple[list[int], list[list[int]]]:
        """Return the places of the rows in their order, and each row's pairs in theirs."""
        whole = _Group(list(range(len(self._ranked))))
        tie = itertools.count()
        largest = [(-len(whole.members), next(tie), whole)]
        while largest and self._left > 0:
            group = heapq.heappop(largest)[-1]
            for inner in self._divide(group):
                if len(inner.members) > 1:
                    heapq.heappush(largest, (-len(inner.members), next(tie), inner))
        for _, _, group in largest:
            for place in group.members:
                self._front[place] += self._open[place]
            group.members.sort(key=self._front.__getitem__)
        shown = []
        for row, front in zip(self._ranked, self._front, strict=True):
            settled = set(front)
            shown.append([*front, *(pair for pair in row if pair not in settled)])
        return _in_order(whole), shown

    def _divide(self, group: _Group) -> Sequence[_Group]:
        """Put in front what all members share, and take them apart."""
        having: dict[int, list[int]] = defaultdict(list)
        for place in group.members:
            self._left -= len(self._open[place])
            for pair in self._open[place]:
                having[pair].append(place)
        num = len(group.members)
        common = [pair for pair in self._open[group.members[0]] if len(having[pair]) == num]
        some = {pair for pair, places in having.items() if 1 < len(places) < num}
        for place in group.members:
            self._front[place] += common
            self._open[place] = [pair for pair in self._open[place] if pair in some]
        if not some:
            return ()
        gains = {
            pair: self._table.weights[pair]
            + sum(self._table.weights[other] for other in self._implied[pair] if other in some)
            for pair in some
        }
        left = set(group.members)
        for pair, places in self._choose(self, gains, having):
            for place in places:
                self._front[place].append(pair)
                self._open[place].remove(pair)
            left.difference_update(places)
            group.inner.append(_Group(places))
        if left:
            group.inner.append(_Group([place for place in group.members if place in left]))
        return group.inner

    def by_column(self, gains: _Gains, having: _Having) -> list[tuple[int, list[int]]]:
        """Return the groups of the one column whose values save most."""
        columns = self._table.columns
        saved: dict[int, int] = defaultdict(int)
        for pair, gain in gains.items():
            saved[columns[pair]] += gain * (len(having[pair]) - 1)
        best = max(saved, key=lambda column: (saved[column], -column))
        chosen = [(pair, having[pair]) for pair in gains if columns[pair] == best]
        return sorted(chosen, key=self._place)

    def by_value(self, gains: _Gains, having: _Having) -> list[tuple[int, list[int]]]:
        """Return groups by the pair that saves most, of all columns, and so on with the rows that are left.

        Counts only fall, so a pair whose count has fallen goes back to its later place in the heap.
        """
        counts = {pair: len(having[pair]) for pair in gains}
        heap = [(-gain * (counts[pair] - 1), pair) for pair, gain in gains.items()]
        heapq.heapify(heap)
        taken: set[int] = set()
        chosen = []
        while heap:
            saved, pair = heapq.heappop(heap)
            if counts[pair] < 2:
                continue
            if (now := -gains[pair] * (counts[pair] - 1)) != saved:
                heapq.heappush(heap, (now, pair))
                continue
            places = [place for place in having[pair] if place not in taken]
            taken.update(places)
            for other in itertools.chain.from_iterable(map(self._open.__getitem__, places)):
                counts[other] -= 1
            chosen.append((pair, places))
        return sorted(chosen, key=self._place)

    def _place(self, chosen: tuple[int, list[int]]) -> tuple[int, str, int]:
        # Groups of one column stand together, and values that begin alike beside each other.
        pair, _ = chosen
        return self._table.columns[pair], self._table.values[pair], pair


def _in_order(whole: _Group) -> list[int]:
    """Return the members of the innermost groups; without recursion, since groups lie deep."""
    found: list[int] = []
    waiting = [whole]
    while waiting:
        group = waiting.pop()
        if group.inner:
            waiting += reversed(group.inner)
        else:
            found += group.members
    return found
