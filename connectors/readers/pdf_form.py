"""Values of a PDF form. PDFium's text holds the form's labels but mostly not what was filled in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pypdf import PageObject, PdfReader
from pypdf.errors import PyPdfError
from pypdf.generic import ArrayObject, DictionaryObject, NameObject

from connectors.readers import ReaderOptions
from connectors.readers.pdf_boxes import Box, turn_box, within_page

_MAX_PARENTS = 32

SLIPS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What libraries in Python let out on damaged files besides errors of their own."""

FORM_ERRORS = (PyPdfError, *SLIPS)


class FormValue(NamedTuple):
    """One filled-in field: its full name, its value, and where the page shows it."""

    name: str
    value: str
    page: int
    bbox: Box | None


def read_form(path: Path, options: ReaderOptions) -> Iterator[FormValue]:
    """Yield the fields that have a value, page by page.

    Raises:
        Exception: One of `FORM_ERRORS`, where the file's form is damaged.
    """
    reader = PdfReader(path)
    # The empty password opens a file that only its owner's password protects.
    if reader.is_encrypted and options.password is not None and not reader.decrypt(""):
        reader.decrypt(options.password.value)
    for number, page in enumerate(reader.pages[: options.max_pages], start=1):
        for reference in page.get("/Annots") or ():
            widget = reference.get_object()
            if not isinstance(widget, DictionaryObject) or widget.get("/Subtype") != "/Widget":
                continue
            value = _value(_inherited(widget, "/V"), widget)
            if value:
                yield FormValue(_full_name(widget), value, number, _bbox(page, widget))


def _lineage(widget: DictionaryObject) -> Iterator[DictionaryObject]:
    node: object = widget
    for _ in range(_MAX_PARENTS):
        if not isinstance(node, DictionaryObject):
            return
        yield node
        parent = node.get("/Parent")
        node = parent.get_object() if parent is not None else None


def _inherited(widget: DictionaryObject, key: str) -> object:
    for node in _lineage(widget):
        if key in node:
            return node[key]
    return None


def _full_name(widget: DictionaryObject) -> str:
    names = [str(node["/T"]) for node in _lineage(widget) if "/T" in node]
    return ".".join(reversed(names)) or "unnamed"


def _value(value: object, widget: DictionaryObject) -> str:
    if isinstance(value, ArrayObject):
        return ", ".join(" ".join(str(item).split()) for item in value)
    if isinstance(value, NameObject):
        # A check box or radio button: only the widget that is switched on shows the value.
        shown = widget.get("/AS", value)
        return "" if value == "/Off" or shown != value else str(value).removeprefix("/")
    if isinstance(value, DictionaryObject):
        # A signature: bytes for a program to check.
        return ""
    return " ".join(str(value).split()) if value is not None else ""


def _bbox(page: PageObject, widget: DictionaryObject) -> Box | None:
    rect = widget.get("/Rect")
    if not isinstance(rect, ArrayObject) or len(rect) != 4:
        return None
    crop = page.cropbox
    width, height = float(crop.width), float(crop.height)
    if width <= 0 or height <= 0:
        return None
    x0, x1 = sorted((float(rect[index]) - float(crop.left)) / width for index in (0, 2))
    y0, y1 = sorted(1 - (float(rect[index]) - float(crop.bottom)) / height for index in (1, 3))
    return within_page(turn_box((x0, y0, x1, y1), page.rotation // 90))
