"""Plain PDFs for corpora that are made up: pages of lines in one font."""

from __future__ import annotations

from collections.abc import Sequence

_LINE_PT = 14


def pdf(pages: Sequence[Sequence[str]]) -> bytes:
    """Return a PDF with these lines on its pages, from the top of each; ASCII only."""
    kids = " ".join(f"{4 + 2 * page} 0 R" for page in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >>",
    ]
    for page, lines in enumerate(pages):
        shown = " T* ".join(f"({_escaped(line)}) Tj" for line in lines)
        content = f"BT /F1 12 Tf {_LINE_PT} TL 72 780 Td {shown} ET"
        objects += [
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Resources << /Font 3 0 R >>"
            f" /Contents {5 + 2 * page} 0 R >>",
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        ]
    data, offsets = b"%PDF-1.7\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode("ascii")
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    count = len(objects) + 1
    head = f"xref\n0 {count}\n0000000000 65535 f \n{table}"
    end = f"trailer << /Size {count} /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF\n"
    return data + (head + end).encode("ascii")


def _escaped(line: str) -> str:
    for mark in ("\\", "(", ")"):
        line = line.replace(mark, f"\\{mark}")
    return line
