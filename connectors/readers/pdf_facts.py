"""What a PDF states about itself: title, outline, page labels, attached files.

Read by PDFium, which has the file open already: a second parser would cost seconds on long ones.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pypdfium2 as pdfium

_INFO = ("Title", "Author", "Subject", "Keywords")
_MAX_ENTRIES = 2000
"""Most entries of an outline, and most attachments, so that no file can fill the memory."""


def document_facts(document: pdfium.PdfDocument, num_pages: int) -> dict[str, str]:
    """Return what the file states, by name; what it does not state is left out.

    Lists are JSON: `outline` has `[level, title, page]`, with null for an entry that leads nowhere;
    `page_labels` one text per page, where they differ from the page numbers; `attachments` names.

    Args:
        document: The open file.
        num_pages: Pages whose labels are asked for.
    """
    stated = {name.lower(): _line(document.get_metadata_value(name)) for name in _INFO}
    lists: dict[str, list[object]] = {
        "outline": list(itertools.islice(_outline(document), _MAX_ENTRIES)),
        "page_labels": _page_labels(document, num_pages),
        "attachments": list(_attachments(document)),
    }
    stated |= {
        name: json.dumps(values, ensure_ascii=False) for name, values in lists.items() if values
    }
    return {name: value for name, value in stated.items() if value}


def _outline(document: pdfium.PdfDocument) -> Iterator[list[object]]:
    for entry in document.get_toc():
        place = entry.get_dest()
        index = place.get_index() if place is not None else None
        yield [entry.level + 1, _line(entry.get_title()), None if index is None else index + 1]


def _page_labels(document: pdfium.PdfDocument, num_pages: int) -> list[object]:
    labels = [_line(document.get_page_label(index)) for index in range(num_pages)]
    plain = [str(number) for number in range(1, num_pages + 1)]
    return [*labels] if any(labels) and labels != plain else []


def _attachments(document: pdfium.PdfDocument) -> Iterator[object]:
    for index in range(min(document.count_attachments(), _MAX_ENTRIES)):
        try:
            yield _line(document.get_attachment(index).get_name())
        except pdfium.PdfiumError:
            # Its entry is damaged: that there is one is worth knowing.
            yield f"unnamed {index + 1}"


def _line(text: str) -> str:
    printable = "".join(char if char.isprintable() else " " for char in text)
    # Lone surrogates fit into no table.
    return " ".join(printable.encode("utf-8", errors="ignore").decode("utf-8").split())
