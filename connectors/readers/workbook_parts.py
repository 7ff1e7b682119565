"""Looks into the XML of an xlsx or xlsm file for what calamine does not tell.

That is error values, percentages and currencies, comments, hidden rows and columns, named tables. Sheets are
searched as bytes and not parsed, since a parser would take many times longer than calamine itself.
"""

from __future__ import annotations

import contextlib
import html
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self
from xml.etree import ElementTree as ET

from connectors.readers.table_rows import column_index

_BLOCK_BYTES = 1 << 20
_MAX_PARSED_BYTES = 64 << 20
"""Largest list of sheets, relationships or comments that is parsed."""
_HIDDEN_ROW = re.compile(rb'<(?:\w+:)?row\b[^>]*\shidden="(?:1|true)"[^>]*>')
_HIDDEN_COLUMNS = re.compile(rb'<(?:\w+:)?col\b[^>]*\shidden="(?:1|true)"[^>]*>')
_ERROR = re.compile(
    rb'<(?:\w+:)?c\b([^>]*\st="e"[^>]*)>'
    rb"(?:<(?:\w+:)?f\b(?:[^>]*/>|[^>]*>[^<]*</(?:\w+:)?f>))?"
    rb"<(?:\w+:)?v>([^<]+)<"
)
_PLACE = re.compile(rb'\sr="([A-Z]{1,3})(\d{1,7})"')
_NUMBER = re.compile(rb'\s(r|min|max)="(\d{1,7})"')
_LOCALE = re.compile(r"\[\$-[^\]]*\]")
_LITERAL = re.compile(r'"[^"]*"|\\.|_.|\*.|\[[^\]]*\]')
_CURRENCY = re.compile(r'\[\$([^\]-]+)|"\s*([A-Z]{3}|[$€£¥])\s*"|([$€£¥])')
_BUILTIN_PERCENT = ("9", "10")
_MAX_COLUMNS = 16_384


class PartsError(Exception):
    """The container or a part of it cannot be read."""


class Comment(NamedTuple):
    """A note on a cell."""

    cell: str
    author: str
    text: str


class Listed(NamedTuple):
    """A table that the author of a sheet has marked as one, under its name."""

    name: str
    cells: str
    """A1 range, header included."""
    has_header: bool
    num_totals: int
    """Rows at the end that sum up those above."""


_MAX_NAME_CHARS = 255
"""Excel's own limit for the name of a table."""

Marks = dict[int, dict[int, str]]
"""A text by row number, from 1, and column index, from 0."""


class SheetMarks(NamedTuple):
    """What the XML of a sheet tells."""

    errors: Marks
    """Values such as `#DIV/0!`."""
    units: Marks
    """`%` or the currency that a number is shown with."""
    hidden_rows: list[tuple[int, int]]
    """Ranges of row numbers, from 1."""
    hidden_columns: set[int]
    """Indices, from 0."""


@dataclass(frozen=True, slots=True)
class WorkbookParts:
    """The parts of an open workbook, by the names of its sheets."""

    archive: zipfile.ZipFile
    sheets: Mapping[str, str]
    units: Mapping[str, str]
    """`%` or a currency for each cell style that shows numbers with one, by its number."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the parts of an xlsx or xlsm file.

        Raises:
            PartsError: Its lists of sheets and styles cannot be read.
        """
        with _mapped(path.name):
            archive = zipfile.ZipFile(path)
        workbook = _workbook(archive)
        links = _links(archive, workbook)
        sheets = {}
        for element in _named(_tree(archive, workbook), "sheet"):
            link = next((value for name, value in element.items() if _local(name) == "id"), "")
            if link in links:
                sheets[element.get("name", "")] = links[link][1]
        styles = next((part for kind, part in links.values() if kind == "styles"), None)
        return cls(archive, sheets, _number_units(_tree(archive, styles)) if styles else {})

    def marks(self, sheet: str) -> SheetMarks:
        """Return what a sheet hides, its error values, and the units of its numbers.

        Raises:
            PartsError: The sheet's part is missing or damaged.
        """
        found = SheetMarks({}, {}, [], set())
        styled = _styled(self.units)
        for block in _blocks(self.archive, self.sheets.get(sheet, sheet)):
            for attributes, value in _ERROR.findall(block) if b't="e"' in block else ():
                _put(found.errors, attributes, html.unescape(value.decode(errors="replace")))
            for attributes, number in styled.findall(block) if styled else ():
                _put(found.units, attributes, self.units[number.decode()])
            # Blocks without the word, nearly all, are not searched.
            is_hiding = b"hidden=" in block
            for tag in _HIDDEN_ROW.findall(block) if is_hiding else ():
                ends = dict(_NUMBER.findall(tag))
                if b"r" in ends:
                    _add_row(found.hidden_rows, int(ends[b"r"]))
            for tag in _HIDDEN_COLUMNS.findall(block) if is_hiding else ():
                ends = dict(_NUMBER.findall(tag))
                stop = min(int(ends.get(b"max", 0)), _MAX_COLUMNS)
                found.hidden_columns.update(range(int(ends.get(b"min", 1)) - 1, stop))
        return found

    def comments(self, sheet: str) -> list[Comment]:
        """Return the comments on a sheet's cells, in the order of the file.

        Raises:
            PartsError: They are damaged.
        """
        found: list[Comment] = []
        for kind, target in _links(self.archive, self.sheets.get(sheet, sheet)).values():
            if kind == "comments":
                found += _notes(_tree(self.archive, target))
            elif kind == "threadedComment":
                tree = _tree(self.archive, target)
                found += [
                    Comment(thread.get("ref", ""), "", " ".join("".join(thread.itertext()).split()))
                    for thread in _named(tree, "threadedComment")
                ]
        return found

    def tables(self, sheet: str) -> list[Listed]:
        """Return the tables that are marked on a sheet.

        Raises:
            PartsError: One is damaged.
        """
        found = []
        for kind, target in _links(self.archive, self.sheets.get(sheet, sheet)).values():
            if kind == "table":
                tree = _tree(self.archive, target)
                name = tree.get("displayName") or tree.get("name") or ""
                totals = tree.get("totalsRowCount", "0")
                found.append(
                    Listed(
                        # On one line: the name goes into a line that the model sees.
                        name=" ".join(name.split())[:_MAX_NAME_CHARS],
                        cells=tree.get("ref", ""),
                        has_header=tree.get("headerRowCount", "1") != "0",
                        num_totals=int(totals) if totals.isdecimal() else 0,
                    )
                )
        return found


def _notes(tree: ET.Element) -> Iterator[Comment]:
    authors = [_text(element) for element in _named(tree, "author")]
    for element in _named(tree, "comment"):
        number = element.get("authorId", "")
        known = number.isdecimal() and int(number) < len(authors)
        author = authors[int(number)] if known else ""
        # A thread has a note beside it, for old programs, that says how to see the thread.
        if not author.startswith("tc={"):
            yield Comment(element.get("ref", ""), author, _text(element))


def _number_units(styles: ET.Element) -> dict[str, str]:
    formats = dict.fromkeys(_BUILTIN_PERCENT, "%")
    for entry in _named(styles, "numFmt"):
        formats[entry.get("numFmtId", "")] = _unit(entry.get("formatCode", ""))
    entries = [entry for element in _named(styles, "cellXfs") for entry in element]
    units = [formats.get(entry.get("numFmtId", ""), "") for entry in entries]
    return {str(number): unit for number, unit in enumerate(units) if unit}


def _styled(units: Mapping[str, str]) -> re.Pattern[bytes] | None:
    """Return what finds the cells whose style has a unit; None if no style has one."""
    if not units:
        return None
    numbers = "|".join(units).encode()
    return re.compile(rb'<(?:\w+:)?c\b([^>]*\ss="(' + numbers + rb')"[^>]*)>')


def _workbook(archive: zipfile.ZipFile) -> str:
    links = _links(archive, "").values()
    part = next((part for kind, part in links if kind == "officeDocument"), None)
    if part is None:
        raise PartsError("the container does not say where its workbook is")
    return part


def _unit(code: str) -> str:
    """Return `%` or the currency in a number format; empty if it has neither."""
    code = _LOCALE.sub("", code.partition(";")[0])
    if "%" in _LITERAL.sub("", code):
        return "%"
    found = _CURRENCY.search(code)
    return next(filter(None, found.groups()), "").strip() if found else ""


def _put(marks: Marks, attributes: bytes, text: str) -> None:
    place = _PLACE.search(attributes)
    if place is None:
        return
    marks.setdefault(int(place[2]), {})[column_index(place[1].decode())] = text


def _read(archive: zipfile.ZipFile, part: str) -> bytes:
    with _mapped(part), archive.open(part) as file:
        data = file.read(_MAX_PARSED_BYTES + 1)
    if len(data) > _MAX_PARSED_BYTES:
        raise PartsError(f"{part} has more than {_MAX_PARSED_BYTES:,} bytes")
    return data


@contextlib.contextmanager
def _mapped(part: str) -> Iterator[None]:
    try:
        yield
    except KeyError as exc:
        raise PartsError(f"{part} is missing") from exc
    except (
        zipfile.BadZipFile,
        zlib.error,
        ET.ParseError,
        EOFError,
        NotImplementedError,
        OSError,
        RuntimeError,
        ValueError,
    ) as exc:
        raise PartsError(f"{part} cannot be read: {exc}") from exc


def _blocks(archive: zipfile.ZipFile, part: str) -> Iterator[bytes]:
    """Yield the part in blocks that end behind a row, so that no cell is torn.

    Raises:
        PartsError: It is missing or damaged, or one row has more than 64 MiB.
    """
    rest = b""
    with _mapped(part), archive.open(part) as file:
        while block := file.read(_BLOCK_BYTES):
            rest += block
            end = rest.rfind(b"row>") + 4
            if end > 4:
                yield rest[:end]
                rest = rest[end:]
            elif len(rest) > _MAX_PARSED_BYTES:
                raise PartsError(f"{part} has a row of more than {_MAX_PARSED_BYTES:,} bytes")
        yield rest


def _links(archive: zipfile.ZipFile, part: str) -> dict[str, tuple[str, str]]:
    """Return the kind and the target of each relationship of a part, by its id."""
    folder, name = posixpath.split(part)
    rels = posixpath.join(folder, "_rels", f"{name}.rels")
    if rels not in archive.NameToInfo:
        return {}
    links = {}
    for element in _tree(archive, rels):
        target = element.get("Target", "")
        # Targets start at the root of the container, or are relative to the part.
        whole = posixpath.normpath(posixpath.join("/", folder, target)).lstrip("/")
        links[element.get("Id", "")] = (element.get("Type", "").rpartition("/")[2], whole)
    return links


def _tree(archive: zipfile.ZipFile, part: str) -> ET.Element:
    data = _read(archive, part)
    with _mapped(part):
        return ET.fromstring(data)


def _named(tree: ET.Element, name: str) -> Iterator[ET.Element]:
    return (element for element in tree.iter() if _local(element.tag) == name)


def _text(element: ET.Element) -> str:
    """Return the element's text on one line."""
    return " ".join(_raw(element).split())


def _raw(element: ET.Element) -> str:
    if _local(element.tag) == "rPh":
        # A reading aid of Asian scripts repeats what is there.
        return ""
    own = (element.text or "") if _local(element.tag) in {"t", "author"} else ""
    return own + "".join(map(_raw, element))


def _local(name: str) -> str:
    """Return a name without its namespace, which differs in strict workbooks."""
    return name.rpartition("}")[2]


def _add_row(ranges: list[tuple[int, int]], number: int) -> None:
    if ranges and ranges[-1][1] == number - 1:
        ranges[-1] = (ranges[-1][0], number)
    else:
        ranges.append((number, number))
