"""Gathers a shard's lines in files on this machine, each within what the host takes, until they are sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from engine.batch.amount import Amount
from engine.batch.hosted import Line
from engine.batch_api.host import ENDPOINT
from engine.batch_api.limits import BatchLimits
from engine.errors import RequestRejected

_TOO_LARGE = 413


@dataclass(slots=True, kw_only=True)
class OutFile:
    """Lines of one stage, for one model and one window."""

    path: Path
    stage: str
    model: str
    window: str
    lines: dict[str, Amount] = field(default_factory=dict)
    """By id, what each may take at most."""
    num_bytes: int = 0


class Outbox:
    """One shard's lines; the caller sees to it that one thread at a time is in it."""

    def __init__(self, folder: Path, limits: BatchLimits) -> None:
        self._folder, self._limits = folder, limits
        self._files: list[OutFile] = []
        self._open: dict[tuple[str, str, str], OutFile] = {}

    def add(self, line: Line, worst: Amount) -> None:
        """Write a line behind others of its stage.

        Raises:
            RequestRejected: It is longer than a whole file may be.
        """
        request = {
            "custom_id": line.line_id,
            "method": "POST",
            "url": ENDPOINT,
            "body": dict(line.body),
        }
        data = orjson.dumps(request) + b"\n"
        if len(data) > self._limits.max_bytes:
            raise RequestRejected(
                f"the request has {len(data):,} bytes, and a file of the host's batch API"
                f" {self._limits.max_bytes:,}; lower chunk.max_tokens, or drop batch_api from the stage",
                status=_TOO_LARGE,
            )
        file = self._file_for(line, len(data))
        with file.path.open("ab") as out:
            out.write(data)
        file.lines[line.line_id] = worst
        file.num_bytes += len(data)

    def _file_for(self, line: Line, num_bytes: int) -> OutFile:
        key = (line.stage, str(line.body["model"]), line.window)
        file = self._open.get(key)
        if (
            file is not None
            and file.num_bytes + num_bytes <= self._limits.max_bytes
            and len(file.lines) < self._limits.max_requests
        ):
            return file
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{len(self._files):05d}.jsonl"
        path.unlink(missing_ok=True)
        file = OutFile(path=path, stage=key[0], model=key[1], window=key[2])
        self._files.append(file)
        self._open[key] = file
        return file

    def has(self, line_id: str) -> bool:
        """Tell whether a line is in it."""
        return any(line_id in file.lines for file in self._files)

    def empty(self) -> Iterator[OutFile]:
        """Yield its files, and remove each when the next is asked for."""
        files, self._files, self._open = self._files, [], {}
        for file in files:
            yield file
            file.path.unlink(missing_ok=True)
