"""Films whose clocks, streams or turns are unusual."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from connectors.document import Span
from connectors.errors import DocumentRejected
from connectors.readers import ReaderOptions, video
from tests.corpora.make import picture, write_frames

NO_OCR = ReaderOptions(ocr="off")
TURN = {
    90: (0, 1, -1, 0),
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
}
"""Clockwise, as the matrix of an MP4 track has it."""


def _read(path: Path, media_dir: Path):
    return video.read(path, "video/mp4", media_dir, NO_OCR)


def _times(content) -> list[float]:
    return [s.span.t0 for s in content.segments if s.kind == "image"]


def _add_film(container, shots, *, codec="mpeg4", width=640, height=360, b_frames=0):
    stream = container.add_stream(codec, rate=10)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.max_b_frames = b_frames
    packets = []
    for number in range(sum(shots)):
        shade = 40 if number < shots[0] else 190
        pixels = picture("x", shade=shade, width=width, height=height)
        pixels[:, 8 * number : 8 * number + 20] = 90
        packets += stream.encode(av.VideoFrame.from_ndarray(pixels, format="bgr24"))
    return [*packets, *stream.encode(None)]


def _add_sound(container):
    stream = container.add_stream("aac", rate=16_000, layout="mono")
    silence = av.AudioFrame.from_ndarray(
        np.zeros((1, 16_000), np.float32), format="fltp", layout="mono"
    )
    silence.sample_rate, silence.pts = 16_000, 0
    return [*stream.encode(silence), *stream.encode(None)]


def _add_cover(container):
    stream = container.add_stream("png", rate=1)
    stream.width, stream.height, stream.pix_fmt = 1000, 1000, "rgb24"
    stream.disposition = av.stream.Disposition.attached_pic
    cover = picture("COVER", shade=120, width=1000, height=1000)
    packet = av.Packet(bytes(cv2.imencode(".png", cover)[1]))
    packet.pts = packet.dts = 0
    packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 1000), stream, True
    return [packet]


def _write(path: Path, *adders) -> Path:
    with av.open(str(path), "w") as container:
        for packets in [add(container) for add in adders]:
            container.mux(packets)
    return path


@pytest.mark.parametrize(
    ("name", "codec", "first_s"),
    [("a.avi", "h264", 0.1), ("a.avi", "mpeg4", 0.1), ("a.mkv", "h264", 0), ("a.ts", "h264", 0.2)],
)
def test_times_are_those_of_the_frames_when_the_film_has_b_frames(tmp_path, name, codec, first_s):
    path = _write(tmp_path / name, lambda film: _add_film(film, (16, 24), codec=codec, b_frames=2))
    content = _read(path, tmp_path)
    # One at the interval, 2 s after the cut.
    assert _times(content) == pytest.approx([first_s, first_s + 1.6, first_s + 3.6], abs=0.001)
    assert content.units[0].name == f"frames {first_s:.2f}-{first_s + 3.9:.2f} s"
    for time_s, shade in ((first_s + 1.5, 40), (first_s + 1.6, 190)):
        jpeg = video.preview(path, "", Span(t0=time_s, t1=time_s), 320)
        pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert abs(np.median(pixels) - shade) < 20


def test_film_without_time_stamps_is_rejected_and_says_so(tmp_path):
    path = _write(tmp_path / "a.h264", lambda film: _add_film(film, (5, 5), codec="h264"))
    with pytest.raises(DocumentRejected, match="no time stamps"):
        _read(path, tmp_path)


def test_sound_alone_is_rejected_and_says_so(tmp_path):
    with pytest.raises(DocumentRejected, match="no video stream; sound alone") as caught:
        _read(_write(tmp_path / "a.mp4", _add_sound), tmp_path)
    assert caught.value.reason == "unknown_type"
    with pytest.raises(DocumentRejected, match="but a cover picture; sound alone"):
        _read(_write(tmp_path / "b.mp4", _add_sound, _add_cover), tmp_path)


def test_film_is_shown_and_its_cover_is_not(tmp_path):
    path = _write(
        tmp_path / "a.mp4", _add_cover, lambda film: _add_film(film, (15, 15)), _add_sound
    )
    content = _read(path, tmp_path)
    assert _times(content) == pytest.approx([0.0, 1.5])
    assert {(media.width_px, media.height_px) for media in content.media[:-1]} == {(640, 360)}
    assert [unit.status for unit in content.units] == ["read"]


def test_one_film_is_shown_when_the_file_has_several(tmp_path):
    path = _write(
        tmp_path / "a.mp4",
        lambda film: _add_film(film, (15, 15)),
        lambda film: _add_film(film, (5, 25), width=320, height=180),
    )
    content = _read(path, tmp_path)
    assert len({(media.width_px, media.height_px) for media in content.media[:-1]}) == 1
    assert _times(content) in (pytest.approx([0.0, 1.5]), pytest.approx([0.0, 0.5, 2.5]))
    assert [unit.status for unit in content.units] == ["read"]


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "mpeg4"), ("mp4", "mpeg4"), ("webm", "vp8")])
def test_film_of_one_frame_is_read(tmp_path, suffix, codec):
    codec = "libvpx" if codec == "vp8" else codec
    path = write_frames(tmp_path / f"a.{suffix}", [(0.0, picture("One"))], codec=codec)
    content = _read(path, tmp_path)
    assert _times(content) == [0.0]
    assert [unit.status for unit in content.units] == ["read"]
    assert video.preview(path, "", Span(t0=0.0, t1=0.0), 320)


def test_times_before_zero_are_kept(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as container:
        packets = _add_film(container, (15, 15))
        for packet in packets:
            shift = round(Fraction(1, 2) / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            container.mux(packet)
    content = _read(path, tmp_path)
    assert _times(content) == pytest.approx([-0.5, 1.0])
    assert content.media[0].name == "t-0000.50.jpg"
    assert [unit.status for unit in content.units] == ["read"]
    assert video.preview(path, "", Span(t0=-0.5, t1=1.0), 320)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_are_upright_whichever_way_the_camera_was_held(tmp_path, degrees):
    upright = picture("Up", shade=190)
    upright[:180, :] = 40
    turned = {
        90: cv2.ROTATE_90_COUNTERCLOCKWISE,
        180: cv2.ROTATE_180,
        270: cv2.ROTATE_90_CLOCKWISE,
    }
    held = cv2.rotate(upright, turned[degrees])
    path = write_frames(tmp_path / "a.mp4", [(n / 10, held) for n in range(10)])
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    for number, value in zip((0, 1, 3, 4), TURN[degrees], strict=True):
        data[at + 4 * number : at + 4 * number + 4] = (value * 65536).to_bytes(4, signed=True)
    path.write_bytes(data)
    content = _read(path, tmp_path)
    pixels = cv2.imread(str(tmp_path / content.media[0].name))
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).mean() < 6
