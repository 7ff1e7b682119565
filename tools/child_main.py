"""The beginning and end of each child process of `tools.child`: a request in, a reply out, as JSON."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from types import TracebackType

import orjson

_MAX_TRACEBACK_CHARS = 4_000


def main(module: str) -> None:
    """Write what the module's `answer` returns for the request on stdin."""
    # Libraries write to the terminal as they like, DuckDB a progress bar: only the reply goes to the parent.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def tell(kind: type[BaseException], exc: BaseException, at: TracebackType | None) -> None:
        """Hand an error of the program itself to the parent, whose log it belongs into."""
        text = "".join(traceback.format_exception(kind, exc, at))
        replies.write(orjson.dumps({"crashed": text[-_MAX_TRACEBACK_CHARS:]}))
        replies.flush()

    sys.excepthook = tell
    request = orjson.loads(sys.stdin.buffer.read())
    replies.write(orjson.dumps({"reply": importlib.import_module(module).answer(request)}))
    replies.flush()
