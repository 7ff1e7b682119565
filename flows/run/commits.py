"""What the sink says of each of its shards: what its parts were made of, and which bytes they are.

A shard's commit is put behind its parts. Where there is none, or where a claim or a journal is left,
the shard is made again from the same answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from config.errors import ConfigError
from connectors.document import SourceRef
from connectors.errors import StorageError
from connectors.sinks.lake import Lake, PartInfo
from connectors.storage import STATE_PREFIX

COMMITS = f"{STATE_PREFIX}/commits"
_AT_ONCE = 16
PARTIAL = "partial"
"""Folder of the answers to parts of documents, groups and the corpus, beside `records`."""

_TABLES = ("documents", "chunks", "records", PARTIAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A shard as it was last written."""

    run_id: str
    reading_key: str
    """Of what its chunks follow from, besides the documents' bytes."""
    work_key: str
    """Of what its rows follow from, besides the documents' bytes."""
    signature: str
    """Of its documents' paths, ETags and sizes."""
    document_keys: tuple[str, ...]
    outcomes: Mapping[str, int]
    """Records by outcome, all stages together."""
    again: bool
    """Whether the next run looks at it once more though its documents are the same: some may be read with better luck,
    a person has refused a stage, or a stage before it was not answered yet."""
    parts: Mapping[str, PartInfo]
    """By path in the sink."""


def commit_path(shard: str) -> str:
    """Return where a shard's commit lies."""
    return f"{COMMITS}/{shard}.json"


def as_bytes(commit: Commit) -> bytes:
    """Return the commit as it lies in the sink."""
    return json.dumps(asdict(commit)).encode()


def find_commit(lake: Lake, shard: str) -> tuple[Commit | None, str | None]:
    """Return a shard's commit and its ETag, None and None where there is none.

    Raises:
        StorageError: What is there is no commit of this version.
    """
    held = lake.storage.find(commit_path(shard))
    if held is None:
        return None, None
    try:
        value = json.loads(held.data)
        parts = {path: PartInfo(**part) for path, part in value["parts"].items()}
        fields = {**value, "parts": parts, "document_keys": tuple(value["document_keys"])}
        return Commit(**fields), held.etag
    except (ValueError, TypeError, KeyError) as exc:
        uri = lake.storage.uri(commit_path(shard))
        raise StorageError(
            f"{uri} is no commit of this version; was it changed by hand? Without it the shard is"
            " written anew: delete it and run with --rebuild",
            uri=uri,
        ) from exc


def load_commits(lake: Lake) -> dict[str, Commit]:
    """Return the commits of all shards."""
    shards = [Path(item.path).stem for item in lake.storage.list(COMMITS)]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        found = threads.map(lambda shard: find_commit(lake, shard)[0], shards)
        return {shard: one for shard, one in zip(shards, found, strict=True) if one is not None}


def signature(sources: Iterable[SourceRef]) -> str:
    """Return one number for the versions of a shard's documents, whatever their order."""
    total = 0
    for source in sources:
        text = f"{source.path}\0{source.etag}\0{source.size_bytes}"
        total += int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return f"{total % 2**64:016x}"


def changed_parts(
    lake: Lake, commits: Mapping[str, Commit], open_shards: set[str]
) -> list[tuple[str, str]]:
    """Return shards whose parts are not as they were written, each with what is wrong.

    Args:
        lake: The sink.
        commits: All its shards'.
        open_shards: Those in work or left in the middle of it; theirs are not looked at.
    """
    listed = {
        item.path: item
        for table in _TABLES
        for item in lake.storage.list(table)
        if _shard_of(item.path) not in open_shards
    }
    found: list[tuple[str, str]] = []
    for shard, commit in commits.items():
        if shard in open_shards:
            continue
        for path, part in commit.parts.items():
            item = listed.pop(path, None)
            if item is None:
                found.append((shard, f"{path} is missing"))
            # Copied to another place, a file has another time and the same bytes.
            elif item.etag != part.etag and (
                item.size_bytes != part.size_bytes
                or PartInfo.of(lake.storage.get(path), item.etag).sha256 != part.sha256
            ):
                found.append((shard, f"{path} has been changed"))
    known = {path.rpartition("/")[0] for commit in commits.values() for path in commit.parts}
    found += [
        (Path(path).name, f"{path} is no part of this sink")
        for path in listed
        if path.rpartition("/")[0] in known
    ]
    return found


def _shard_of(path: str) -> str:
    return Path(path).name.partition(".")[0]


def require_whole(lake: Lake, found: list[str]) -> None:
    """Check that no part was changed.

    Raises:
        ConfigError: Some were; it names them.
    """
    if not found:
        return
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    raise ConfigError(
        f"sink {lake.url!r} is not as it was written: {'; '.join(found[:5])}{more}. Put back what was"
        " there, or write those shards anew from their answers with --rebuild; what is no part must be"
        " removed by hand"
    )
