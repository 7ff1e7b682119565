"""Real films, from the folder that HEADRACE_CORPUS names; run by `make check`."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from connectors.errors import DocumentRejected
from connectors.readers import ReaderOptions, detect_media_type, video
from connectors.readers.frames import upright

pytestmark = pytest.mark.corpus

NO_OCR = ReaderOptions(ocr="off")
WHOLE = [
    "Big_Buck_Bunny_360_10s_1MB.mp4",
    "bigbuckbunny.mp4",
    "bikes.mp4",
    "counter.mp4",
    "echo-hereweare.webm",
    "flipping_a_pancake.mkv",
    "sample_10s_video-avi.avi",
    "scene_cuts.mp4",
    "testvideo.mp4",
    "v_shooting_01_01.mpg",
    "video_90.mov",
]
BLANK = ["delayed_start.mp4", "fades.mp4"]
"""One colour all over, in every frame."""
TORN = ["corrupted.mp4", "truncated_moov_first_or_last.mp4", "truncated_pancake.mkv"]


def _film(name: str) -> Path:
    path = Path(os.environ["HEADRACE_CORPUS"]) / "video" / name
    if not path.exists():
        pytest.skip(f"the corpus has no video/{name}")
    return path


def _read(path: Path, media_dir: Path):
    return video.read(path, detect_media_type(path, path.name), media_dir, NO_OCR)


def _frames(content) -> list[tuple[float, str]]:
    return [(s.span.t0, s.media) for s in content.segments if s.kind == "image"]


def _decoded(path: Path) -> list[av.VideoFrame]:
    """Every frame that can be decoded, by a loop of its own."""
    frames = []
    with av.open(str(path)) as container, suppress(av.FFmpegError):
        for packet in container.demux(container.streams.video[0]):
            with suppress(av.FFmpegError):
                frames += packet.decode()
    return frames


@pytest.mark.parametrize("name", WHOLE + TORN)
def test_frame_is_the_one_that_the_stream_has_at_its_time(tmp_path, name):
    path = _film(name)
    shown = _frames(_read(path, tmp_path))
    decoded = {round(frame.time, 3): frame for frame in _decoded(path)}
    assert shown
    for time_s, media in shown:
        assert time_s in decoded
        ours = cv2.imread(str(tmp_path / media)).astype(int)
        its = upright(decoded[time_s]).astype(int)
        assert ours.shape == its.shape or max(its.shape) > NO_OCR.raster_long_side_px
        if ours.shape == its.shape:
            assert np.abs(ours - its).mean() < 6


@pytest.mark.parametrize("name", WHOLE)
def test_preview_shows_the_frame_that_the_model_saw(tmp_path, name):
    path = _film(name)
    content = _read(path, tmp_path)
    for segment in content.segments:
        jpeg = video.preview(path, content.media_type, segment.span, 320)
        seen = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).astype(int)
        kept = cv2.imread(str(tmp_path / segment.media))
        kept = cv2.resize(kept, seen.shape[1::-1], interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(seen - kept).mean() < 6


@pytest.mark.parametrize(
    ("name", "status"),
    [(n, "read") for n in WHOLE] + [(n, "empty") for n in BLANK] + [(n, "failed") for n in TORN],
)
def test_a_torn_film_says_so_and_a_whole_one_does_not(tmp_path, name, status):
    assert _read(_film(name), tmp_path).units[-1].status == status


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("testvideo.mp4", [30, 180]),
        ("scene_cuts.mp4", [30, 76, 137, 187, 242]),
        ("bikes.mp4", [30, 76, 137, 187, 242]),
    ],
)
def test_known_cuts_are_found(tmp_path, name, cuts):
    path = _film(name)
    stream = [frame.time for frame in _decoded(path)]
    shown = [time_s for time_s, _ in _frames(_read(path, tmp_path))]
    half_s = (stream[1] - stream[0]) / 2
    for cut in cuts:
        assert min(abs(time_s - stream[cut]) for time_s in shown) < half_s


def test_a_file_of_20_bytes_is_rejected(tmp_path):
    with pytest.raises(DocumentRejected):
        _read(_film("bad_video.mp4"), tmp_path)
