"""Text off pixels: the text tier of scans and frames, for models that read text only.

RapidOCR's weights lie in its wheel, so nothing is fetched; the `tesseract` program is about three
times faster and must be installed. One engine per process, loaded at the first page.
"""

from __future__ import annotations

import csv
import functools
import importlib.metadata
import io
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from connectors.document import Segment, Span
from connectors.errors import ConnectorError, DocumentRejected
from connectors.readers import OcrName
from connectors.readers.heap import trim
from connectors.readers.media import Pixels

Box = tuple[float, float, float, float]

MIN_CONFIDENCE_PAGE = 0.6
MIN_CONFIDENCE_FRAME = 0.75
"""Frames show textures that look like letters; a page is mostly text."""

_NUM_THREADS = 1
"""Two readers with two threads each, which spin while they wait, took 4 to 8 times as long on two
cores as with one thread each."""
_TESSERACT_TIMEOUT_S = 60.0
_COLUMN_GUTTER = 0.015
"""Least width of the white space between two columns, as a fraction of the page."""
_COLUMN_WIDTH = 0.2
"""Least median width of a column's lines: narrower ones are columns of a table."""


@dataclass(frozen=True, slots=True)
class OcrLine:
    """One line of text, its box as fractions of the image, and the engine's confidence, 0 to 1."""

    text: str
    bbox: Box
    confidence: float


def check_ocr(name: OcrName) -> None:
    """Check that the engine can run here.

    Raises:
        ConnectorError: The program or the weights are missing; the message says how to mend it.
    """
    if name == "tesseract" and shutil.which("tesseract") is None:
        raise ConnectorError(
            "reader.ocr is 'tesseract', but there is no program `tesseract` on the PATH; "
            "install it (Debian: apt install tesseract-ocr) or set reader.ocr to 'rapidocr'"
        )


def ocr_version(name: OcrName) -> str:
    """Return `rapidocr-3.10` or `tesseract-5.3`: what the text depends on, down to the minor."""
    is_package = name == "rapidocr"
    version = importlib.metadata.version(name) if is_package else _tesseract_version()
    return f"{name}-{'.'.join(version.split('.')[:2])}"


def read_lines(pixels: Pixels, name: OcrName, min_confidence: float) -> list[OcrLine]:
    """Return the lines of text on an image in reading order; none when `name` is `off`.

    Raises:
        ConnectorError: The engine is missing.
        DocumentRejected: The engine gave up on this image.
    """
    if name == "off":
        return []
    lines = _rapidocr(pixels) if name == "rapidocr" else _tesseract(pixels)
    kept = [
        line
        for line in lines
        if line.confidence >= min_confidence and any(char.isalnum() for char in line.text)
    ]
    return in_reading_order(kept)


def line_segments(lines: Iterable[OcrLine], span: Span, media: str) -> list[Segment]:
    """Return one segment per line; `span` says where the image is, the line adds its box."""
    return [
        Segment(
            kind="paragraph",
            text=line.text,
            span=Span(page=span.page, t0=span.t0, t1=span.t1, bbox=line.bbox),
            tier="ocr",
            media=media,
        )
        for line in lines
    ]


def in_reading_order(lines: Sequence[OcrLine]) -> list[OcrLine]:
    """Sort lines top to bottom, left column first where there are columns of prose."""
    if len(lines) < 2:
        return list(lines)
    column = _split_columns(lines)
    if column is not None:
        left, right = column
        return [*in_reading_order(left), *in_reading_order(right)]
    bands = _split_bands(lines)
    if bands is not None:
        above, below = bands
        return [*in_reading_order(above), *in_reading_order(below)]
    return _by_rows(lines)


def _split_columns(lines: Sequence[OcrLine]) -> tuple[list[OcrLine], list[OcrLine]] | None:
    ordered = sorted(lines, key=lambda line: line.bbox[0])
    reach = ordered[0].bbox[2]
    for index, line in enumerate(ordered[1:], start=1):
        if line.bbox[0] - reach >= _COLUMN_GUTTER:
            left, right = ordered[:index], ordered[index:]
            if all(
                len(side) >= 3 and _median_width(side) >= _COLUMN_WIDTH for side in (left, right)
            ):
                return left, right
        reach = max(reach, line.bbox[2])
    return None


def _median_width(lines: Sequence[OcrLine]) -> float:
    return statistics.median(line.bbox[2] - line.bbox[0] for line in lines)


def _split_bands(lines: Sequence[OcrLine]) -> tuple[list[OcrLine], list[OcrLine]] | None:
    """Split at the widest horizontal gap."""
    ordered = sorted(lines, key=lambda line: line.bbox[1])
    reach, widest, at = ordered[0].bbox[3], 0.0, 0
    for index, line in enumerate(ordered[1:], start=1):
        if line.bbox[1] - reach > widest:
            widest, at = line.bbox[1] - reach, index
        reach = max(reach, line.bbox[3])
    return (ordered[:at], ordered[at:]) if at else None


def _by_rows(lines: Sequence[OcrLine]) -> list[OcrLine]:
    """Sort lines that overlap in height: row by row, from left to right."""
    rows: list[list[OcrLine]] = []
    for line in sorted(lines, key=_middle):
        height = line.bbox[3] - line.bbox[1]
        if rows and _middle(line) - _middle(rows[-1][-1]) < height / 2:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=lambda line: line.bbox[0])]


def _middle(line: OcrLine) -> float:
    return (line.bbox[1] + line.bbox[3]) / 2


@functools.cache
def _rapidocr_engine() -> Any:  # noqa: ANN401 - rapidocr has no types
    import rapidocr  # noqa: PLC0415 - 1 s and 300 MB, only where a page is scanned

    folder = Path(rapidocr.__file__).parent / "models"
    found = {kind: sorted(folder.glob(f"*_{kind}_*.onnx")) for kind in ("det", "rec", "cls")}
    missing = [kind for kind, files in found.items() if not files]
    if missing:
        # Without the files the library would fetch them, and Headrace fetches no models unasked.
        raise ConnectorError(
            f"rapidocr has no weights for {', '.join(missing)} in {folder}; install a release that "
            "ships them (rapidocr 3.10), or set reader.ocr to 'tesseract' or 'off'"
        )
    return rapidocr.RapidOCR(
        params={
            "Global.log_level": "error",
            # Lines are padded to the longest of a batch: six at once took up to 1.1 GB.
            "Rec.rec_batch_num": 2,
            "EngineConfig.onnxruntime.intra_op_num_threads": _NUM_THREADS,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Det.model_path": str(found["det"][0]),
            "Rec.model_path": str(found["rec"][0]),
            "Cls.model_path": str(found["cls"][0]),
        }
    )


def _rapidocr(pixels: Pixels) -> list[OcrLine]:
    result = _rapidocr_engine()(pixels)
    # Else memory grows with each image of another shape, from 0.8 to 1.2 GB over a few scans.
    trim()
    # Without any text the engine answers with an object that has no lines.
    if getattr(result, "txts", None) is None or getattr(result, "boxes", None) is None:
        return []
    height, width = pixels.shape[:2]
    lines = []
    for text, corners, score in zip(result.txts, result.boxes, result.scores, strict=True):
        x, y = corners[:, 0] / width, corners[:, 1] / height
        box = (float(x.min()), float(y.min()), float(x.max()), float(y.max()))
        lines.append(OcrLine(" ".join(text.split()), clip(box), float(score)))
    return lines


@functools.cache
def _tesseract_version() -> str:
    output = _run_tesseract(["--version"], b"").decode(errors="replace")
    return output.split()[1] if len(output.split()) > 1 else "unknown"


def _tesseract(pixels: Pixels) -> list[OcrLine]:
    _, png = cv2.imencode(".png", pixels)
    output = _run_tesseract(["stdin", "stdout", "--psm", "3", "tsv"], bytes(png))
    height, width = pixels.shape[:2]
    lines: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    rows = csv.DictReader(
        io.StringIO(output.decode(errors="replace")), delimiter="\t", quoting=csv.QUOTE_NONE
    )
    for row in rows:
        if row["level"] == "5" and (row["text"] or "").strip():
            lines.setdefault((row["block_num"], row["par_num"], row["line_num"]), []).append(row)
    return [_tesseract_line(words, width, height) for words in lines.values()]


def _tesseract_line(words: Sequence[dict[str, str]], width: int, height: int) -> OcrLine:
    box = (
        min(int(word["left"]) for word in words) / width,
        min(int(word["top"]) for word in words) / height,
        max(int(word["left"]) + int(word["width"]) for word in words) / width,
        max(int(word["top"]) + int(word["height"]) for word in words) / height,
    )
    confidence = statistics.fmean(float(word["conf"]) for word in words) / 100
    return OcrLine(" ".join(word["text"].strip() for word in words), clip(box), confidence)


def _run_tesseract(arguments: Sequence[str], data: bytes) -> bytes:
    check_ocr("tesseract")
    try:
        done = subprocess.run(
            ["tesseract", *arguments],
            input=data,
            capture_output=True,
            check=True,
            timeout=_TESSERACT_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as exc:
        raise DocumentRejected(
            f"tesseract took more than {_TESSERACT_TIMEOUT_S:.0f} s for one image", reason="timeout"
        ) from exc
    except subprocess.CalledProcessError as exc:
        said = exc.stderr.decode(errors="replace").strip()[-200:]
        raise ConnectorError(
            f"tesseract ended with status {exc.returncode}: {said}; run it by hand, or set "
            "reader.ocr to 'rapidocr'"
        ) from exc
    return done.stdout


def clip(box: Box) -> Box:
    """Return the box inside the image, rounded to what a page needs: 0.1 mm of an A4 sheet."""
    x0, y0, x1, y1 = (round(min(1.0, max(0.0, value)), 4) for value in box)
    return (x0, y0, x1, y1)
