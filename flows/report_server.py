"""Serves the reports of this machine's runs to its own browser; `headrace up` starts it.

Read-only: a page is the report that lies in the run's sink, whatever storage that is. Nothing but run
ids comes from the address, and pages run no scripts.
"""

from __future__ import annotations

import argparse
import html
import logging
import re
import signal
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from config.errors import ConfigError
from connectors.errors import ConnectorError
from flows.run.registry import RunEntry, find_run, known_runs, open_sink

logger = logging.getLogger(__name__)

MAX_LISTED = 200
"""Runs on the first page; older ones are still served by their address."""

_RUN = re.compile(r"/runs/([A-Za-z0-9][A-Za-z0-9_.-]{0,99})/?")
_LOCAL_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?")
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    # What a report needs: its own style and its pictures. A document's text can start no script.
    "Content-Security-Policy": (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.35rem .8rem .35rem 0;"
    "border-bottom:1px solid #ddd;overflow-wrap:anywhere}"
)


def page_for(path: str) -> tuple[HTTPStatus, str]:
    """Return the status and the HTML of an address of this server."""
    if path == "/":
        return HTTPStatus.OK, _listing(known_runs()[:MAX_LISTED])
    if path == "/health":
        return HTTPStatus.OK, "ok"
    match = _RUN.fullmatch(path)
    try:
        return _report(match[1]) if match else _sorry("There is no such page.")
    except ConfigError as exc:
        return _sorry(str(exc))
    except ConnectorError as exc:
        return _sorry(str(exc), HTTPStatus.BAD_GATEWAY)


def _report(run_id: str) -> tuple[HTTPStatus, str]:
    entry = find_run(run_id)
    if entry.run_id != run_id:
        return _sorry(f"There is no run {run_id} on this machine.")
    held = open_sink(entry.sink).storage.find(f"reports/{run_id}/index.html")
    if held is None:
        return _sorry(f"Run {run_id} has no report yet; it is written when the run ends.")
    return HTTPStatus.OK, held.data.decode("utf-8", errors="replace")


def _listing(runs: list[RunEntry]) -> str:
    rows = "".join(
        f'<tr><td><a href="/runs/{html.escape(run.run_id)}/">{html.escape(run.run_id)}</a></td>'
        f"<td>{html.escape(run.pipeline)}</td><td>{html.escape(_state(run))}</td>"
        f"<td>{html.escape(run.source)}</td></tr>"
        for run in runs
    )
    head = "<tr><th>run</th><th>pipeline</th><th>state</th><th>source</th></tr>"
    table = f"<table>{head}{rows}</table>" if runs else "<p>No run yet.</p>"
    return _frame("Runs of this machine", table)


def _state(run: RunEntry) -> str:
    return (run.verdict or run.state).replace("_", " ")


def _sorry(message: str, status: HTTPStatus = HTTPStatus.NOT_FOUND) -> tuple[HTTPStatus, str]:
    text = f'<p>{html.escape(message)}</p><p><a href="/">All runs</a></p>'
    return status, _frame(status.phrase, text)


def _frame(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>{body}</body></html>"
    )


class _Handler(BaseHTTPRequestHandler):
    server_version = "headrace"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        # Another site's name that leads to this address must not read reports.
        if _LOCAL_HOST.fullmatch(self.headers.get("Host", "")) is None:
            status, page = _sorry("Use the address 127.0.0.1.", HTTPStatus.FORBIDDEN)
        else:
            status, page = page_for(self.path.partition("?")[0])
        data = page.encode()
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_HEAD = do_GET  # noqa: N815 - the base's own name

    def log_message(self, format: str, *args: object) -> None:
        logger.info(format, *args)


class ReportServer(ThreadingHTTPServer):
    """The server, on a port of 127.0.0.1; 0 takes a free one."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)


def main() -> int:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description="Serve the reports of this machine's runs.")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ReportServer(arguments.port) as server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
