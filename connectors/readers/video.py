"""Reads video in one forward pass by PyAV: sampled frames, the text on them, and subtitles.

OpenCV hides damage, rotation and true time stamps; seeking to each second costs four to five times
as much as decoding everything once.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from connectors.document import Content, Media, Segment, Span, Unit
from connectors.errors import DocumentRejected
from connectors.readers import Password, ReaderOptions
from connectors.readers.media import Pixels, as_pixels, encode_jpeg, fit, is_blank, write_jpeg
from connectors.readers.ocr import MIN_CONFIDENCE_FRAME, line_segments, ocr_version, read_lines
from connectors.readers.subtitles import subtitle_segments

VERSION = 1
"""Raised whenever the same file gives other segments; it enters the chunk keys."""

_GREY_SIZE = (160, 90)
_CUT_DIFFERENCE = 20.0
"""Mean change of grey, of 255, between neighbouring frames that makes a hard cut."""
_PIXEL_CHANGE = 12
_SAME_SHARE = 0.002
"""Two frames with fewer changed pixels than this show the same."""
_MIN_DISTANCE_S = 0.05
_KEYFRAMES_ABOVE_S = 300.0
"""Longer videos are decoded at their keyframes only, which is 20 times cheaper."""
_MISSING_TAIL_S = 1.0

av.logging.set_level(av.logging.PANIC)
logging.getLogger("libav").setLevel(logging.CRITICAL)

Grey = NDArray[np.int16]


class _Sink(Protocol):
    def __call__(self, frame: av.VideoFrame, time_s: float) -> bool:
        """Take a decoded frame; return False when no more are wanted."""


@dataclass(slots=True)
class _Pass:
    """What one pass over the file found, besides the frames it handed on."""

    subtitles: list[Segment] = field(default_factory=list)
    first_s: float | None = None
    last_s: float = 0.0
    """Time of the last decoded frame."""
    packets_until_s: float = 0.0
    """Time of the last packet of any stream: how far the file goes."""
    error: str | None = None
    error_s: float = 0.0
    stopped: bool = False


@dataclass(slots=True)
class _Sampler:
    """Chooses frames and makes segments of them."""

    options: ReaderOptions
    media_dir: Path
    interval_s: float
    segments: list[Segment] = field(default_factory=list)
    media: list[Media] = field(default_factory=list)
    _before: Grey | None = None
    _kept: Grey | None = None
    _kept_s: float = 0.0

    def take(self, frame: av.VideoFrame, time_s: float) -> bool:
        """Keep the frame where it is due or starts a shot; return False when there are enough."""
        grey = _grey(frame)
        is_cut = self._before is not None and _difference(grey, self._before) > _CUT_DIFFERENCE
        self._before = grey
        since = time_s - self._kept_s
        is_due = self._kept is None or since >= self.interval_s - 1e-6
        if not (is_due or (is_cut and since >= _MIN_DISTANCE_S)):
            return True
        if self._kept is not None and _shows_the_same(grey, self._kept):
            # It is due again an interval later; what it shows is in the frame before.
            self._kept_s = time_s
            return True
        if len(self.media) == self.options.max_frames:
            return False
        self._kept, self._kept_s = grey, time_s
        pixels = fit(_upright(frame), self.options.raster_long_side_px)
        if not is_blank(pixels):
            self._keep(pixels, time_s)
        return True

    def _keep(self, pixels: Pixels, time_s: float) -> None:
        picture = write_jpeg(pixels, self.media_dir, f"t{max(0.0, time_s):08.2f}.jpg")
        stamp = round(time_s, 3)
        span = Span(t0=stamp, t1=stamp)
        lines = read_lines(pixels, self.options.ocr, MIN_CONFIDENCE_FRAME)
        image = Segment(kind="image", text="", span=span, tier="none", media=picture.name)
        self.segments += [image, *line_segments(lines, span, picture.name)]
        self.media.append(picture)


def read(path: Path, media_type: str, media_dir: Path, options: ReaderOptions) -> Content:
    """Return sampled frames with the text on them, and the container's subtitles, by time.

    A video that would give more frames than `max_frames` is sampled at a longer interval, which
    the metadata state.

    Raises:
        DocumentRejected: There is no video stream, or not one frame can be decoded.
    """
    with _opened(path) as container:
        duration_s = _duration_s(container)
        if duration_s > _KEYFRAMES_ABOVE_S:
            container.streams.video[0].codec_context.skip_frame = "NONKEY"
        # A quarter of the frames is left for cuts.
        longest = duration_s / max(1.0, 0.75 * options.max_frames)
        sampler = _Sampler(options, media_dir, max(options.frame_interval_s, longest))
        done = _run(container, sampler.take)
        end_s = _start_s(container) + duration_s
        stated = {
            "duration_s": f"{duration_s:.2f}",
            "frame_interval_s": f"{sampler.interval_s:.2f}",
        }
        title = container.metadata.get("title")
    if done.first_s is None:
        reason = done.error or "it holds no frames"
        raise DocumentRejected(f"not one frame can be decoded: {reason}", reason="damaged")
    if title:
        stated["title"] = title
    segments = [*sampler.segments, *done.subtitles]
    return Content(
        media_type=media_type,
        reader=_reader_name(options),
        units=(_seen(done, sampler), *_lost(done, end_s, duration_s, options)),
        segments=tuple(sorted(segments, key=lambda segment: segment.span.t0 or 0.0)),
        media=tuple(sampler.media),
        metadata=tuple(sorted(stated.items())),
    )


def preview(
    path: Path,
    media_type: str,  # noqa: ARG001
    span: Span,
    max_px: int,
    *,
    password: Password | None = None,  # noqa: ARG001
) -> bytes | None:
    """Return a JPEG of the frame at the span's start, or of the first frame.

    Raises:
        DocumentRejected: The file cannot be opened, or has no frame there.
    """
    wanted_s = span.t0
    found: list[av.VideoFrame] = []

    def take(frame: av.VideoFrame, time_s: float) -> bool:
        found[:] = [frame]
        return wanted_s is not None and time_s < wanted_s - 1e-3

    with _opened(path) as container:
        if wanted_s is not None and wanted_s > 1.0:
            container.seek(int(wanted_s * av.time_base), backward=True)
        _run(container, take)
        if not found:
            raise DocumentRejected(f"there is no frame at {wanted_s} s", reason="damaged")
        return encode_jpeg(fit(_upright(found[0]), max_px))


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    try:
        container = av.open(str(path), mode="r", metadata_errors="replace")
    except (av.FFmpegError, OSError) as exc:
        raise DocumentRejected(f"FFmpeg cannot open the video: {exc}", reason="damaged") from exc
    with container:
        if not container.streams.video:
            raise DocumentRejected("the file has no video stream", reason="unknown_type")
        yield container


def _run(container: av.container.InputContainer, take: _Sink) -> _Pass:
    """Decode the file once, forward; hand frames on until `take` has enough or the file ends."""
    done = _Pass()
    video = container.streams.video[0]
    try:
        for packet in container.demux():
            if packet.pts is not None and packet.time_base is not None:
                done.packets_until_s = max(
                    done.packets_until_s, float(packet.pts * packet.time_base)
                )
            if packet.stream.type == "subtitle":
                done.subtitles += subtitle_segments(packet)
            elif packet.stream is video and not _decode(packet, done, take):
                done.stopped = True
                break
    except av.FFmpegError as exc:
        _note(done, exc)
    return done


def _decode(packet: av.Packet[Any], done: _Pass, take: _Sink) -> bool:
    try:
        frames = packet.decode()
    except av.FFmpegError as exc:
        # What follows may be whole again from the next keyframe on.
        _note(done, exc)
        return True
    for frame in frames:
        if not isinstance(frame, av.VideoFrame) or frame.time is None or frame.is_corrupt:
            continue
        if done.first_s is None:
            done.first_s = frame.time
        done.last_s = frame.time
        if not take(frame, frame.time):
            return False
    return True


def _note(done: _Pass, exc: av.FFmpegError) -> None:
    if done.error is None:
        done.error, done.error_s = exc.strerror or type(exc).__name__, done.last_s


def _seen(done: _Pass, sampler: _Sampler) -> Unit:
    name = f"frames {done.first_s or 0.0:.2f}-{done.last_s:.2f} s"
    return Unit(name=name, status="read" if sampler.media or done.subtitles else "empty")


def _lost(done: _Pass, end_s: float, duration_s: float, options: ReaderOptions) -> Iterator[Unit]:
    if done.stopped:
        error = f"left out: reader.max_frames is {options.max_frames}"
        yield Unit(name=f"frames from {done.last_s:.2f} s", status="failed", error=error)
        return
    if done.error is not None:
        yield Unit(name=f"frames from {done.error_s:.2f} s", status="failed", error=done.error)
    elif end_s - done.packets_until_s > max(_MISSING_TAIL_S, 0.02 * duration_s):
        # Matroska ends without an error wherever it is cut.
        error = f"missing: the file ends there, and says that it lasts until {end_s:.2f} s"
        name = f"frames from {done.packets_until_s:.2f} s"
        yield Unit(name=name, status="failed", error=error)


def _duration_s(container: av.container.InputContainer) -> float:
    return container.duration / av.time_base if container.duration else 0.0


def _start_s(container: av.container.InputContainer) -> float:
    return container.start_time / av.time_base if container.start_time else 0.0


def _grey(frame: av.VideoFrame) -> Grey:
    width, height = _GREY_SIZE
    small = frame.reformat(width=width, height=height, format="gray", interpolation="AREA")
    return small.to_ndarray().astype(np.int16)


def _difference(one: Grey, other: Grey) -> float:
    return float(np.abs(one - other).mean())


def _shows_the_same(one: Grey, other: Grey) -> bool:
    return float((np.abs(one - other) > _PIXEL_CHANGE).mean()) < _SAME_SHARE


def _upright(frame: av.VideoFrame) -> Pixels:
    pixels = as_pixels(frame.to_ndarray(format="bgr24"))
    turn = {
        90: cv2.ROTATE_90_COUNTERCLOCKWISE,
        180: cv2.ROTATE_180,
        270: cv2.ROTATE_90_CLOCKWISE,
    }.get(round(frame.rotation) % 360)
    return pixels if turn is None else as_pixels(cv2.rotate(pixels, turn))


def _reader_name(options: ReaderOptions) -> str:
    minor = ".".join(importlib.metadata.version("av").split(".")[:2])
    changes = options.changes("frame_interval_s", "max_frames", "raster_long_side_px")
    name = f"video/{VERSION}+av-{minor}{changes}"
    return name if options.ocr == "off" else f"{name}+{ocr_version(options.ocr)}"
