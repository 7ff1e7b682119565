"""Where the sink has answers about a content, so that a copy of a document is not asked about again."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from connectors.sinks.lake import Lake
from flows.run.commits import COMMITS, Commit, find_commit


class Copies:
    """The shard of each content that is committed, by document key."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._shard_of: dict[str, str] = {}
        self._known: set[str] = set()
        self._lock = threading.Lock()
        self.num_commits = 0
        """Goes up with each shard that is taken in."""

    def add(self, shard: str, document_keys: Iterable[str]) -> None:
        """Take the contents of a committed shard in."""
        with self._lock:
            self.num_commits += 1
            self._known.add(shard)
            self._shard_of.update(dict.fromkeys(document_keys, shard))

    def add_all(self, commits: Mapping[str, Commit]) -> None:
        """Take the contents of all these shards in."""
        for shard, commit in commits.items():
            self.add(shard, commit.document_keys)

    def refresh(self) -> None:
        """Take the shards in that other runs have committed meanwhile."""
        there = {Path(item.path).stem for item in self._lake.storage.list(COMMITS)}
        for shard in sorted(there - self._known):
            commit, _ = find_commit(self._lake, shard)
            if commit is not None:
                self.add(shard, commit.document_keys)

    def find(self, document_key: str) -> str | None:
        """Return the shard that has answers about a content; None where there is none."""
        return self._shard_of.get(document_key)
