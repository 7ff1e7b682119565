"""Finds the encoding of a text file."""

from __future__ import annotations

import codecs
from pathlib import Path

_BLOCK_BYTES = 1 << 20


def find_encoding(path: Path) -> str:
    """Return `utf-8-sig` or `utf-16` where the file is that, else `cp1252`, which fits any bytes."""
    with path.open("rb") as file:
        if file.read(2) in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
            return "utf-16"
        file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        try:
            while block := file.read(_BLOCK_BYTES):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "cp1252"
    return "utf-8-sig"
