"""Reads video in one forward pass by PyAV: frames worth showing, the text on them, and subtitles.

What is said is read off the sound in a pass of its own, where a pipeline asks for it.

OpenCV hides damage, rotation and true time stamps; seeking to each second costs four to five times
as much as decoding everything once.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import av

from connectors.document import Content, Segment, Span, Unit
from connectors.errors import DocumentRejected
from connectors.readers import VERSIONS, Password, ReaderOptions
from connectors.readers.contact_sheet import write_contact_sheet
from connectors.readers.frames import Sampler, upright
from connectors.readers.media import encode_jpeg, fit
from connectors.readers.ocr import ocr_version
from connectors.readers.speech import Heard, read_speech, speech_version
from connectors.readers.subtitles import subtitle_segments

VERSION = VERSIONS["video"]
"""Raised whenever the same file gives other segments; it enters the chunk keys."""

_KEYFRAMES_ABOVE_S = 300.0
"""Longer videos are decoded at their keyframes only, which is 20 times cheaper."""
_MISSING_TAIL_S = 1.0

av.logging.set_level(av.logging.PANIC)
logging.getLogger("libav").setLevel(logging.CRITICAL)


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
    ends: dict[int, int] = field(default_factory=dict)
    """By stream, where the last of its packets ends, in ticks of its time base."""
    shown_until_s: float = 0.0
    """When the last frame of the video stream ends, by its packets."""
    packets_until_s: float = 0.0
    """When the last packet of picture or sound ends: how far the file goes."""
    error: str | None = None
    error_s: float = 0.0
    broken_s: float | None = None
    """From here on frames are guesses, until the next keyframe."""
    stopped: bool = False

    def note(self, error: str, at_s: float | None = None) -> None:
        """Remember the first thing that went wrong, and where; by default at the last frame."""
        if self.error is None:
            self.error, self.error_s = error, self.last_s if at_s is None else at_s

    def is_guess(self, frame: av.VideoFrame, time_s: float) -> bool:
        """Say whether the frame builds on one that could not be decoded."""
        if self.broken_s is None or time_s < self.broken_s:
            return False
        if frame.key_frame:
            self.broken_s = None
            return False
        return True


@dataclass(slots=True)
class _Clock:
    """Says when frames are shown.

    AVI numbers its packets as they are decoded, not as they are shown, and frames take their times
    from them: those of H.264 with B-frames come jumbled, though the frames are in order. There the
    packet that let a frame out counts, less the decoder's delay, which is seen at the first.
    """

    is_by_packet: bool
    delay: int | None = None
    last: int = 0

    def time_s(self, frame: av.VideoFrame) -> float | None:
        """Return the frame's time in seconds of the container's clock; None where it has none."""
        if not self.is_by_packet or frame.pts is None or frame.time_base is None:
            return frame.time
        if frame.dts is None:
            # The decoder's last frames, let out by the end of the file.
            self.last += 1
        else:
            self.delay = frame.dts - frame.pts if self.delay is None else self.delay
            self.last = frame.dts - self.delay
        return float(self.last * frame.time_base)


def read(path: Path, media_type: str, media_dir: Path, options: ReaderOptions) -> Content:
    """Return sampled frames with the text on them, the container's subtitles, and speech, by time.

    The frame at a cut comes first, then one per interval, within `frames_per_minute` and, over the
    whole film, `max_frames`; what was looked at and not kept is counted in the metadata. A frame's
    span ends where the film shows something else. The last of the media is a contact sheet.

    Raises:
        DocumentRejected: There is no video stream, or not one frame can be decoded.
    """
    with _opened(path) as container:
        duration_s = _duration_s(container)
        if duration_s > _KEYFRAMES_ABOVE_S:
            _video(container).codec_context.skip_frame = "NONKEY"
        sampler = Sampler(options, media_dir, duration_s)
        done = _run(container, sampler.take)
        end_s = _start_s(container) + duration_s
        title = container.metadata.get("title")
    if done.first_s is None:
        reason = done.error or "it holds no frames"
        raise DocumentRejected(f"not one frame can be decoded: {reason}", reason="damaged")
    is_whole = done.error is None and not done.stopped
    sampler.finish(max(done.last_s, done.shown_until_s) if is_whole else done.last_s)
    seen = [*sampler.segments(), *done.subtitles]
    heard = _heard(path, options)
    media = sampler.media
    if media:
        media.append(write_contact_sheet(sampler.tiles, media_dir))
    missing = _missing(done, end_s, duration_s) or _missing_bytes(path)
    lost = [*_left_out(sampler, options), *_lost(done, missing, options)]
    return Content(
        media_type=media_type,
        reader=_reader_name(options),
        units=(_seen(done, has_any=bool(seen)), *lost, *heard.units),
        segments=tuple(sorted([*seen, *heard.segments], key=lambda one: one.span.t0 or 0.0)),
        media=tuple(media),
        metadata=tuple(sorted([*_metadata(duration_s, sampler, title), *heard.metadata])),
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

    first_s: float | None = None
    if wanted_s is not None and wanted_s > 1.0:
        with _opened(path) as container, suppress(av.FFmpegError):
            container.seek(int(wanted_s * av.time_base), backward=True)
            first_s = _run(container, take).first_s
    if first_s is None or wanted_s is None or first_s > wanted_s + 1e-3:
        # Near the start, or the index led behind the frame, or nowhere.
        with _opened(path) as container:
            _run(container, take)
    if not found:
        raise DocumentRejected(f"there is no frame at {wanted_s} s", reason="damaged")
    return encode_jpeg(fit(upright(found[0]), max_px))


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    try:
        container = av.open(str(path), mode="r", metadata_errors="replace")
    except (av.FFmpegError, OSError) as exc:
        raise DocumentRejected(f"FFmpeg cannot open the video: {exc}", reason="damaged") from exc
    with container:
        stream = container.streams.best("video")
        if stream is None or _is_cover(stream):
            but = " but a cover picture" if stream else ""
            error = f"the file has no video stream{but}; sound alone is not read"
            raise DocumentRejected(error, reason="unknown_type")
        yield container


def _is_cover(stream: av.stream.Stream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _video(container: av.container.InputContainer) -> av.VideoStream:
    """Return the film itself; a cover picture is a video stream too."""
    stream = container.streams.best("video")
    assert isinstance(stream, av.VideoStream)  # `_opened` has looked
    return stream


def _run(container: av.container.InputContainer, take: _Sink) -> _Pass:
    """Decode the file once, forward; hand frames on until `take` has enough or the file ends."""
    done = _Pass()
    video = _video(container)
    clock = _Clock(container.format.name == "avi" and video.codec_context.skip_frame == "DEFAULT")
    try:
        for packet in container.demux():
            _measure(packet, done)
            stream = packet.stream
            if stream is video:
                if not _decode(packet, done, clock, take):
                    done.stopped = True
                    break
            elif stream.type == "subtitle":
                done.subtitles += subtitle_segments(packet)
    except av.FFmpegError as exc:
        done.note(exc.strerror or type(exc).__name__)
    for stream in container.streams:
        if stream.index in done.ends and stream.time_base is not None:
            end_s = float(done.ends[stream.index] * stream.time_base)
            # A subtitle may say to be shown for longer than the film goes.
            if stream.type != "subtitle":
                done.packets_until_s = max(done.packets_until_s, end_s)
            if stream is video:
                done.shown_until_s = end_s
    return done


def _measure(packet: av.Packet[Any], done: _Pass) -> None:
    """Note where the packet ends, in ticks: this is done for each, and fractions are slow."""
    if packet.pts is None:
        return
    index = packet.stream_index
    end = packet.pts + (packet.duration or 0)
    if end > done.ends.get(index, -math.inf):
        done.ends[index] = end


def _decode(packet: av.Packet[Any], done: _Pass, clock: _Clock, take: _Sink) -> bool:
    for frame in _frames(packet, done):
        time_s = clock.time_s(frame)
        if time_s is None:
            done.note("frames have no time stamps")
            continue
        if frame.is_corrupt:
            if done.first_s is not None:
                done.note("frames are damaged")
            continue
        if done.is_guess(frame, time_s):
            continue
        if done.first_s is None:
            done.first_s = time_s
        done.last_s = time_s
        if not take(frame, time_s):
            return False
    return True


def _frames(packet: av.Packet[Any], done: _Pass) -> list[av.VideoFrame]:
    try:
        return [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame)]
    except av.FFmpegError as exc:
        # What follows is whole again from the next keyframe on; the decoder makes up what is between.
        at_s = done.last_s
        if packet.pts is not None and packet.time_base is not None:
            at_s = float(packet.pts * packet.time_base)
        done.broken_s = at_s
        done.note(exc.strerror or type(exc).__name__, at_s)
        return []


def _seen(done: _Pass, *, has_any: bool) -> Unit:
    name = f"frames {done.first_s or 0.0:.2f}-{done.last_s:.2f} s"
    return Unit(name=name, status="read" if has_any else "empty")


def _left_out(sampler: Sampler, options: ReaderOptions) -> Iterator[Unit]:
    if sampler.num_cuts_left_out:
        error = (
            f"left out: reader.frames_per_minute is {options.frames_per_minute} and "
            f"reader.max_frames is {options.max_frames}"
        )
        name = f"scene changes over the budget: {sampler.num_cuts_left_out}"
        yield Unit(name=name, status="failed", error=error)


def _lost(done: _Pass, missing: str | None, options: ReaderOptions) -> Iterator[Unit]:
    """Yield the end that is lost; not all containers raise an error where they are torn."""
    if done.stopped:
        error = f"left out: reader.max_frames is {options.max_frames}"
        yield Unit(name=f"frames from {done.last_s:.2f} s", status="failed", error=error)
    elif done.error is not None:
        yield Unit(name=f"frames from {done.error_s:.2f} s", status="failed", error=done.error)
    elif missing is not None:
        name = f"frames from {done.packets_until_s:.2f} s"
        yield Unit(name=name, status="failed", error=f"missing: {missing}")


def _missing(done: _Pass, end_s: float, duration_s: float) -> str | None:
    """Return what Matroska shows of a torn end: that it says to last longer."""
    if end_s - done.packets_until_s <= max(_MISSING_TAIL_S, 0.02 * duration_s):
        return None
    return f"the file ends there, and says that it lasts until {end_s:.2f} s"


def _missing_bytes(path: Path) -> str | None:
    """Return what AVI shows of a torn end: FFmpeg takes the length from the bytes that are there."""
    with path.open("rb") as file:
        head = file.read(8)
    stated, size = int.from_bytes(head[4:8], "little") + 8, path.stat().st_size
    if head[:4] != b"RIFF" or stated <= size:
        return None
    return f"the file has {size:,} bytes, and says that it has {stated:,}"


def _duration_s(container: av.container.InputContainer) -> float:
    return container.duration / av.time_base if container.duration else 0.0


def _start_s(container: av.container.InputContainer) -> float:
    return container.start_time / av.time_base if container.start_time else 0.0


def _metadata(
    duration_s: float, sampler: Sampler, title: str | None
) -> tuple[tuple[str, str], ...]:
    stated = {
        "duration_s": f"{duration_s:.2f}",
        "frame_interval_s": f"{sampler.interval_s:.2f}",
        "frames_near_duplicate": str(sampler.num_same),
        "frames_over_budget": str(sampler.num_over_budget),
    }
    return tuple((stated | ({"title": title} if title else {})).items())


def _heard(path: Path, options: ReaderOptions) -> Heard:
    return Heard() if options.speech == "off" else read_speech(path, options.max_speech_s)


def _reader_name(options: ReaderOptions) -> str:
    minor = ".".join(importlib.metadata.version("av").split(".")[:2])
    changes = options.changes(
        "frame_interval_s", "frames_per_minute", "max_frames", "raster_long_side_px"
    )
    name = f"video/{VERSION}+av-{minor}{changes}"
    if options.speech != "off":
        name += f"{options.changes('max_speech_s')}+{speech_version()}"
    return name if options.ocr == "off" else f"{name}+{ocr_version(options.ocr)}"
