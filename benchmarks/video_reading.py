"""What reading a film costs: this reader beside one forward decode by PyAV, and beside its keyframes.

`python -m benchmarks.video_reading [--film FILM] [--runs 7]` makes a film itself where none is named.
The arms take turns in one process, so that the machine's moods meet all alike; the ratios are of
CPU time (user and system), turn by turn. Each arm decodes with PyAV's own choice of threads. The
plain loops decode, or decode and write JPEGs of the frames that the reader chose, told beforehand
which they are. OCR is off, since it is measured by the page and does not depend on the film. Above
300 s the reader takes keyframes only, so the film is played in a row, without encoding it anew, until
it is that long, and that arm is held against theirs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

from benchmarks.machine import machine, show
from connectors.readers import ReaderOptions, detect_media_type, video
from connectors.readers.media import as_pixels

_READER, _READER_LONG = "headrace reader", "headrace reader, keyframes"
_PAIRS = (
    (_READER, "decode once"),
    (_READER, "decode once, same JPEGs"),
    (_READER_LONG, "decode keyframes"),
    (_READER_LONG, "decode keyframes, same JPEGs"),
)
_LONG_S = 310.0
_FILM_S, _SHOT_S, _FPS = 24, 3, 25
_WIDTH, _HEIGHT = 1280, 720


class _Turn(NamedTuple):
    wall_s: float
    cpu_s: float


def main() -> None:
    """Run the arms in turns and show their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--film", type=Path, help="any film instead of one made here")
    parser.add_argument("--runs", type=int, default=7)
    asked = parser.parse_args()
    measured_on = machine()
    with tempfile.TemporaryDirectory() as scratch:
        film = asked.film or _made(Path(scratch, "film.mp4"))
        times = int(_LONG_S / _duration_s(film)) + 1
        longer = _repeated(film, times, Path(scratch, f"long{film.suffix}"))
        rows, facts = _measure(film, longer, asked.runs, Path(scratch))
    show("video_reading", measured_on, facts, rows)


def _measure(
    film: Path, longer: Path, runs: int, scratch: Path
) -> tuple[list[dict[str, object]], dict[str, object]]:
    times, times_longer = _read(film, scratch), _read(longer, scratch)
    arms: dict[str, Callable[[], int]] = {
        _READER: lambda: len(_read(film, scratch)),
        "decode once": lambda: _decode(film),
        "decode once, same JPEGs": lambda: _decode(film, write=times, folder=scratch),
        _READER_LONG: lambda: len(_read(longer, scratch)),
        "decode keyframes": lambda: _decode(longer, keyframes=True),
        "decode keyframes, same JPEGs": lambda: _decode(
            longer, keyframes=True, write=times_longer, folder=scratch
        ),
    }
    num_frames: dict[str, int] = {}
    turns: dict[str, list[_Turn]] = {arm: [] for arm in arms}
    for run in range(runs + 1):
        for arm, work in arms.items():
            begun, begun_cpu = time.perf_counter(), time.process_time()
            num_frames[arm] = work()
            took = _Turn(time.perf_counter() - begun, time.process_time() - begun_cpu)
            # The first turn warms up caches and imports.
            if run:
                turns[arm].append(took)
    rows: list[dict[str, object]] = [
        {
            "arm": arm,
            "frames": num_frames[arm],
            "median_cpu_s": statistics.median(turn.cpu_s for turn in of_arm),
            "min_cpu_s": min(turn.cpu_s for turn in of_arm),
            "max_cpu_s": max(turn.cpu_s for turn in of_arm),
            "median_wall_s": statistics.median(turn.wall_s for turn in of_arm),
        }
        for arm, of_arm in turns.items()
    ]
    facts: dict[str, object] = {
        "film_s": _duration_s(film),
        "long_film_s": _duration_s(longer),
        "runs": runs,
        **{f"CPU, {ours} / {its}": _ratio(turns[ours], turns[its]) for ours, its in _PAIRS},
    }
    return rows, facts


def _ratio(ours: list[_Turn], its: list[_Turn]) -> float:
    return statistics.median(one.cpu_s / other.cpu_s for one, other in zip(ours, its, strict=True))


def _read(film: Path, scratch: Path) -> set[float]:
    media_type = detect_media_type(film, film.name)
    content = video.read(film, media_type, scratch, ReaderOptions(ocr="off"))
    return {segment.span.t0 for segment in content.segments if segment.span.t0 is not None}


def _decode(
    film: Path,
    *,
    keyframes: bool = False,
    write: Collection[float] = (),
    folder: Path = Path(),
) -> int:
    num_frames = 0
    with av.open(str(film)) as container:
        if keyframes:
            container.streams.video[0].codec_context.skip_frame = "NONKEY"
        for frame in container.decode(video=0):
            num_frames += 1
            if write and frame.time is not None and round(frame.time, 3) in write:
                pixels = frame.to_ndarray(format="bgr24")
                quality = [cv2.IMWRITE_JPEG_QUALITY, 85]
                cv2.imwrite(str(folder / f"{frame.time:.3f}.jpg"), pixels, quality)
    return num_frames


def _duration_s(film: Path) -> float:
    with av.open(str(film)) as container:
        return container.duration / av.time_base if container.duration else 0.0


def _made(target: Path) -> Path:
    """Write a film of shots that pan over clouds of their own, with a title each, as H.264."""
    rng = np.random.default_rng(7)
    with av.open(str(target), "w") as out:
        stream = out.add_stream("h264", rate=_FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        for shot in range(_FILM_S // _SHOT_S):
            rough = rng.integers(0, 256, (90, 160, 3)).astype(np.uint8)
            size = (2 * _WIDTH, 2 * _HEIGHT)
            clouds = as_pixels(cv2.resize(rough, size, interpolation=cv2.INTER_CUBIC))
            for number in range(_SHOT_S * _FPS):
                pixels = clouds[2 * number :, 3 * number :][:_HEIGHT, :_WIDTH].copy()
                title = f"Shot {shot}"
                cv2.putText(pixels, title, (60, 90), cv2.FONT_HERSHEY_SIMPLEX, 2, (255,) * 3, 4)
                frame = av.VideoFrame.from_ndarray(pixels, format="bgr24")
                out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return target


def _repeated(film: Path, times: int, target: Path) -> Path:
    """Write the film's packets several times in a row, later each time, without encoding."""
    offset = 0
    with av.open(str(target), "w") as out, av.open(str(film)) as container:
        source = container.streams.video[0]
        stream = out.add_stream_from_template(source)
        for _ in range(times):
            end = offset
            container.seek(0)
            for packet in container.demux(source):
                if packet.dts is None or packet.pts is None:
                    continue
                packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                end = max(end, packet.pts + (packet.duration or 0))
                packet.stream = stream
                out.mux(packet)
            offset = end
    return target


if __name__ == "__main__":
    main()
