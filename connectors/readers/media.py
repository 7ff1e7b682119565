"""Pixels to JPEG, for the readers that see pages and frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from connectors.document import Media
from connectors.errors import StorageError

Pixels: TypeAlias = NDArray[np.uint8]
"""Height x width x 3, blue first, as OpenCV has it."""

_JPEG_QUALITY = 85
BLANK_DEVIATION = 2.0
"""An image whose colours deviate less from their mean is blank."""

# The pool runs one reader per core already.
cv2.setNumThreads(1)


def fit(pixels: Pixels, max_px: int) -> Pixels:
    """Return the image scaled down so that its long side is at most `max_px`."""
    height, width = pixels.shape[:2]
    scale = max_px / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return as_pixels(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def encode_jpeg(pixels: Pixels) -> bytes:
    """Return the image as a JPEG."""
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return bytes(data)


def write_jpeg(pixels: Pixels, folder: Path, name: str) -> Media:
    """Write the image into the folder.

    Raises:
        StorageError: The folder cannot be written, for example because the disk is full.
    """
    try:
        (folder / name).write_bytes(encode_jpeg(pixels))
    except OSError as exc:
        raise StorageError(
            f"cannot write page image {name!r} into {folder}: {exc.strerror}; "
            "free space there or choose another scratch folder",
            uri=folder.as_uri(),
        ) from exc
    height, width = pixels.shape[:2]
    return Media(name=name, width_px=width, height_px=height)


def is_blank(pixels: Pixels) -> bool:
    """Say whether the image has one colour all over, but for noise."""
    _, deviations = cv2.meanStdDev(pixels)
    return float(deviations.max()) < BLANK_DEVIATION


def as_pixels(array: Any) -> Pixels:  # noqa: ANN401 - what OpenCV returns has no type
    """Return an OpenCV array as pixels with three channels."""
    if array.ndim == 2:
        array = cv2.cvtColor(array, cv2.COLOR_GRAY2BGR)
    elif array.shape[2] == 4:
        array = cv2.cvtColor(array, cv2.COLOR_BGRA2BGR)
    return np.ascontiguousarray(array, dtype=np.uint8)
