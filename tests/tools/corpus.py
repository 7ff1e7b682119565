"""A corpus of real tables in a folder, for tests of tools."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.document import Segment, Span, TableFile
from connectors.readers import ReaderOptions, detect_media_type, load_reader
from tools.corpus import Entry
from tools.tool import Scope


class FolderCorpus:
    """Documents whose tables are Parquet files that tests wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: tuple[Entry, ...] = ()
        self._lines: dict[str, list[Segment]] = {}

    def add(self, path: str, tables: dict[str, dict], title: str = "", lines=()) -> None:
        """Add a document with one table per sheet, given by its columns; rows begin at 2."""
        label = f"D{len(self.entries) + 1}"
        files = []
        (self.folder / label).mkdir(parents=True)
        for number, (sheet, columns) in enumerate(tables.items(), start=1):
            num_rows = len(next(iter(columns.values())))
            data = pa.table({"row": range(2, 2 + num_rows), **columns})
            name = f"t{number:04d}.parquet"
            pq.write_table(data, self.folder / label / name)
            files.append(
                TableFile(
                    name=name,
                    sheet=sheet,
                    cells=f"A1:F{num_rows + 1}",
                    title=title,
                    columns=tuple(data.column_names),
                    num_rows=num_rows,
                )
            )
        self._lines[label] = list(lines)
        self.entries += (
            Entry(
                label=label,
                path=path,
                document_key=f"key-{label}",
                media_type="text/csv",
                num_lines=len(self._lines[label]),
                tables=tuple(files),
            ),
        )

    def read(self, file: Path) -> None:
        """Add a real file, read by its reader."""
        label = f"D{len(self.entries) + 1}"
        (self.folder / label).mkdir(parents=True)
        media_type = detect_media_type(file, file.name)
        content = load_reader(media_type).read(
            file, media_type, self.folder / label, ReaderOptions()
        )
        self._lines[label] = list(content.segments)
        self.entries += (
            Entry(
                label=label,
                path=file.name,
                document_key=f"key-{label}",
                media_type=media_type,
                num_lines=len(content.segments),
                tables=tuple(content.tables),
            ),
        )

    def lines(self, label: str) -> list[Segment]:
        return self._lines[label]

    def media(self, label: str, name: str) -> Path:
        raise KeyError(name)

    def table(self, label: str, name: str) -> Path:
        entry = next(entry for entry in self.entries if entry.label == label)
        if name not in {file.name for file in entry.tables}:
            raise KeyError(name)
        return self.folder / label / name


def row_segment(sheet: str, row: int, text: str) -> Segment:
    return Segment(kind="table", text=text, span=Span(sheet=sheet, cells=f"A{row}:F{row}"))


def scope_of(corpus: FolderCorpus, folder: Path) -> Scope:
    return Scope(corpus=corpus, scratch=folder)


class NoAside:
    """Asks no model: these tools do not need one."""

    async def ask(self, question, material="", *, images=(), max_tokens=800):
        raise AssertionError("the tool asked the model")
