"""PDF pages whose every character has a known place: Courier, 0.6 em wide, on any kind of page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Box = tuple[float, float, float, float]
ADVANCE = 0.6
ASCENT, DESCENT = 0.62, 0.18
"""Reach of Courier's letters above and below the baseline, in font sizes."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A line of text from its baseline's start, turned counter-clockwise."""

    x: float
    y: float
    text: str
    size: float = 12
    degrees: int = 0

    def operators(self) -> str:
        angle = math.radians(self.degrees)
        a, b = round(math.cos(angle), 6), round(math.sin(angle), 6)
        safe = self.text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        return f"BT /F1 {self.size} Tf {a} {b} {-b} {a} {self.x} {self.y} Tm ({safe}) Tj ET\n"

    def box(self) -> Box:
        """Return left, bottom, right, top in canvas units."""
        angle = math.radians(self.degrees)
        along, across = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
        length = ADVANCE * self.size * len(self.text)
        corners = [
            (self.x + d * along[0] + h * across[0], self.y + d * along[1] + h * across[1])
            for d in (0, length)
            for h in (-DESCENT * self.size, ASCENT * self.size)
        ]
        xs, ys = zip(*corners, strict=True)
        return (min(xs), min(ys), max(xs), max(ys))


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page of texts."""

    texts: Sequence[Text]
    media: Box = (0, 0, 600, 800)
    crop: Box | None = None
    rotate: int = 0
    extra: str = ""
    """More operators, such as ruled lines."""

    def place(self, box: Box) -> Box:
        """Return a box in canvas units as fractions of the upright page, from the top left."""
        left, bottom, right, top = self.crop or self.media
        width, height = right - left, top - bottom
        x0, x1 = (box[0] - left) / width, (box[2] - left) / width
        y0, y1 = (top - box[3]) / height, (top - box[1]) / height
        return {
            0: (x0, y0, x1, y1),
            90: (1 - y1, x0, 1 - y0, x1),
            180: (1 - x1, 1 - y1, 1 - x0, 1 - y0),
            270: (y0, 1 - x1, y1, 1 - x0),
        }[self.rotate]


def write_pages(path: Path, pages: Sequence[Page]) -> Path:
    """Write a PDF of these pages."""
    kids = " ".join(f"{4 + 2 * index} 0 R" for index in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Courier /Encoding /WinAnsiEncoding >>",
    ]
    for index, page in enumerate(pages):
        content = page.extra + "".join(text.operators() for text in page.texts)
        crop = f"/CropBox [{_numbers(page.crop)}] " if page.crop else ""
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [{_numbers(page.media)}] {crop}"
            f"/Rotate {page.rotate} /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {5 + 2 * index} 0 R >>",
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        ]
    data, offsets = b"%PDF-1.7\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode("cp1252")
    count = len(objects) + 1
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    end = f"trailer << /Size {count} /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF\n"
    path.write_bytes(data + f"xref\n0 {count}\n0000000000 65535 f \n{table}{end}".encode())
    return path


def _numbers(box: Box) -> str:
    return " ".join(f"{side:g}" for side in box)
