"""Video and images: frames where they are, the text on them, subtitles, damage."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from connectors.document import Span
from connectors.errors import DocumentRejected
from connectors.readers import ReaderOptions, image, ocr, video
from connectors.readers.ocr import OcrLine
from tests.corpora.make import picture, write_video

CORPORA = Path(__file__).parent.parent / "corpora"
NO_OCR = ReaderOptions(ocr="off")


def _read(path: Path, media_dir: Path, options: ReaderOptions = NO_OCR):
    return video.read(path, "video/mp4", media_dir, options)


def _times(content) -> list[float]:
    return [s.span.t0 for s in content.segments if s.kind == "image"]


def test_frames_are_sampled_at_the_interval_and_at_cuts(tmp_path):
    shots = [(1.3, "One"), (3.0, "Two"), (0.7, "Three")]
    content = _read(write_video(tmp_path / "a.mp4", shots), tmp_path)
    # The frame at 3.3 s shows the same as the one at 1.3 s.
    assert _times(content) == pytest.approx([0.0, 1.3, 4.3])
    assert [m.name for m in content.media] == ["t00000.00.jpg", "t00001.30.jpg", "t00004.30.jpg"]
    assert all((tmp_path / m.name).is_file() for m in content.media)
    assert [u.status for u in content.units] == ["read"]


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "mov_text"), ("mkv", "subrip")])
def test_subtitles_have_their_times(tmp_path, suffix, codec):
    lines = [(0.5, 1.5, "Hello there."), (2.0, 2.8, "And good bye.")]
    path = tmp_path / f"a.{suffix}"
    write_video(path, [(3.0, "x")], subtitles=lines, subtitle_codec=codec)
    found = [s for s in _read(path, tmp_path).segments if s.tier == "subtitle"]
    assert [s.text for s in found] == ["Hello there.", "And good bye."]
    times = [time for s in found for time in (s.span.t0, s.span.t1)]
    assert times == pytest.approx([0.5, 1.5, 2.0, 2.8], abs=0.05)


def test_text_on_frames_belongs_to_the_frame_that_shows_it(tmp_path):
    content = _read(CORPORA / "counter.mp4", tmp_path, ReaderOptions())
    read_off = [(s.span.t0, s.text) for s in content.segments if s.tier == "ocr"]
    assert (0.0, "Frame = 1") in read_off
    assert (2.0, "Frame = 21") in read_off
    assert content.reader.startswith("video/1+av-")
    assert "+rapidocr-" in content.reader


def test_frames_behind_the_limit_are_named_when_there_are_too_many(tmp_path):
    shots = [(0.4, str(number)) for number in range(10)]
    content = _read(
        write_video(tmp_path / "a.mp4", shots), tmp_path, ReaderOptions(ocr="off", max_frames=3)
    )
    assert len(content.media) == 3
    assert content.units[1].status == "failed"
    assert "max_frames" in content.units[1].error


def test_time_is_the_containers_own_when_it_starts_late(tmp_path):
    (tmp_path / "late.mp4").write_bytes((CORPORA / "delayed_start.mp4").read_bytes())
    content = _read(tmp_path / "late.mp4", tmp_path)
    assert content.units[0].name.startswith("frames 1.07") or content.units[0].name.startswith(
        "frames 1.08"
    )


def test_frames_are_upright_when_the_file_says_rotated(tmp_path):
    content = _read(CORPORA / "video_90.mov", tmp_path)
    assert (content.media[0].width_px, content.media[0].height_px) == (320, 568)


def test_what_was_decoded_is_kept_when_the_file_is_damaged(tmp_path):
    content = _read(CORPORA / "corrupted.mp4", tmp_path)
    assert content.media
    assert [u.status for u in content.units] == ["read", "failed"]


def test_missing_end_is_named_when_the_container_is_silent_about_it(tmp_path):
    shots = [(1.0, str(number)) for number in range(8)]
    whole = write_video(tmp_path / "a.mkv", shots).read_bytes()
    (tmp_path / "b.mkv").write_bytes(whole[: len(whole) // 2])
    content = _read(tmp_path / "b.mkv", tmp_path)
    assert content.media
    assert content.units[-1].status == "failed"


def test_video_is_rejected_when_nothing_can_be_decoded(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\x00\x00\x00\x18ftypisom" + b"\x00" * 100)
    with pytest.raises(DocumentRejected) as caught:
        _read(path, tmp_path)
    assert caught.value.reason == "damaged"


def test_preview_shows_the_frame_at_its_time(tmp_path):
    path = write_video(tmp_path / "a.mp4", [(2.0, "dark"), (2.0, "light")])
    shades = []
    for time in (1.0, 3.0):
        jpeg = video.preview(path, "video/mp4", Span(t0=time, t1=time), 320)
        pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert max(pixels.shape[:2]) == 320
        shades.append(float(np.median(pixels)))
    assert shades[0] < 80 < 150 < shades[1]


def test_image_has_its_text_and_its_preview(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), picture("Berth 3 is closed", width=900, height=400))
    content = image.read(path, "image/png", tmp_path, ReaderOptions())
    assert [s.kind for s in content.segments] == ["image", "paragraph"]
    assert content.segments[1].text == "Berth 3 is closed"
    assert content.segments[1].span.page == 1
    jpeg = image.preview(path, "image/png", Span(page=1), 300)
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1).shape[1] == 300


def test_image_is_rejected_when_it_is_torn(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 40)
    with pytest.raises(DocumentRejected) as caught:
        image.read(path, "image/png", tmp_path, NO_OCR)
    assert caught.value.reason == "damaged"


def test_every_page_of_a_tiff_is_read(tmp_path):
    path = tmp_path / "a.tiff"
    cv2.imwritemulti(str(path), [picture("One"), picture("Two")])
    content = image.read(path, "image/tiff", tmp_path, NO_OCR)
    assert [s.span.page for s in content.segments] == [1, 2]


def test_lines_are_read_column_by_column_when_the_page_has_columns():
    def line(text, x, y):
        return OcrLine(text, (x, y, x + 0.4, y + 0.02), 1.0)

    left = [line(f"left {n}", 0.05, 0.2 + 0.03 * n) for n in range(4)]
    right = [line(f"right {n}", 0.55, 0.2 + 0.03 * n) for n in range(4)]
    title = OcrLine("title", (0.05, 0.05, 0.95, 0.1), 1.0)
    mixed = [right[2], left[1], title, right[0], left[3], left[0], right[3], left[2], right[1]]
    assert [x.text for x in ocr.in_reading_order(mixed)] == [
        "title",
        *(x.text for x in left),
        *(x.text for x in right),
    ]


def test_lines_are_read_row_by_row_when_they_are_a_table():
    cells = [
        OcrLine(
            f"{row}{column}",
            (0.1 + 0.3 * column, 0.1 + 0.05 * row, 0.2 + 0.3 * column, 0.12 + 0.05 * row),
            1.0,
        )
        for column in range(2)
        for row in range(4)
    ]
    assert [x.text for x in ocr.in_reading_order(cells)] == [
        f"{row}{column}" for row in range(4) for column in range(2)
    ]
