"""What reading a workbook costs: this reader beside bare calamine and openpyxl, and CSV beside `csv` and Polars.

`python -m benchmarks.sheet_reading [--rows 60000] [--runs 5] [--folder FOLDER]` makes a workbook and a CSV file of
ten columns; with FOLDER, every workbook below it that all arms open is read instead. The peers return values; the
reader makes a line of every row that keeps each cell's place, finds tables, looks up errors, units, comments and
hidden parts, and writes typed tables (also measured without). Arms take turns in one process, which looks
for garbage as seldom as a reader's; ratios are of CPU time (user and system). The last arms read copies in one and two processes of the reader pool.
"""

from __future__ import annotations

import argparse
import csv
import gc
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openpyxl
import polars as pl
import python_calamine as calamine

from benchmarks.machine import machine, show
from connectors.errors import ConnectorError
from connectors.reader_pool import ReaderPool
from connectors.readers import ReaderOptions, delimited, detect_media_type, spreadsheet
from connectors.readers.child import GC_PACE

_NUM_COLUMNS = 10
_POOL_COPIES = 4
_EVERYTHING = ReaderOptions(max_rows=2_000_000)
_BARE = ReaderOptions(max_rows=2_000_000, tables=False)


def main() -> None:
    """Measure in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    measured_on = machine()
    gc.set_threshold(*GC_PACE)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        scratch = Path(name)
        books = _workbooks(asked.folder) if asked.folder else [_make_book(scratch, asked.rows)]
        text = _make_csv(scratch, asked.rows)
        arms: dict[str, Callable[[], object]] = {
            "headrace, workbook": lambda: _read(books, scratch, _EVERYTHING),
            "headrace, workbook, no table files": lambda: _read(books, scratch, _BARE),
            "calamine, values": lambda: list(map(_calamine, books)),
            "openpyxl, values": lambda: list(map(_openpyxl, books)),
            "headrace, CSV": lambda: _read_csv(text, scratch, _EVERYTHING),
            "headrace, CSV, no table files": lambda: _read_csv(text, scratch, _BARE),
            "csv module, values": lambda: _csv(text),
            "polars.read_csv": lambda: pl.read_csv(text),
        }
        turns = _take_turns(arms, asked.runs)
        num_cells = {"workbook": sum(map(_calamine, books)), "CSV": _csv(text)}
        pool = {f"pool of {n}": _pool_s(books, scratch, n) for n in (1, 2)}
    rows = [
        {
            "arm": arm,
            "median_cpu_s": statistics.median(taken),
            "cells_per_cpu_s": num_cells["CSV" if "csv" in arm.lower() else "workbook"]
            / statistics.median(taken),
        }
        for arm, taken in turns.items()
    ]
    pairs = [
        ("headrace, workbook", "calamine, values"),
        ("headrace, workbook, no table files", "calamine, values"),
        ("headrace, workbook", "openpyxl, values"),
        ("headrace, CSV", "csv module, values"),
        ("headrace, CSV, no table files", "csv module, values"),
        ("headrace, CSV", "polars.read_csv"),
    ]
    facts: dict[str, object] = {
        "cells": num_cells,
        **{f"speed, {ours} / {its}": _speed(turns[ours], turns[its]) for ours, its in pairs},
        "wall s of copies": pool,
        "speed, pool of 2 / pool of 1": pool["pool of 1"] / pool["pool of 2"],
    }
    show("sheet_reading", measured_on, facts, rows)


def _speed(ours: Sequence[float], its: Sequence[float]) -> float:
    return statistics.median(other / one for one, other in zip(ours, its, strict=True))


def _take_turns(arms: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    turns: dict[str, list[float]] = {arm: [] for arm in arms}
    for run in range(runs + 1):
        for arm, work in arms.items():
            begun = time.process_time()
            work()
            # The first turn warms up caches and imports.
            if run:
                turns[arm].append(time.process_time() - begun)
    return turns


def _make_book(folder: Path, num_rows: int) -> Path:
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Flights")
    for row in _rows(num_rows):
        sheet.append(row)
    path = folder / "book.xlsx"
    book.save(path)
    return path


def _make_csv(folder: Path, num_rows: int) -> Path:
    path = folder / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(_rows(num_rows))
    return path


def _rows(count: int) -> list[list[object]]:
    head: list[object] = [f"Column {number}" for number in range(_NUM_COLUMNS)]
    return [
        head,
        *(
            [n, n % 7 == 0, n / 8, f"carrier {n % 40}", f"N{n:06}", n * 3, -n, n / 3, "JFK", "calm"]
            for n in range(count)
        ),
    ]


def _workbooks(folder: Path) -> list[Path]:
    """Return the workbooks that every arm opens."""
    found = []
    for path in sorted(folder.rglob("*.xls[xm]")):
        try:
            _calamine(path)
            _openpyxl(path)
            _read([path], Path(tempfile.gettempdir()), _BARE)
        except Exception as exc:  # noqa: BLE001 - peers raise what they like on damaged files
            print(f"left out: {path.name}: {type(exc).__name__}")
            continue
        found.append(path)
    return found


def _read(books: Sequence[Path], scratch: Path, options: ReaderOptions) -> None:
    for book in books:
        spreadsheet.read(book, detect_media_type(book, book.name), scratch, options)


def _read_csv(file: Path, scratch: Path, options: ReaderOptions) -> None:
    delimited.read(file, "text/csv", scratch, options)


def _calamine(book: Path) -> int:
    """Return the number of cells with a value, of all that are read."""
    workbook = calamine.load_workbook(book)
    count = 0
    for name in workbook.sheet_names:
        for row in workbook.get_sheet_by_name(name).to_python(skip_empty_area=False):
            count += sum(value != "" for value in row)
    return count


def _openpyxl(book: Path) -> None:
    for sheet in openpyxl.load_workbook(book, read_only=True, data_only=True):
        for _ in sheet.iter_rows(values_only=True):
            pass


def _csv(file: Path) -> int:
    with file.open(encoding="utf-8", newline="") as lines:
        return sum(map(len, csv.reader(lines)))


def _pool_s(books: Sequence[Path], scratch: Path, num_processes: int) -> float:
    """Return the seconds that copies of the workbooks take in a warm pool."""
    copies = [
        Path(shutil.copyfile(book, scratch / f"copy-{number}-{book.name}"))
        for number in range(_POOL_COPIES)
        for book in books
    ]
    with (
        ReaderPool(num_processes, _EVERYTHING) as pool,
        ThreadPoolExecutor(num_processes) as threads,
    ):

        def read(item: tuple[int, Path]) -> None:
            media = scratch / f"media-{num_processes}-{item[0]}"
            media.mkdir(exist_ok=True)
            try:
                pool.read(item[1], item[1].name, media)
            except ConnectorError as exc:
                raise RuntimeError(f"{item[1].name}: {exc}") from exc

        list(threads.map(read, enumerate(copies[:num_processes])))
        begun = time.monotonic()
        list(threads.map(read, enumerate(copies)))
        return time.monotonic() - begun


if __name__ == "__main__":
    main()
