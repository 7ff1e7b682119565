"""What a run will do: the listing cut into shards that own their documents for life."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from config.errors import ConfigError
from connectors.document import SourceRef
from connectors.storage import ObjectInfo, Source
from flows.report.words import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """The documents of one shard, in path order. None are left where all were deleted."""

    shard: str
    sources: tuple[SourceRef, ...]


def list_sources(storage: Source, include: Sequence[str]) -> list[SourceRef]:
    """Return the source objects whose path matches one of the globs, in path order."""
    pattern = re.compile("|".join(f"(?:{glob_regex(glob)})" for glob in include))
    found = (item for item in storage.list() if pattern.fullmatch(item.path))
    return sorted((_source(storage, item) for item in found), key=lambda source: source.path)


def require_match(sources: Sequence[SourceRef], url: str, include: Sequence[str]) -> None:
    """Check that the source at `url` holds something to read.

    Raises:
        ConfigError: It holds nothing that matches.
    """
    if not sources:
        raise ConfigError(
            f"source {url!r} has no object that matches include"
            f" {list(include)}; check the path and the globs"
        )


def _source(storage: Source, item: ObjectInfo) -> SourceRef:
    return SourceRef(
        uri=storage.uri(item.path), path=item.path, size_bytes=item.size_bytes, etag=item.etag
    )


def glob_regex(glob: str) -> str:
    """Return the regular expression of a glob: `*` and `?` stay in a folder, `**` crosses them."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        parts.get(token) or re.escape(token) for token in re.findall(r"\*\*/|\*\*|.", glob)
    )


def select(
    sources: Sequence[SourceRef], known: Mapping[str, str], limit: int | None
) -> list[SourceRef]:
    """Return the sources that this run works on.

    Raises:
        ConfigError: `limit` would drop documents that the sink already holds.
    """
    if limit is None or limit >= len(sources):
        return list(sources)
    dropped = [source.path for source in sources[limit:] if source.path in known]
    if dropped:
        raise ConfigError(
            f"--limit {limit}: the sink already holds {counted(len(dropped), 'document')} beyond it,"
            f" such as {dropped[0]!r}, which would be removed; use another --sink or a larger --limit"
        )
    return list(sources[:limit])


def cut_shards(
    sources: Iterable[SourceRef], known: Mapping[str, str], documents_per_shard: int
) -> list[ShardPlan]:
    """Return the shards, each with its documents.

    A document the sink knows stays in its shard; new ones go, in path order, to new shards. A known
    shard whose documents are all gone stays in the plan, so that its parts become empty.

    Args:
        sources: Documents to work on, in path order.
        known: Shard by path, from the sink's documents table.
        documents_per_shard: Most documents of a new shard.
    """
    shards: dict[str, list[SourceRef]] = {shard: [] for shard in sorted(set(known.values()))}
    new: list[SourceRef] = []
    for source in sources:
        shard = known.get(source.path)
        (shards[shard] if shard is not None else new).append(source)
    numbers = itertools.count(1 + max((int(shard[1:]) for shard in shards), default=-1))
    for start in range(0, len(new), documents_per_shard):
        shards[f"s{next(numbers):05d}"] = new[start : start + documents_per_shard]
    return [ShardPlan(shard=shard, sources=tuple(items)) for shard, items in shards.items()]


def plan_as_json(shards: Sequence[ShardPlan]) -> dict[str, Any]:
    """Return the plan for the run's folder."""
    return {
        "shards": {shard.shard: [asdict(source) for source in shard.sources] for shard in shards}
    }


def plan_from_json(value: Mapping[str, Any]) -> list[ShardPlan]:
    """Return the plan that `plan_as_json` wrote."""
    return [
        ShardPlan(shard=shard, sources=tuple(SourceRef(**source) for source in sources))
        for shard, sources in value["shards"].items()
    ]
