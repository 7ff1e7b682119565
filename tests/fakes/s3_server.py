"""A fake object store: lists and returns objects over a socket, with any keys and scripted faults.

It checks no signature; what a store does with one is tested against SeaweedFS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.fakes.served import QuietHandler, Served

PAGE = 1000


class Seen(NamedTuple):
    """One request that came in."""

    target: str
    authorization: str | None


class FakeStore(Served):
    """One bucket of any name, served from a context manager."""

    def __init__(
        self,
        objects: Mapping[str, bytes],
        fault: Callable[[int], int | None] = lambda _: None,
        page: int = PAGE,
        region: str | None = None,
    ) -> None:
        """Serve these objects; `fault` gives a status for a request by number, 0 for a cut."""
        self.region = region
        self.objects = dict(objects)
        self.requests: list[Seen] = []
        self.fault = fault
        self.page = page

    def handler(self) -> type[BaseHTTPRequestHandler]:
        return _handler_of(self)

    def answer(self, target: str) -> tuple[int, bytes]:
        """Return the status and body of a GET."""
        parts = urlsplit(target)
        key = unquote(parts.path).lstrip("/").partition("/")[2]
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if not key:
            return 200, self._listing(query)
        data = self.objects.get(key)
        return (200, data) if data is not None else (404, _error("NoSuchKey"))

    def _listing(self, query: Mapping[str, str]) -> bytes:
        prefix = query.get("prefix", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        keys = sorted(self.objects, key=str.encode)
        found = [k for k in keys if k.startswith(prefix) and k.encode() > after.encode()]
        page, more = found[: self.page], len(found) > self.page
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"e"</ETag><Size>{len(self.objects[key])}</Size></Contents>'
            for key in page
        )
        return (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>'
            f"<KeyCount>{len(page)}</KeyCount><MaxKeys>{self.page}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}</ListBucketResult>"
        ).encode()


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>scripted</Message></Error>".encode()


def _handler_of(store: FakeStore) -> type[BaseHTTPRequestHandler]:
    class Handler(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802 - the name that the library calls
            number = len(store.requests)
            store.requests.append(Seen(self.path, self.headers.get("Authorization")))
            status = store.fault(number)
            if status == 0:
                self.close_connection = True
                return
            found, body = (status, _error("Scripted")) if status else store.answer(self.path)
            self.send_response(found)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/xml")
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.send_header("ETag", '"e"')
            if store.region is not None:
                self.send_header("x-amz-bucket-region", store.region)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the name that the library calls

    return Handler
