"""Reads the formulas of a workbook by openpyxl: calamine gives values only. Slow, so on request."""

from __future__ import annotations

import contextlib
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


class FormulasError(Exception):
    """openpyxl cannot read the workbook."""


@dataclass(frozen=True, slots=True)
class Formulas:
    """The formulas of an open xlsx or xlsm file."""

    workbook: Any

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the workbook opened by openpyxl.

        Raises:
            FormulasError: openpyxl cannot read the workbook.
        """
        # Only where formulas are asked for: the import costs a fifth of a second.
        import openpyxl  # noqa: PLC0415

        with _mapped():
            return cls(openpyxl.load_workbook(path, read_only=True))

    def of_sheet(self, name: str, last_row: int, last_column: int) -> dict[int, dict[int, str]]:
        """Return a sheet's formulas by row number, from 1, and column index, from 0.

        Args:
            name: The sheet's name.
            last_row: Last row to look at: the file may declare a million.
            last_column: Last column, from 1.

        Raises:
            FormulasError: openpyxl cannot read the sheet.
        """
        found: dict[int, dict[int, str]] = {}
        with _mapped():
            for row in self.workbook[name].iter_rows(max_row=last_row, max_col=last_column):
                for cell in row:
                    if cell.data_type == "f":
                        # An array formula is an object with a text.
                        text = str(getattr(cell.value, "text", cell.value))
                        found.setdefault(cell.row, {})[cell.column - 1] = " ".join(text.split())
        return found


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    try:
        # It warns of drop-down lists, themes and the like that it leaves out.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        SyntaxError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as exc:
        raise FormulasError(f"openpyxl cannot read it: {exc}") from exc
