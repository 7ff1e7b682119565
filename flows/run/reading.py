"""Reads one object of the source and cuts it into chunks; a bad one becomes a rejected document."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from connectors.chunker import ChunkRule, chunk_document
from connectors.document import Chunk, Document, SourceRef, Unit
from connectors.errors import DocumentRejected, StorageError, StorageUnavailable
from connectors.storage import fetch
from flows.run.bench import Room
from flows.run.rows import Answered
from flows.run.units import Row

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class ReadDocument:
    """A document in work: its chunks, its media on disk, and its answers so far."""

    document: Document
    chunks: Sequence[Chunk]
    media_dir: Path
    is_held: bool = False
    """Whether it comes from the sink's own parts, and its media are there too."""
    answers: dict[str, dict[int, Answered]] = field(default_factory=lambda: defaultdict(dict))
    """By stage and the number of the chunk or row; 0 for the document."""
    parts: dict[str, list[Answered]] = field(default_factory=lambda: defaultdict(list))
    """Answers to parts of the document, by stage, where it was more than one request can hold."""
    rows: Sequence[Row] = ()
    """Of its tables in reading order, where a stage asks about them."""
    turns: Sequence[int] = ()
    """Their places, in the order in which they are asked about."""

    def ends(self, stage: str) -> list[Answered]:
        """Return a stage's answers in reading order."""
        found = self.answers[stage]
        return [found[number] for number in sorted(found)]


def make_media_dir(room: Room, shard: str, source: SourceRef) -> Path:
    """Return the folder for an object's JPEGs, made where it is not there."""
    name = hashlib.sha256(source.path.encode()).hexdigest()[:16]
    media_dir = room.scratch / shard / name
    media_dir.mkdir(parents=True, exist_ok=True)
    return media_dir


def read_chunks(
    room: Room, shard: str, source: SourceRef, rule: ChunkRule
) -> tuple[Document, list[Chunk], Path]:
    """Fetch and read one object and cut it into chunks; return also where its JPEGs lie."""
    media_dir = make_media_dir(room, shard, source)
    document = _read_document(room, source, media_dir)
    if document.content is None:
        return document, [], media_dir
    return document, chunk_document(document.document_key, document.content, rule), media_dir


def _read_document(room: Room, source: SourceRef, media_dir: Path) -> Document:
    file = media_dir.with_name(f"{media_dir.name}-object")
    key = hashlib.sha256(f"{source.etag}:{source.size_bytes}".encode()).hexdigest()
    try:
        key = fetch(_pieces(room, source), file)
        content = room.readers.read(
            file,
            Path(source.path).name,
            media_dir,
            password=room.passwords.find(source.path),
        )
    except DocumentRejected as exc:
        logger.info("document %s rejected: %s: %s", source.path, exc.reason, exc)
        return Document(
            source=source,
            document_key=key,
            status="rejected",
            content=None,
            error_class=exc.reason,
            error=str(exc),
        )
    finally:
        file.unlink(missing_ok=True)
    failed = [unit for unit in content.units if unit.status == "failed"]
    return Document(
        source=source,
        document_key=key,
        status="partial" if failed else "read",
        content=content,
        error_class="units_failed" if failed else None,
        error=_failed_units(failed, len(content.units)) if failed else None,
    )


def _pieces(room: Room, source: SourceRef) -> Iterator[bytes]:
    try:
        yield from room.source.stream(source.path)
    except StorageUnavailable:
        raise
    except StorageError as exc:
        raise DocumentRejected(str(exc), reason="unreadable_object") from exc


def _failed_units(failed: Sequence[Unit], total: int) -> str:
    names = ", ".join(f"{unit.name} ({unit.error})" for unit in failed[:3])
    more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
    return f"{len(failed)} of {total} units could not be read: {names}{more}"
