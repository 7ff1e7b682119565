"""What reading a film costs: this reader beside one forward decode by PyAV, and its keyframes only.

`python -m benchmarks.video_reading FILM [--repeat-film 12] [--runs 5]`. The arms take turns in one
process, so that the machine's moods meet all alike. OCR is off: it is measured by the page, and does
not depend on the film. A short film is repeated into a longer one without encoding it anew; above
300 s the reader takes keyframes only, and its arm is to be held against theirs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av

from benchmarks.machine import machine, show
from connectors.readers import ReaderOptions, detect_media_type, video

_READER, _DECODE, _KEYFRAMES = "headrace reader", "decode once", "decode keyframes"


def main() -> None:
    """Run the arms in turns and show their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("film", type=Path)
    parser.add_argument("--repeat-film", type=int, default=1, help="play it so often in a row")
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    measured_on = machine()
    with tempfile.TemporaryDirectory() as scratch:
        film = asked.film
        if asked.repeat_film > 1:
            film = _repeated(film, asked.repeat_film, Path(scratch, f"film{film.suffix}"))
        rows, facts = _measure(film, asked.runs, Path(scratch))
    show("video_reading", measured_on, facts, rows)


def _measure(
    film: Path, runs: int, scratch: Path
) -> tuple[list[dict[str, object]], dict[str, object]]:
    found: dict[str, int] = {}

    def read() -> int:
        media_type = detect_media_type(film, film.name)
        content = video.read(film, media_type, scratch, ReaderOptions(ocr="off"))
        return sum(segment.kind == "image" for segment in content.segments)

    arms: dict[str, Callable[[], int]] = {
        _READER: read,
        _DECODE: lambda: _decode(film),
        _KEYFRAMES: lambda: _decode(film, keyframes_only=True),
    }
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for run in range(runs + 1):
        for arm, work in arms.items():
            begun = time.perf_counter()
            found[arm] = work()
            # The first turn warms up caches and imports.
            if run:
                seconds[arm].append(time.perf_counter() - begun)
    medians = {arm: statistics.median(times) for arm, times in seconds.items()}
    rows: list[dict[str, object]] = [
        {
            "arm": arm,
            "frames": found[arm],
            "median_s": medians[arm],
            "min_s": min(times),
            "max_s": max(times),
        }
        for arm, times in seconds.items()
    ]
    facts: dict[str, object] = {
        "film_s": _duration_s(film),
        "runs": runs,
        "reader / decode once": medians[_READER] / medians[_DECODE],
        "reader / decode keyframes": medians[_READER] / medians[_KEYFRAMES],
    }
    return rows, facts


def _decode(film: Path, *, keyframes_only: bool = False) -> int:
    with av.open(str(film)) as container:
        if keyframes_only:
            container.streams.video[0].codec_context.skip_frame = "NONKEY"
        return sum(1 for _ in container.decode(video=0))


def _duration_s(film: Path) -> float:
    with av.open(str(film)) as container:
        return container.duration / av.time_base if container.duration else 0.0


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
