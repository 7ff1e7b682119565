"""Speaks to a host's batch API: `/files` and `/batches` below the address of its `/chat/completions`.

Each call is made once, but for a 429 or a 5xx that says so; what became of a call whose answer was lost is
found out by the lists, not by a second try.

Source: platform.kimi.ai/docs/api/batch-create, batch-list and files-list; developers.openai.com/api/reference.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from engine.batch.call import RetryRule
from engine.endpoint import Endpoint
from engine.errors import EngineUnavailable
from engine.status import authorization, map_errors, raise_for_status

_Got = TypeVar("_Got")

ENDPOINT = "/v1/chat/completions"
KEY = "headrace"
"""Of the metadata that carries a batch's key."""
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
"""States of a batch at the host that are its last."""

_PAGE = 100
_MAX_PAGES = 200
_TIMEOUT_S = 60.0
_UPLOAD_TIMEOUT_S = 1800.0
_NOT_FOUND = 404
_BUSY = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class HostBatch:
    """A batch as the host tells of it."""

    batch_id: str
    file_id: str
    status: str
    key: str | None = None
    """Of its metadata; None where the host keeps none."""
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: float = 0.0
    """Seconds since 1970, like the others; 0 where the host does not say."""
    ended_at: float = 0.0
    expires_at: float = 0.0
    num_answered: int = 0
    num_failed: int = 0
    errors: tuple[tuple[int | None, str], ...] = ()
    """Why its file was refused: the number of a line, from 1, where one is to blame, and the reason."""


class BatchHost:  # noqa: PLR0904 - all calls of two routes
    """One host; used by several threads."""

    def __init__(self, endpoint: Endpoint, retry: RetryRule) -> None:
        self.base_url = endpoint.base_url
        self._key = endpoint.profile.key_in_words
        self._retry = retry
        self._stopped = threading.Event()
        self._http = httpx.Client(
            base_url=endpoint.base_url,
            headers=authorization(endpoint.api_key),
            timeout=_TIMEOUT_S,
        )

    def stop(self) -> None:
        """Wait for nothing any more: the run ends."""
        self._stopped.set()

    def close(self) -> None:
        """Close the connections."""
        self.stop()
        self._http.close()

    def pause(self, seconds: float) -> None:
        """Wait so long.

        Raises:
            EngineUnavailable: The run ends meanwhile.
        """
        if self._stopped.wait(seconds):
            raise EngineUnavailable("the run ends")

    def upload(self, name: str, file: Path) -> str:
        """Return the id of the file that the host has been given.

        Raises:
            EngineUnavailable: It is not known whether the host has it.
            RequestRejected: The host refuses it.
        """

        def send() -> str:
            with file.open("rb") as data:
                answer = self._http.post(
                    "/files",
                    data={"purpose": "batch"},
                    files={"file": (name, data, "application/jsonl")},
                    timeout=_UPLOAD_TIMEOUT_S,
                )
            return str(self._json(answer)["id"])

        return self._unless_busy(send)

    def find_file(self, name: str) -> str | None:
        """Return the id of a file by its name; None where the host has none."""
        for item in self._pages("/files"):
            if item.get("filename") == name:
                return str(item["id"])
        return None

    def begin(self, key: str, file_id: str, window: str) -> HostBatch:
        """Return the batch that the host has begun.

        Raises:
            EngineUnavailable: It is not known whether it has.
            RequestRejected: The host refuses it.
        """
        body = {
            "input_file_id": file_id,
            "endpoint": ENDPOINT,
            "completion_window": window,
            "metadata": {KEY: key},
        }
        return self._unless_busy(lambda: _batch(self._json(self._http.post("/batches", json=body))))

    def find_batch(self, key: str, file_id: str) -> HostBatch | None:
        """Return the batch with this key or this file; None where the host's list has none."""
        for item in self._pages("/batches"):
            found = _batch(item)
            if found.key == key or found.file_id == file_id:
                return found
        return None

    def look(self, batch_id: str) -> HostBatch | None:
        """Return a batch as it is now; None where the host knows of none."""
        with self._errors():
            answer = self._http.get(f"/batches/{batch_id}")
            if answer.status_code == _NOT_FOUND:
                return None
            return _batch(self._json(answer))

    def lines(self, file_id: str) -> Iterator[bytes]:
        """Yield the lines of a file, blank ones left out.

        Raises:
            EngineUnavailable: It cannot be read now, or is not there: `status` is 404 then.
        """
        with (
            self._errors(),
            self._http.stream(
                "GET", f"/files/{file_id}/content", timeout=_UPLOAD_TIMEOUT_S
            ) as answer,
        ):
            if not answer.is_success:
                answer.read()
                if answer.status_code == _NOT_FOUND:
                    raise EngineUnavailable(
                        f"{self.base_url} has no file {file_id}", status=_NOT_FOUND
                    )
                raise_for_status(answer, self.base_url, key=self._key)
            # Not by httpx's own lines: it ends them at U+2028 too, which may stand in an answer.
            rest = b""
            for piece in answer.iter_bytes():
                *whole, rest = (rest + piece).split(b"\n")
                yield from (line for line in whole if line.strip())
            if rest.strip():
                yield rest

    def remove_file(self, file_id: str) -> None:
        """Remove a file, if it is there."""
        with self._errors():
            answer = self._http.delete(f"/files/{file_id}")
            if answer.status_code != _NOT_FOUND:
                raise_for_status(answer, self.base_url, key=self._key)

    def _pages(self, path: str) -> Iterator[Mapping[str, Any]]:
        """Yield what a list of the host has, page by page.

        Raises:
            EngineUnavailable: The list does not come to an end.
        """
        after: str | None = None
        for _ in range(_MAX_PAGES):
            query = {"limit": _PAGE} | ({"after": after} if after else {})
            page = self._unless_busy(lambda: self._json(self._http.get(path, params=query)))  # noqa: B023
            items = page.get("data") or []
            yield from items
            # Moonshot gives all files at once, and says nothing of more.
            if not page.get("has_more") or not items:
                return
            after = str(items[-1]["id"])
        raise EngineUnavailable(
            f"{self.base_url}{path} has more than {_PAGE * _MAX_PAGES:,} entries; remove old ones"
        )

    def _unless_busy(self, call: Callable[[], _Got]) -> _Got:
        """Return what a call gives, made again where the host says that it has too much to do.

        Raises:
            EngineUnavailable: It says so again and again, or does not answer.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                with self._errors():
                    return call()
            except EngineUnavailable as exc:
                if exc.status != _BUSY or attempt == self._retry.max_attempts:
                    raise
                self.pause(self._retry.delay_s(attempt, exc.retry_after_s))

    def _json(self, answer: httpx.Response) -> Mapping[str, Any]:
        """Return the object that an answer is.

        Raises:
            EngineUnavailable: It is none.
        """
        raise_for_status(answer, self.base_url, key=self._key)
        try:
            value = answer.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise EngineUnavailable(
                f"{answer.url} answered {answer.status_code} with what is not a JSON object"
            )
        return value

    def _errors(self) -> AbstractContextManager[None]:
        return map_errors(self.base_url)


def _batch(value: Mapping[str, Any]) -> HostBatch:
    """Return a batch as the host's JSON has it.

    Raises:
        EngineUnavailable: It is none.
    """
    try:
        counts = value.get("request_counts") or {}
        ended = (value.get(f"{status}_at") for status in ENDED)
        return HostBatch(
            batch_id=str(value["id"]),
            file_id=str(value["input_file_id"]),
            status=str(value["status"]),
            key=(value.get("metadata") or {}).get(KEY),
            output_file_id=value.get("output_file_id") or None,
            error_file_id=value.get("error_file_id") or None,
            created_at=float(value.get("created_at") or 0),
            ended_at=float(next((at for at in ended if at), 0)),
            expires_at=float(value.get("expires_at") or 0),
            num_answered=int(counts.get("completed") or 0),
            num_failed=int(counts.get("failed") or 0),
            errors=tuple(_errors_of(value.get("errors"))),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise EngineUnavailable(
            f"the host told of a batch without id, file or status: {sorted(value)}"
        ) from exc


def _errors_of(value: object) -> Iterator[tuple[int | None, str]]:
    """Yield why a file was refused; hosts give a list, an object with one, or a text."""
    found = value.get("data") if isinstance(value, Mapping) else value
    if isinstance(found, str) and found:
        yield None, found
    for error in found if isinstance(found, list) else ():
        line = error.get("line")
        yield line if isinstance(line, int) else None, str(error.get("message") or error)
