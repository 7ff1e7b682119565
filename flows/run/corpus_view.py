"""What tools see of documents: those of a sink, or the one that is just being asked about.

Both implement `tools.corpus.Corpus`. No path that a model writes gets here: documents go by label, and
pictures and tables by names that the documents' own lines and rows in the sink have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from connectors.document import Chunk, Document, Segment
from connectors.sinks.lake import Lake
from flows.run.line_store import LineStore, StoredDocument, StoredLines, segments_of
from flows.run.sink_files import SinkFiles, check_name
from tools.corpus import Entry


class SinkCorpus:
    """The documents of a sink, all or some, with what it has committed of them.

    Labels follow the order of paths. Documents that could not be read are not among them.
    """

    def __init__(self, store: LineStore, paths: Collection[str] | None = None) -> None:
        """Make the view; the sink is read when something is asked for.

        Args:
            store: What brings lines and files from the sink; several views may share it.
            paths: The documents to show; all where None. Those that the sink does not have are left out.
        """
        self._store = store
        self._paths = None if paths is None else frozenset(paths)

    @property
    def entries(self) -> Sequence[Entry]:
        """Return the documents in the order of their labels; the first time, their lines are brought.

        Raises:
            StorageError: The sink cannot be read.
        """
        return self._shown[0]

    @cached_property
    def _shown(self) -> tuple[Sequence[Entry], Mapping[str, StoredDocument]]:
        documents = self._store.documents()
        paths = sorted(documents if self._paths is None else self._paths & documents.keys())
        self._store.bring(paths)
        found = {f"D{number}": documents[path] for number, path in enumerate(paths, start=1)}
        entries = [
            Entry(
                label=label,
                path=document.path,
                document_key=document.document_key,
                media_type=document.media_type,
                num_lines=self._store.num_lines(document),
                tables=document.tables,
            )
            for label, document in found.items()
        ]
        return entries, found

    def lines(self, label: str) -> Sequence[Segment]:
        """Return a document's segments in reading order.

        Raises:
            KeyError: There is no such document.
        """
        return StoredLines(self._store, self._document(label))

    def media(self, label: str, name: str) -> Path:
        """Return a local copy of a picture.

        Raises:
            KeyError: No segment of the document names it.
            FileNotFoundError: The sink has none of that name.
        """
        document = self._document(label)
        if not self._store.names(document, name):
            raise KeyError(name)
        return self._store.files.fetch(document.document_key, name)

    def table(self, label: str, name: str) -> Path:
        """Return a local copy of a table.

        Raises:
            KeyError: The document has no such table, or the sink lost it.
        """
        document = self._document(label)
        if name not in {table.name for table in document.tables}:
            raise KeyError(name)
        try:
            return self._store.files.fetch(document.document_key, name)
        except FileNotFoundError as exc:
            raise KeyError(name) from exc

    def _document(self, label: str) -> StoredDocument:
        return self._shown[1][label]


class ChunkCorpus:
    """The one document that a question is about, from memory; its label is D1."""

    def __init__(
        self,
        document: Document,
        chunks: Sequence[Chunk],
        media_dir: Path,
        lake: Lake | None = None,
    ) -> None:
        """Make the view.

        Args:
            document: The document.
            chunks: All its chunks in order, or those that may be looked at.
            media_dir: Where its pictures and tables lie.
            lake: Where those are fetched from that do not lie there: of a document that was not read again.
        """
        self._lines = segments_of(chunks)
        self._media = {line.media for line in self._lines if line.media is not None}
        self._key = document.document_key
        self._media_dir = media_dir
        self._files = None if lake is None else SinkFiles(lake, media_dir)
        content = document.content
        self._entry = Entry(
            label="D1",
            path=document.source.path,
            document_key=document.document_key,
            media_type=content.media_type if content else "",
            num_lines=len(self._lines),
            tables=content.tables if content else (),
        )

    @property
    def entries(self) -> Sequence[Entry]:
        """Return the one document."""
        return (self._entry,)

    def lines(self, label: str) -> Sequence[Segment]:
        """Return its segments in reading order.

        Raises:
            KeyError: There is no such document.
        """
        self._check(label)
        return self._lines

    def media(self, label: str, name: str) -> Path:
        """Return a picture.

        Raises:
            KeyError: No segment of the document names it.
            FileNotFoundError: There is none of that name.
        """
        self._check(label)
        if name not in self._media:
            raise KeyError(name)
        return self._file(name)

    def table(self, label: str, name: str) -> Path:
        """Return a table.

        Raises:
            KeyError: The document has no such table, or it is lost.
        """
        self._check(label)
        if name not in {table.name for table in self._entry.tables}:
            raise KeyError(name)
        try:
            return self._file(name)
        except FileNotFoundError as exc:
            raise KeyError(name) from exc

    def _check(self, label: str) -> None:
        if label != self._entry.label:
            raise KeyError(label)

    def _file(self, name: str) -> Path:
        check_name(name)
        file = self._media_dir / name
        if file.is_file():
            return file
        if self._files is None:
            raise FileNotFoundError(name)
        return self._files.fetch(self._key, name)
