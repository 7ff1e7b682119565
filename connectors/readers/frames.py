"""Chooses the frames of a film that are worth showing: cuts first, then a floor rate, nothing twice.

The video reader hands on every frame it decodes. All but a few are only compared with the frame
before, on their brightness scaled down, since that has to cost less than the decoding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from connectors.document import Media, Segment, Span
from connectors.readers import ReaderOptions
from connectors.readers.contact_sheet import Tile, make_tile
from connectors.readers.media import BLANK_DEVIATION, Pixels, as_pixels, fit, is_blank, write_jpeg
from connectors.readers.ocr import MIN_CONFIDENCE_FRAME, OcrLine, line_segments, read_lines

_CUT_SIZE, _LOOK_SIZE = (80, 45), (160, 90)
"""Pixels on which frames are compared: every frame with the one before, and those that may be shown."""
_CUT_DIFFERENCE = 20.0
"""Mean change of grey, of 255, between neighbouring frames that makes a hard cut."""
_PIXEL_CHANGE = 12
_SAME_SHARE = 0.001
"""Two frames with fewer changed pixels than this show the same: a moved pointer and the marks of
compression change fewer, a changed digit of a headline more."""
_MIN_DISTANCE_S = 0.05
_MINUTE_S = 60.0
_LUMA_FIRST = frozenset({
    "gray", "nv12", "yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuvj422p", "yuvj444p",
})  # fmt: skip
"""Pixel formats whose first plane is the brightness, a byte each: it is taken as it lies there."""

Grey = NDArray[np.uint8]


@dataclass(slots=True)
class _Frame:
    """A frame that may be shown."""

    time_s: float
    is_cut: bool
    """Whether a shot begins with it, or the film."""
    grey: Grey
    pixels: Pixels | None
    """None when it was written, or left out."""
    until_s: float
    """When a frame was seen that shows something else."""


@dataclass(frozen=True, slots=True)
class _Shown:
    frame: _Frame
    media: Media
    lines: Sequence[OcrLine]


class Sampler:
    """Takes the frames of one film in order and keeps those that are shown, minute by minute."""

    def __init__(self, options: ReaderOptions, media_dir: Path, duration_s: float) -> None:
        """Start a film.

        Args:
            options: Intervals and limits.
            media_dir: Where the JPEGs go.
            duration_s: Length as the container states it, by which `max_frames` is shared out; 0 if
                it does not.
        """
        self.interval_s = max(
            options.frame_interval_s,
            _MINUTE_S / options.frames_per_minute,
            duration_s / options.max_frames,
        )
        self.tiles: list[Tile] = []
        self.num_same = 0
        """Frames that were due or began a shot, and showed what one of the minute before shows."""
        self.num_over_budget = 0
        self.num_cuts_left_out = 0
        self._options = options
        self._media_dir = media_dir
        self._duration_s = duration_s
        self._start_s: float | None = None
        self._minute_end_s = -math.inf
        self._room = 0
        self._before: Grey | None = None
        self._looked_s = -math.inf
        self._cut_waits = False
        self._open: _Frame | None = None
        self._recent: list[_Frame] = []
        self._cuts: list[_Frame] = []
        self._floor: list[_Frame] = []
        self._shown: list[_Shown] = []

    @property
    def media(self) -> list[Media]:
        """The JPEGs of the frames that are shown."""
        return [shown.media for shown in self._shown]

    def take(self, frame: av.VideoFrame, time_s: float) -> bool:
        """Look at the frame where it is due or begins a shot; return False when no more are wanted."""
        if time_s >= self._minute_end_s:
            self._turn(time_s)
        if self._room == 0:
            return len(self._shown) < self._options.max_frames
        grey = _brightness(frame, _CUT_SIZE, cv2.INTER_LINEAR)
        before, self._before = self._before, grey
        self._cut_waits |= before is None or _difference(grey, before) > _CUT_DIFFERENCE
        since = time_s - self._looked_s
        if since >= self.interval_s - 1e-6 or (self._cut_waits and since >= _MIN_DISTANCE_S):
            self._looked_s = time_s
            self._look(frame, time_s)
            self._cut_waits = False
        return True

    def finish(self, until_s: float) -> None:
        """Write what is left; the last frame is shown until the given time."""
        self._close(until_s)
        self._write_minute()

    def segments(self) -> list[Segment]:
        """Return each frame with the text on it, by time; call it after `finish`."""
        found = []
        for shown in self._shown:
            frame, name = shown.frame, shown.media.name
            span = Span(t0=round(frame.time_s, 3), t1=round(frame.until_s, 3))
            image = Segment(kind="image", text="", span=span, tier="none", media=name)
            found += [image, *line_segments(shown.lines, span, name)]
        return found

    def _look(self, frame: av.VideoFrame, time_s: float) -> None:
        grey = _brightness(frame, _LOOK_SIZE, cv2.INTER_AREA)
        if self._open is not None and _shows_the_same(grey, self._open.grey):
            self.num_same += 1
            return
        self._close(time_s)
        self._recent = [old for old in self._recent if time_s - old.time_s <= _MINUTE_S]
        if any(_shows_the_same(grey, old.grey) for old in self._recent):
            self.num_same += 1
            return
        pixels = fit(upright(frame), self._options.raster_long_side_px)
        # Grey that varies so much is cheap to see, and then the colours do too.
        if grey.std() < BLANK_DEVIATION and is_blank(pixels):
            return
        found = _Frame(time_s, self._cut_waits, grey, pixels, until_s=time_s)
        self._open = found
        self._recent.append(found)
        (self._cuts if found.is_cut else self._floor).append(found)
        if len(self._cuts) > 2 * self._room:
            # A strobe; so it takes no more memory than two minutes' frames.
            self._cuts = self._thinned(self._cuts, self._room)

    def _close(self, time_s: float) -> None:
        if self._open is not None:
            self._open.until_s = max(self._open.time_s, time_s)
            self._open = None

    def _turn(self, time_s: float) -> None:
        """Begin the minute that the time is in."""
        self._write_minute()
        if self._start_s is None:
            self._start_s = time_s
        minutes = math.floor((time_s - self._start_s) / _MINUTE_S) + 1
        self._minute_end_s = self._start_s + minutes * _MINUTE_S
        share = 1.0
        if self._duration_s > 0:
            share = min(1.0, minutes * _MINUTE_S / self._duration_s)
        # What earlier minutes left is there for later ones, but for the limit of each minute.
        total = max(1, math.floor(share * self._options.max_frames + 1e-9))
        self._room = max(0, min(self._options.frames_per_minute, total - len(self._shown)))

    def _write_minute(self) -> None:
        cuts = self._thinned(self._cuts, self._room)
        floor = self._thinned(self._floor, self._room - len(cuts), beside=cuts)
        self._cuts, self._floor = [], []
        for frame in sorted([*cuts, *floor], key=lambda frame: frame.time_s):
            self._write(frame)

    def _write(self, frame: _Frame) -> None:
        pixels, frame.pixels = frame.pixels, None
        assert pixels is not None  # it is written once
        media = write_jpeg(pixels, self._media_dir, f"t{frame.time_s:08.2f}.jpg")
        lines = read_lines(pixels, self._options.ocr, MIN_CONFIDENCE_FRAME)
        self._shown.append(_Shown(frame, media, lines))
        self.tiles.append(make_tile(pixels, frame.time_s))

    def _thinned(
        self, frames: Sequence[_Frame], num: int, beside: Iterable[_Frame] = ()
    ) -> list[_Frame]:
        """Return at most `num` frames, far from each other and from those beside; count the rest."""
        if len(frames) <= num:
            return list(frames)
        kept: list[_Frame] = []
        times = [frame.time_s for frame in beside]
        left = list(frames)
        for _ in range(num):
            far = max(left, key=lambda frame: _distance(frame.time_s, times))
            left.remove(far)
            kept.append(far)
            times.append(far.time_s)
        for frame in left:
            frame.pixels = None
            self.num_over_budget += 1
            self.num_cuts_left_out += frame.is_cut
        return sorted(kept, key=lambda frame: frame.time_s)


def upright(frame: av.VideoFrame) -> Pixels:
    """Return the frame's pixels, turned as the file says."""
    pixels = as_pixels(frame.to_ndarray(format="bgr24"))
    turn = {
        90: cv2.ROTATE_90_COUNTERCLOCKWISE,
        180: cv2.ROTATE_180,
        270: cv2.ROTATE_90_CLOCKWISE,
    }.get(round(frame.rotation) % 360)
    return pixels if turn is None else as_pixels(cv2.rotate(pixels, turn))


def _distance(time_s: float, times: Sequence[float]) -> float:
    return min((abs(time_s - other) for other in times), default=math.inf)


def _brightness(frame: av.VideoFrame, size: tuple[int, int], interpolation: int) -> Grey:
    """Return the frame in grey, small; linear is cheap, and area sees every pixel."""
    plane = frame.planes[0]
    if frame.format.name not in _LUMA_FIRST or plane.line_size <= 0:
        small = frame.reformat(width=size[0], height=size[1], format="gray", interpolation="AREA")
        return np.asarray(small.to_ndarray(), np.uint8)
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    luma = rows[: frame.height, : frame.width]
    return np.asarray(cv2.resize(luma, size, interpolation=interpolation), np.uint8)


def _difference(one: Grey, other: Grey) -> float:
    return float(cv2.norm(one, other, cv2.NORM_L1)) / one.size


def _shows_the_same(one: Grey, other: Grey) -> bool:
    return float((cv2.absdiff(one, other) > _PIXEL_CHANGE).mean()) < _SAME_SHARE
