"""One HTTP call to a server that is no engine: Prefect's API, the reports of `headrace up`.

Prefect's own client takes seconds to import; commands that only ask something do without it.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping


def fetch(
    url: str,
    body: Mapping[str, object] | None = None,
    *,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float,
) -> bytes:
    """Return what the server answers.

    Errors are urllib's, all of them OSError but ValueError for what is no URL: HTTPError where it
    answers with an error, URLError where it does not answer.

    Args:
        url: What to ask.
        body: Sent as JSON; None for none.
        method: GET without a body and POST with one, where None.
        headers: On top of the content type.
        timeout_s: Seconds that the server may be silent.
    """
    request = urllib.request.Request(
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **(headers or {})},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return bytes(answer.read())
