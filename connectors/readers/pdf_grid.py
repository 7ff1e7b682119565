"""Makes rows of the cells of a ruled table, and segments of the rows. Pure: no PDF library here.

A table is a heading with the names of its columns, then one CSV line per row, as sheets are given. A
table that goes on at the top of the next page has no second heading, and a header that it repeats
there is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from connectors.document import Segment, Span
from connectors.readers.pdf_boxes import Box, turn_box, within_page
from connectors.readers.table_header import (
    Head,
    Merge,
    Row,
    column_names,
    filled,
    find_head,
    has_numbers_below,
)
from connectors.readers.table_rows import csv_line

_SAME_BORDER = 1.5
"""Points within which two lines are one."""
_MIN_SIDE, _MIN_FILLED = 2, 3
"""Fewest rows and columns with text, and cells with text: less is a frame around text."""
_MAX_CELL_CHARS, _MAX_CELL_LINES = 1000, 12
"""A longer cell is a part of the page's layout, such as a column in a frame."""
_MIN_STACK, _MAX_STACKED = 3, 0.2
"""Numbers below each other in one cell, and the share of such cells above which the lines are those of
groups of rows, not of rows."""
_SAME_COLUMNS = 0.01
"""Share of the page's width by which the borders of a table may move from one page to the next."""
_MAX_RUNNING_LINES, _MARGIN = 3, 0.2
"""Between a table and its rest on the next page are at most so many lines, or what fits into so much of
either page: footers and headers."""


class Cell(NamedTuple):
    """One cell with its lines of text, in points on the page turned as its text asks."""

    lines: Sequence[str]
    box: Box

    @property
    def is_stack(self) -> bool:
        """Whether it holds numbers of several rows."""
        return len(self.lines) >= _MIN_STACK and not any(
            char.isalpha() or char.isspace() for line in self.lines for char in line
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A ruled table. Rows have as many cells as there are columns; those without text are left out."""

    num_before: int = 0
    """Lines of the page in front of it."""
    rows: Sequence[Row]
    boxes: Mapping[int, Box]
    """By row number, as fractions of the turned page."""
    merges: Mapping[int, Sequence[Merge]]
    borders: Sequence[float]
    """Of the columns, from left to right, as fractions of the turned page's width."""

    @property
    def top(self) -> float:
        """Where it begins on the turned page, as a fraction of its height."""
        return min(box[1] for box in self.boxes.values())

    @property
    def bottom(self) -> float:
        """Where it ends."""
        return max(box[3] for box in self.boxes.values())


def make_grid(cells: Sequence[Cell], width: float, height: float) -> Grid | None:
    """Return the table that the cells make; None where they are the frame of something else.

    Args:
        cells: All cells of a table.
        width: The turned page's width in points.
        height: Its height.
    """
    columns, lines = _borders(cells, 0), _borders(cells, 1)
    table: dict[int, list[str]] = {}
    boxes: dict[int, list[Box]] = {}
    merges: dict[int, list[Merge]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.box[1], cell.box[0])):
        left, top = _index(columns, cell.box[0]), _index(lines, cell.box[1])
        right, bottom = _index(columns, cell.box[2]) - 1, _index(lines, cell.box[3]) - 1
        if right > left or bottom > top:
            merges.setdefault(top + 1, []).append(Merge(top + 1, left, bottom + 1, right))
        if cell.lines:
            row = table.setdefault(top + 1, [""] * (len(columns) - 1))
            # Cells that lie over each other are drawn by some programs.
            row[left] = " ".join([row[left], *cell.lines]).lstrip()
            boxes.setdefault(top + 1, []).append(cell.box)
    rows = [Row(number, table[number]) for number in sorted(table)]
    if not _is_table(rows) or _is_layout(cells):
        return None
    for number, parts in boxes.items():
        parts.append((columns[0], lines[number - 1], columns[-1], lines[number]))
    return Grid(
        rows=rows,
        boxes={
            number: (x0 / width, y0 / height, x1 / width, y1 / height)
            for number, parts in boxes.items()
            for x0, y0, x1, y1 in (_around(parts),)
        },
        merges=merges,
        borders=[border / width for border in columns],
    )


def _borders(cells: Sequence[Cell], axis: int) -> list[float]:
    borders: list[float] = []
    for place in sorted(cell.box[side] for cell in cells for side in (axis, axis + 2)):
        if not borders or place - borders[-1] > _SAME_BORDER:
            borders.append(place)
    return borders


def _index(borders: Sequence[float], place: float) -> int:
    return min(range(len(borders)), key=lambda index: abs(borders[index] - place))


def _is_table(rows: Sequence[Row]) -> bool:
    used = {column for row in rows for column in filled(row)}
    cells = [cell for row in rows for cell in row.cells if cell]
    return (
        min(len(rows), len(used)) >= _MIN_SIDE
        and len(cells) >= _MIN_FILLED
        and max(map(len, cells)) <= _MAX_CELL_CHARS
    )


def _is_layout(cells: Sequence[Cell]) -> bool:
    """Say whether the cells hold more than a table's do."""
    filled_cells = [cell for cell in cells if cell.lines]
    num_stacks = sum(cell.is_stack for cell in filled_cells)
    return max(
        len(cell.lines) for cell in filled_cells
    ) > _MAX_CELL_LINES or num_stacks > _MAX_STACKED * len(filled_cells)


class _Open(NamedTuple):
    """The table that a page ended with, and may go on on the next one."""

    page: int
    borders: Sequence[float]
    header: Sequence[Sequence[str]]


class Place(NamedTuple):
    """The page of a table, the quarter turns that it was given, and its lines around the table."""

    page: int
    turn: int
    num_above: int
    num_below: int


class TableSegments:
    """Gives the tables of a document as segments, in order."""

    def __init__(self) -> None:
        self._open: _Open | None = None

    def segments(self, grid: Grid, place: Place) -> Iterator[Segment]:
        """Yield the heading of a table and its rows."""
        last, self._open = self._open, None
        head = find_head(grid.rows, 0, len(grid.borders) - 2, grid.merges)
        header = [row.cells for row in grid.rows[head.start : head.stop]] if head else []
        if last is not None and _goes_on(last, place, grid, head):
            repeated = grid.rows[: len(last.header)]
            is_repeated = [row.cells for row in repeated] == [*last.header]
            body, header = grid.rows[len(repeated) if is_repeated else 0 :], [*last.header]
        else:
            top, text = _heading(grid, head)
            yield Segment(kind="heading", text=text, span=_span(grid, top or grid.rows, place))
            numbers = {row.number for row in top}
            body = [row for row in grid.rows if row.number not in numbers]
        for row in body:
            text = csv_line(row.cells[: filled(row)[-1] + 1])
            yield Segment(kind="table", text=text, span=_span(grid, [row], place))
        if place.num_below <= _MAX_RUNNING_LINES or grid.bottom >= 1 - _MARGIN:
            self._open = _Open(place.page, grid.borders, header)


def _goes_on(last: _Open, place: Place, grid: Grid, head: Head | None) -> bool:
    if place.page != last.page + 1:
        return False
    if place.num_above > _MAX_RUNNING_LINES and grid.top > _MARGIN:
        return False
    if len(grid.borders) != len(last.borders) or any(
        abs(ours - theirs) > _SAME_COLUMNS
        for ours, theirs in zip(grid.borders, last.borders, strict=True)
    ):
        return False
    # A header of its own makes it another table.
    own = [row.cells for row in grid.rows[: len(last.header)]] != [*last.header]
    return not (own and head is not None and has_numbers_below(grid.rows, head))


def _heading(grid: Grid, head: Head | None) -> tuple[list[Row], str]:
    """Return the rows that are the table's titles and header, and what chunks of it begin with."""
    num_columns = len(grid.borders) - 1
    start, stop = head or (0, 0)
    header = grid.rows[start:stop]
    titles = [row for row in grid.rows[:start] if len(filled(row)) == 1]
    parts = ["Table"]
    if titles:
        parts.append(f"title: {' / '.join(row.cells[filled(row)[0]] for row in titles)}")
    names = column_names(header, 0, num_columns - 1, grid.merges)
    parts.append(f"columns: {csv_line(names)}" if head else f"{num_columns} columns")
    return [*titles, *header], ", ".join(parts)


def _span(grid: Grid, rows: Sequence[Row], place: Place) -> Span:
    around = _around([grid.boxes[row.number] for row in rows])
    return Span(page=place.page, bbox=within_page(turn_box(around, -place.turn)))


def _around(boxes: Sequence[Box]) -> Box:
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return (min(x0), min(y0), max(x1), max(y1))
