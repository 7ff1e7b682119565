"""Gives memory back to the machine. The C library keeps what was freed, and OCR frees hundreds of MB."""

from __future__ import annotations

import ctypes

_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)


def trim() -> None:
    """Return freed memory to the system, where the C library can (glibc). Takes milliseconds."""
    if _TRIM is not None:
        _TRIM(0)
