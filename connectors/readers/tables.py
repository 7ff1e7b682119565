"""Finds the tables on a sheet: where each begins and ends, its title and its header. Pure.

Blank rows part a sheet. What stands below a gap is a table of its own where it begins with a new
header; without one it goes on with the table above if its columns lie inside of that table's and
at most two rows are blank, and else it is a block without a header. A row looks like a header if
it is all short words, or years, and fills half of the width; below a table it is a new one if
numbers follow under its words, if a title or a second blank row is above it, if it repeats the
header above, or if its columns lie outside of the table's.

Blank columns part what is left where both sides are two columns wide and have a header, and the
right side can be read alone: its first column holds words, or has the name of the first column on
the left, or its rows are others. A blank column that only sets figures apart parts nothing.

A line of one cell right above a header, or alone above it and not nearer to the table before, is
the table's title. Tables that the author has marked (Excel's tables) come first: they are cut out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from connectors.readers.table_header import (
    MAX_HEAD_ROW,
    NUM_ROWS_COMPARED,
    Head,
    Merge,
    Merges,
    Row,
    column_names,
    ends,
    extent,
    filled,
    find_head,
    has_numbers_below,
    is_name,
)

_MAX_GAP_ROWS = 2
"""Blank rows that a table may have inside, and a title below it."""
_MAX_TITLE_CHARS = 120
_MAX_TITLES = 3
_NUM_ROWS_SAMPLED = 60
"""Rows that decide whether a blank column parts two tables."""
_SAME_ROWS = 0.8
"""Share of rows above which two sides of a blank column are taken for one table."""


class Marked(NamedTuple):
    """Where the author of a sheet has marked a table: rows from 1, columns as indices into cells."""

    name: str
    top: int
    left: int
    bottom: int
    right: int
    has_header: bool
    num_totals: int = 0
    """Rows at its end that sum up those above."""


class Table(NamedTuple):
    """One table of a sheet; each of its rows is a title, in the header or in the body."""

    titles: Sequence[Row]
    header: Sequence[Row]
    body: Sequence[Row]
    names: Sequence[str]
    """Column names from column `left` on, `Group / Name` under merged cells; empty without header."""
    left: int
    right: int
    name: str = ""
    """What the author has called it, where it is marked."""
    num_totals: int = 0
    """Rows at the end of the body that sum up those above, as far as they are marked."""


@dataclass(slots=True)
class _Part:
    """Rows that belong together, from column `first` to `last`."""

    rows: list[Row]
    first: int
    last: int
    head: Head | None
    titles: list[Row] = field(default_factory=list)

    @property
    def width(self) -> int:
        return self.last - self.first + 1

    def holds(self, other: _Part) -> bool:
        """Tell whether the other's columns lie inside of this one's."""
        return self.first <= other.first and other.last <= self.last

    def extend(self, below: _Part) -> None:
        """Take the rows of the part below."""
        self.rows.extend(below.rows)
        self.first = min(self.first, below.first)
        self.last = max(self.last, below.last)


def find_tables(
    rows: Sequence[Row], merges: Iterable[Merge] = (), marked: Iterable[Marked] = ()
) -> list[Table]:
    """Return the tables of a sheet from top to bottom, and from left to right within a band.

    Each cell lies in exactly one table. Rows keep their numbers and cells their columns; where
    tables stand side by side, each has the rows with the other's cells left blank. Tables that
    are marked are as their author says, whatever stands around them.
    """
    by_top: dict[int, list[Merge]] = {}
    for merge in merges:
        by_top.setdefault(merge.top, []).append(merge)
    left = rows
    cut: list[tuple[Marked, Table]] = []
    for area in marked:
        table, left = _cut_out(left, area, by_top)
        cut += [(area, table)] if table is not None else []
    if not cut:
        return list(_tables(rows, [], by_top)) if rows else []
    titled = [_with_title(table, area, rows, left) for area, table in cut]
    titles = {row.number for table in titled for row in table.titles}
    left = [row for row in left if row.number not in titles]
    borders = sorted({border for area, _ in cut for border in (area.top, area.bottom + 1)})
    others = [table for band in _bands(left, borders) for table in _tables(band, [], by_top)]
    return sorted([*titled, *others], key=_place)


def _bands(rows: Sequence[Row], borders: Sequence[int]) -> Iterator[list[Row]]:
    """Yield rows in one piece, parted at blank rows where a marked table begins or ends."""
    start = 0
    for index in range(1, len(rows) + 1):
        if index < len(rows):
            above, below = rows[index - 1].number, rows[index].number
            if below == above + 1 or bisect_right(borders, above) == bisect_right(borders, below):
                continue
        yield list(rows[start:index])
        start = index


def _place(table: Table) -> tuple[int, int]:
    return min(row.number for row in (*table.titles, *table.header, *table.body)), table.left


def _cut_out(
    rows: Sequence[Row], area: Marked, merges: Merges
) -> tuple[Table | None, Sequence[Row]]:
    """Return the table in an area, None where it has no cell, and the rows without its cells."""
    start = bisect_left(rows, area.top, key=_number)
    stop = bisect_right(rows, area.bottom, key=_number)
    inside: list[Row] = []
    outside: list[Row] = []
    for row in rows[start:stop]:
        own = row.cells[area.left : area.right + 1]
        if not any(own):
            outside.append(row)
            continue
        inside.append(Row(row.number, [*[""] * area.left, *own]))
        rest = [*row.cells[: area.left], *[""] * len(own), *row.cells[area.right + 1 :]]
        if any(rest):
            outside.append(Row(row.number, rest))
    if not inside:
        return None, rows
    num_header = int(area.has_header and inside[0].number == area.top and len(inside) > 1)
    header, body = inside[:num_header], inside[num_header:]
    # The mark may reach far beyond the cells that are used.
    right = min(area.right, max(len(row.cells) for row in inside) - 1)
    names = column_names(header, area.left, right, merges) if header else ()
    num_totals = min(area.num_totals, max(0, len(body) - 1))
    table = Table((), header, body, names, area.left, right, area.name, num_totals)
    return table, [*rows[:start], *outside, *rows[stop:]]


def _number(row: Row) -> int:
    return row.number


def _with_title(table: Table, area: Marked, rows: Sequence[Row], left: Sequence[Row]) -> Table:
    """Return the table with the line right above it, where that stands alone.

    Args:
        table: The table in the area.
        area: Where it is.
        rows: All of the sheet's rows.
        left: What is in no marked table.
    """
    index = bisect_left(left, area.top - 1, key=_number)
    line = left[index] if index < len(left) and left[index].number == area.top - 1 else None
    if line is None or not _is_title(line):
        return table
    column = filled(line)[0]
    above = bisect_left(rows, area.top - 2, key=_number)
    stands_alone = not (
        above < len(rows)
        and rows[above].number == area.top - 2
        and any(rows[above].cells[column : column + 1])
    )
    is_over = area.left <= column <= area.right
    return table._replace(titles=(line,)) if is_over and stands_alone else table


def _tables(rows: Sequence[Row], titles: Sequence[Row], merges: Merges) -> Iterator[Table]:
    parts = _parts(rows, merges)
    if parts[0].head is not None:
        parts[0].titles[:0] = titles
    elif titles:
        parts = _parts([*titles, *rows], merges)
    for part in parts:
        spans = _column_spans(part, merges)
        if len(spans) == 1:
            yield _table(part, merges)
            continue
        for start, stop in spans:
            is_last = stop == spans[-1][1]
            own = [
                title
                for title in part.titles
                if start <= (column := filled(title)[0]) and (is_last or column < stop)
            ]
            yield from _tables(_cropped(part.rows, start, stop), own, merges)


def _parts(rows: Sequence[Row], merges: Merges) -> list[_Part]:
    """Return the parts that blank rows make, in order."""
    joined: list[_Part] = []
    for run in _runs(rows):
        below = _part(run, merges)
        head = _head_over_gap(joined[-1], below, merges) if joined else None
        if head is not None:
            joined[-1].head = head
        if head is not None or (joined and _goes_on(joined[-1], below)):
            joined[-1].extend(below)
        else:
            joined.append(below)
    parts: list[_Part] = []
    for part in joined:
        if parts and part.head is not None:
            _take_titles(parts[-1], part)
            if not parts[-1].rows:
                parts.pop()
        if parts and parts[-1].head is None and part.head is None:
            parts[-1].extend(part)
        else:
            parts.append(part)
    return parts


def _runs(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Yield the rows between blank ones."""
    start = 0
    for index in range(1, len(rows) + 1):
        if index == len(rows) or rows[index].number != rows[index - 1].number + 1:
            yield list(rows[start:index])
            start = index


def _part(rows: list[Row], merges: Merges) -> _Part:
    first, last = _extent(rows)
    return _Part(rows, first, last, find_head(rows, first, last, merges))


def _extent(rows: Iterable[Row]) -> tuple[int, int]:
    """Return the first and last column of the rows with several cells, or of all if there is none.

    A title may stand beside its table.
    """
    columns = [ends(row) for row in rows if any(row.cells)]
    wide = [(first, last) for first, last in columns if first < last] or columns
    return min(first for first, _ in wide), max(last for _, last in wide)


def _goes_on(above: _Part, below: _Part) -> bool:
    """Tell whether what is below a gap belongs to the table above it.

    Parts without a header are only joined at the end: a header may yet turn out to be one.
    """
    return above.head is not None and _is_near(above, below) and not _is_new(above, below)


def _is_near(above: _Part, below: _Part) -> bool:
    return _gap(above, below) <= _MAX_GAP_ROWS and above.holds(below)


def _gap(above: _Part, below: _Part) -> int:
    return below.rows[0].number - above.rows[-1].number - 1


def _is_new(above: _Part, below: _Part) -> bool:
    """Tell whether the part below a table has a header of its own."""
    if above.head is None or below.head is None:
        return False
    if has_numbers_below(below.rows, below.head):
        return True
    repeats = above.rows[above.head.start].cells == below.rows[below.head.start].cells
    return below.width > 1 and (_gap(above, below) > 1 or below.head.start > 0 or repeats)


def _head_over_gap(above: _Part, below: _Part, merges: Merges) -> Head | None:
    """Return the header that the part above ends with, if what it is for is below the gap."""
    if above.head is not None or above.width == 1 or not _is_near(above, below):
        return None
    if below.head is not None and has_numbers_below(below.rows, below.head):
        return None
    rows = [*above.rows[-MAX_HEAD_ROW:], *below.rows[:NUM_ROWS_COMPARED]]
    head = find_head(rows, above.first, above.last, merges)
    # Longer parts are more than a header.
    return head if head is not None and head.stop == len(above.rows) else None


def _take_titles(above: _Part, below: _Part) -> None:
    """Give the lines of one cell at the end of the part above to the table below them."""
    lines = above.rows[-_MAX_TITLES:]
    if above.head is None and len(lines) == len(above.rows) and all(map(_is_title, lines)):
        num_lines = len(lines)
    else:
        num_lines = 1 if len(above.rows) > 1 and _is_title(lines[-1]) else 0
    gap = below.rows[0].number - lines[-1].number - 1
    if not num_lines or gap > _MAX_GAP_ROWS:
        return
    if num_lines < len(above.rows):
        distance = lines[-1].number - above.rows[-2].number - 1
        is_only_row = above.head is not None and above.head.stop >= len(above.rows) - 1
        if distance < max(1, gap) or is_only_row:
            return
    below.titles[:0] = above.rows[-num_lines:]
    del above.rows[-num_lines:]


def _column_spans(part: _Part, merges: Merges) -> list[tuple[int, int]]:
    """Return the column ranges `[start:stop]` of tables side by side; together they cover all."""
    columns = sorted(_used_columns(part.rows, merges))
    groups: list[tuple[int, int]] = []
    for column in columns:
        if groups and groups[-1][1] == column:
            groups[-1] = (groups[-1][0], column + 1)
        else:
            groups.append((column, column + 1))
    end = max((len(row.cells) for row in part.rows), default=0)
    if len(groups) < 2:
        return [(0, end)]
    spans = [groups[0]]
    for group in groups[1:]:
        if _stands_alone(part.rows, spans[-1], group, merges):
            spans.append(group)
        else:
            spans[-1] = (spans[-1][0], group[1])
    starts = [0, *(start for start, _ in spans[1:])]
    return list(zip(starts, [*starts[1:], end], strict=True))


def _used_columns(rows: Iterable[Row], merges: Merges) -> set[int]:
    """Return the columns with a value in a row of several cells; a title may stand anywhere."""
    used: set[int] = set()
    full: set[int] = set()
    for row in rows:
        if all(row.cells) and row.number not in merges:
            # Most rows of most tables; as many cells as one that was looked at add nothing.
            if len(row.cells) > 1 and len(row.cells) not in full:
                full.add(len(row.cells))
                used.update(range(len(row.cells)))
            continue
        cells = filled(row)
        if len(cells) > 1:
            used.update(cells)
            for merge in merges.get(row.number, ()):
                if merge.left in cells:
                    used.update(range(merge.left, merge.right + 1))
    return used


def _stands_alone(
    rows: Sequence[Row],
    left: tuple[int, int],
    right: tuple[int, int],
    merges: Merges,
) -> bool:
    """Tell whether what is right of a blank column is a table of its own."""
    if left[1] - left[0] < 2 or right[1] - right[0] < 2:
        return False
    sides = [
        _part(cut, merges) for span in (left, right) if (cut := _cropped(rows, *span, sample=True))
    ]
    if len(sides) < 2 or any(side.head is None for side in sides):
        return False
    keys = {side.rows[side.head.start].cells[side.first] for side in sides if side.head}
    sizes = sorted(sum(any(row.cells[slice(*span)]) for row in rows) for span in (left, right))
    return len(keys) == 1 or sizes[0] < sizes[1] * _SAME_ROWS or _has_labels(sides[1])


def _has_labels(part: _Part) -> bool:
    """Tell whether most cells of the first column are words."""
    start = part.head.stop if part.head else 0
    column = slice(part.first, part.first + 1)
    cells = [cell for row in part.rows[start:] for cell in row.cells[column] if cell]
    return sum(map(is_name, cells)) * 2 > len(cells)


def _cropped(rows: Sequence[Row], start: int, stop: int, *, sample: bool = False) -> list[Row]:
    """Return the rows with a value in the columns `[start:stop]`, the other cells left blank."""
    blank = [""] * start
    cut = (
        Row(row.number, [*blank, *row.cells[start:stop]])
        for row in (rows[:_NUM_ROWS_SAMPLED] if sample else rows)
    )
    return [row for row in cut if any(row.cells)]


def _table(part: _Part, merges: Merges) -> Table:
    if part.head is None:
        rows = [*part.titles, *part.rows]
        return Table((), (), rows, (), *extent(rows))
    start, stop = part.head
    first = start
    while first > 0 and start - first < _MAX_TITLES and _is_title(part.rows[first - 1]):
        first -= 1
    header = part.rows[start:stop]
    body = [*part.rows[:first], *part.rows[stop:]]
    left, right = extent([*header, *body])
    names = column_names(header, left, right, merges)
    return Table((*part.titles, *part.rows[first:start]), header, body, names, left, right)


def _is_title(row: Row) -> bool:
    cells = [cell for cell in row.cells if cell]
    return (
        len(cells) == 1
        and len(cells[0]) <= _MAX_TITLE_CHARS
        and any(char.isalpha() for char in cells[0])
    )
