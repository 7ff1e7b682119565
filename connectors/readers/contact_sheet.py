"""One picture of all frames that a film is shown by, with their times: for people, not for models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from connectors.document import Media, clock
from connectors.readers.media import Pixels, fit, write_jpeg

NAME = "contact-sheet.jpg"
_TILE_PX = 320
_CAPTION_PX = 24
_GAP_PX = 8
_COLUMNS = 4
_INK, _PAPER = (230, 230, 230), 24


class Tile(NamedTuple):
    """A frame, small, and its time in seconds."""

    pixels: Pixels
    time_s: float


def make_tile(pixels: Pixels, time_s: float) -> Tile:
    """Return what the sheet needs of a frame."""
    return Tile(fit(pixels, _TILE_PX), time_s)


def write_contact_sheet(tiles: Sequence[Tile], media_dir: Path) -> Media:
    """Write the sheet: four frames a row in order, the time below each.

    Args:
        tiles: At least one.
        media_dir: An existing folder.
    """
    height = max(tile.pixels.shape[0] for tile in tiles) + _CAPTION_PX
    columns = min(_COLUMNS, len(tiles))
    num_rows = -(-len(tiles) // columns)
    step_x, step_y = _TILE_PX + _GAP_PX, height + _GAP_PX
    shape = (num_rows * step_y + _GAP_PX, columns * step_x + _GAP_PX, 3)
    sheet = np.full(shape, _PAPER, np.uint8)
    for number, (pixels, time_s) in enumerate(tiles):
        row, column = divmod(number, columns)
        x, y = _GAP_PX + column * step_x, _GAP_PX + row * step_y
        rows, width = pixels.shape[:2]
        sheet[y : y + rows, x : x + width] = pixels
        at = (x, y + rows + _CAPTION_PX - 8)
        cv2.putText(sheet, clock(time_s), at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, _INK, 1, cv2.LINE_AA)
    return write_jpeg(sheet, media_dir, NAME)
