"""What the sink knows of one batch of the host: written before and after each call that begins it.

Layout, below the desk's folder:
    <shard>/<batch_key>.json         the record, changed by compare-and-swap only
    <shard>/<batch_key>.ends.jsonl   what became of its lines, once it has ended
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, Self

import orjson

from engine.batch.amount import Amount
from engine.errors import EngineError

State = Literal["intended", "submitting", "waiting", "ended"]
"""`intended`: nothing but perhaps a file lies with the host; `submitting`: the host may have been told to
begin; `waiting`: it has taken the batch; `ended`: what became of the lines is in the sink."""


class SinkChanged(EngineError):
    """Somebody else has changed a record, so the claim of its shard has been lost."""


class Version(Protocol):
    """An object as it was at one moment."""

    @property
    def data(self) -> bytes:
        """Return its bytes."""

    @property
    def etag(self) -> str:
        """Return its ETag."""


class Listed(Protocol):
    """One listed object."""

    @property
    def path(self) -> str:
        """Return where it is."""


class Store(Protocol):
    """Objects by path, with the conditional puts that several machines agree by."""

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """Yield the objects below a folder."""

    def find(self, path: str) -> Version | None:
        """Return the object, or None where there is none."""

    def put(self, path: str, data: bytes) -> None:
        """Write the object, in place of an older one."""

    def put_if_absent(self, path: str, data: bytes) -> str | None:
        """Write the object and return its ETag; None where there is another one already."""

    def put_if_match(self, path: str, data: bytes, etag: str) -> str | None:
        """Replace the object that has this ETag and return the new one; None where it has another."""

    def delete(self, path: str) -> None:
        """Remove the object, if it is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """One batch."""

    batch_key: str
    """Of the host, the model, the window and the lines: the same lines make the same batch."""
    shard: str
    stage: str
    run_id: str
    """The run that sent it."""
    base_url: str
    model: str
    window: str
    lines: Mapping[str, Amount]
    """By id, what each may take at most."""
    state: State = "intended"
    file_id: str | None = None
    batch_id: str | None = None
    status: str = ""
    """The host's own word for how far it is."""
    since: str = ""
    """When the host took it: ISO 8601, UTC."""
    expires: str = ""
    """When the host gives it up; empty where it does not say."""
    seconds: float = 0.0
    """From when the host took it to its end, by the host's clock."""
    num_answered: int = 0
    num_failed: int = 0
    refusal: str = ""
    """Why the host would not begin it."""
    refusal_status: int = 0
    host_files: tuple[str, ...] = ()
    """What the host has given back; removed there when the record is."""

    @property
    def path(self) -> str:
        """Return where it lies below the desk's folder."""
        return f"{self.shard}/{self.batch_key}.json"

    @property
    def ends_path(self) -> str:
        """Return where what became of its lines lies."""
        return f"{self.shard}/{self.batch_key}.ends.jsonl"

    @property
    def file_name(self) -> str:
        """Return the name of its file with the host, by which it is known again."""
        return f"headrace-{self.batch_key}.jsonl"

    def as_json(self) -> dict[str, Any]:
        """Return what `record_from_json` makes it of."""
        lines = {
            line_id: [amount.tokens, amount.usd, amount.gpu_seconds]
            for line_id, amount in self.lines.items()
        }
        return {**asdict(replace(self, lines={})), "lines": lines}

    def as_told(self) -> dict[str, Any]:
        """Return what people and scripts are told of it."""
        return {
            "batch_id": self.batch_id,
            "stage": self.stage,
            "shard": self.shard,
            "status": self.status or self.state,
            "since": self.since or None,
            "expires": self.expires or None,
            "window": self.window,
            "lines": len(self.lines),
            "answered": self.num_answered,
            "failed": self.num_failed,
        }


def record_from_json(value: Mapping[str, Any]) -> BatchRecord:
    """Return the record that `as_json` gave."""
    lines = {
        line_id: Amount(tokens=tokens, usd=usd, gpu_seconds=gpu_seconds)
        for line_id, (tokens, usd, gpu_seconds) in value["lines"].items()
    }
    return BatchRecord(**{**value, "lines": lines, "host_files": tuple(value["host_files"])})


@dataclass(slots=True)
class HeldRecord:
    """A record as it lies in the sink; changed by whoever holds its shard, or sees its batch end."""

    folder: str
    store: Store
    record: BatchRecord
    etag: str

    @classmethod
    def find(cls, store: Store, path: str, folder: str) -> Self | None:
        """Return the record at a path; None where it has gone meanwhile."""
        found = store.find(path)
        if found is None:
            return None
        return cls(folder, store, record_from_json(orjson.loads(found.data)), found.etag)

    @classmethod
    def create(cls, store: Store, record: BatchRecord, folder: str) -> Self:
        """Put a record, and return it.

        Raises:
            SinkChanged: There is one for the same lines.
        """
        etag = store.put_if_absent(f"{folder}/{record.path}", _as_bytes(record))
        if etag is None:
            raise SinkChanged(f"batch {record.batch_key} has been begun by somebody else")
        return cls(folder, store, record, etag)

    def change(self, **changes: Any) -> None:  # noqa: ANN401 - any fields of the record
        """Change fields of it.

        Raises:
            SinkChanged: Somebody else has changed it since.
        """
        record = replace(self.record, **changes)
        path = f"{self.folder}/{record.path}"
        etag = self.store.put_if_match(path, _as_bytes(record), self.etag)
        if etag is None:
            raise SinkChanged(f"{path} was written by somebody else meanwhile; resume the run")
        self.record, self.etag = record, etag

    def end(self, ends: bytes, **changes: Any) -> None:  # noqa: ANN401 - any fields of the record
        """Put what became of its lines, then into the record that they are there.

        Raises:
            SinkChanged: Somebody else has changed it since.
        """
        self.store.put(f"{self.folder}/{self.record.ends_path}", ends)
        try:
            self.change(state="ended", **changes)
        except SinkChanged:
            if self.store.find(f"{self.folder}/{self.record.path}") is None:
                # Somebody else is through with it, and nobody would ever remove what was just put.
                self.store.delete(f"{self.folder}/{self.record.ends_path}")
            raise

    def load_ends(self) -> dict[str, Mapping[str, Any]]:
        """Return what became of its lines, by id; those that are missing have no end of their own."""
        found = self.store.find(f"{self.folder}/{self.record.ends_path}")
        lines = found.data.splitlines() if found else []
        return {value["id"]: value for value in map(orjson.loads, lines)}

    def remove(self) -> None:
        """Remove it: its answers are kept elsewhere."""
        ends_path = f"{self.folder}/{self.record.ends_path}"
        # The record after the ends: without it nobody would know of them.
        self.store.delete(ends_path)
        self.store.delete(f"{self.folder}/{self.record.path}")
        # Another process may have put them once more while the record was still there.
        self.store.delete(ends_path)


def _as_bytes(record: BatchRecord) -> bytes:
    return orjson.dumps(record.as_json())
