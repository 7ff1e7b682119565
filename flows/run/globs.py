"""Globs on the path below a source."""

from __future__ import annotations

import re


def glob_regex(glob: str) -> str:
    """Return the regular expression of a glob: `*` and `?` stay in a folder, `**` crosses them."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        parts.get(token) or re.escape(token) for token in re.findall(r"\*\*/|\*\*|.", glob)
    )
