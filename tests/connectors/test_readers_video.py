"""Video and images: frames where they are, the text on them, subtitles, damage."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from connectors.document import Span
from connectors.errors import DocumentRejected
from connectors.readers import ReaderOptions, image, ocr, video
from connectors.readers.ocr import OcrLine
from tests.corpora.make import picture, write_frames, write_video

CORPORA = Path(__file__).parent.parent / "corpora"
NO_OCR = ReaderOptions(ocr="off")


def _read(path: Path, media_dir: Path, options: ReaderOptions = NO_OCR):
    return video.read(path, "video/mp4", media_dir, options)


def _options(**changes) -> ReaderOptions:
    return ReaderOptions(ocr="off", **changes)


def _talk(folder: Path) -> Path:
    """Five cuts in five seconds, then 55 s of one slide whose line goes on growing."""
    frames = []
    for t in range(59):
        pixels = picture("#" * (1 + t % 15), shade=(40, 190)[min(t, 4) % 2])
        pixels[: 5 * t] //= 2
        frames += [(t + n / 5, pixels) for n in range(5)]
    return write_frames(folder / "talk.mkv", frames)


def _ends(content) -> list[float]:
    return [s.span.t1 for s in content.segments if s.kind == "image"]


def _times(content) -> list[float]:
    return [s.span.t0 for s in content.segments if s.kind == "image"]


def test_frames_are_sampled_at_the_interval_and_at_cuts(tmp_path):
    shots = [(1.3, "One"), (3.0, "Two"), (0.7, "Three")]
    content = _read(write_video(tmp_path / "a.mp4", shots), tmp_path)
    # The frame at 3.3 s shows the same as the one at 1.3 s.
    assert _times(content) == pytest.approx([0.0, 1.3, 4.3])
    assert [m.name for m in content.media] == [
        "t00000.00.jpg",
        "t00001.30.jpg",
        "t00004.30.jpg",
        "contact-sheet.jpg",
    ]
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
    assert content.reader.startswith("video/3+av-")
    assert "+rapidocr-" in content.reader


def test_frame_lasts_until_the_film_shows_something_else(tmp_path):
    shots = [(1.3, "One"), (3.0, "Two"), (0.7, "Three")]
    content = _read(write_video(tmp_path / "a.mp4", shots), tmp_path)
    assert _ends(content) == pytest.approx([1.3, 4.3, 5.0])


def test_frame_ends_where_the_picture_goes_black(tmp_path):
    black = np.zeros((360, 640, 3), np.uint8)
    frames = [(t / 10, picture("One") if t < 12 else black) for t in range(30)]
    content = _read(write_frames(tmp_path / "a.mkv", frames), tmp_path)
    assert _times(content) == [0.0]
    assert _ends(content) == pytest.approx([1.2])


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mkv", "mpeg4"), ("webm", "libvpx"), ("mp4", "h264")]
)
def test_times_are_exact_when_the_frame_rate_varies(tmp_path, suffix, codec):
    starts = [0.0, 0.417, 1.033, 4.9, 5.25]
    frames = []
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], 6.1], strict=True)):
        pixels = picture(str(number), shade=40 + 150 * (number % 2))
        step = (0.033, 0.1, 0.25)[number % 3]
        frames += [(start + step * n, pixels) for n in range(round((end - start) / step - 0.5))]
    content = _read(write_frames(tmp_path / f"a.{suffix}", frames, codec=codec), tmp_path)
    assert _times(content) == pytest.approx(starts, abs=0.0011)
    for number, start in enumerate(starts):
        jpeg = video.preview(tmp_path / f"a.{suffix}", "", Span(t0=start, t1=start), 320)
        shade = np.median(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))
        assert abs(shade - (40 + 150 * (number % 2))) < 20


def test_cut_is_not_lost_when_a_frame_was_sampled_just_before(tmp_path):
    frames = [(t / 50, picture(("a", "b")[t > 100], shade=(40, 190)[t > 100])) for t in range(150)]
    content = _read(
        write_frames(tmp_path / "a.mkv", frames), tmp_path, _options(frame_interval_s=1)
    )
    # The cut is at 2.02 s, too near to the frame at 2 s, which shows what the one at 0 s does.
    assert _times(content) == pytest.approx([0.0, 2.06], abs=0.011)


def test_what_was_shown_within_the_minute_is_dropped_and_counted(tmp_path):
    shots = [(1.0, "Ann"), (1.0, "Bob"), (1.0, "Ann"), (1.0, "Bob"), (1.0, "Ann")]
    content = _read(write_video(tmp_path / "a.mp4", shots), tmp_path)
    assert _times(content) == pytest.approx([0.0, 1.0])
    assert _ends(content) == pytest.approx([1.0, 2.0])
    assert dict(content.metadata)["frames_near_duplicate"] == "3"
    assert [unit.status for unit in content.units] == ["read"]


def test_what_was_shown_a_minute_ago_is_shown_again(tmp_path):
    shots = [(1.0, "Ann"), (62.0, "Bob"), (1.0, "Ann")]
    content = _read(write_video(tmp_path / "a.mp4", shots, fps=5), tmp_path)
    # A minute on, Bob is still the same picture.
    assert _times(content) == pytest.approx([0.0, 1.0, 63.0])


def test_cuts_come_first_when_the_minute_has_too_many_frames(tmp_path):
    content = _read(_talk(tmp_path), tmp_path, _options(frames_per_minute=6))
    # One at the interval of 10 s is left beside the cuts, the one farthest from them.
    assert _times(content) == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0, 54.0])
    assert dict(content.metadata)["frames_over_budget"] == "4"
    # No scene is missing, so the film was read as a whole.
    assert [unit.status for unit in content.units] == ["read"]


def test_frames_at_the_interval_fill_what_cuts_leave(tmp_path):
    content = _read(_talk(tmp_path), tmp_path, _options(frame_interval_s=10, frames_per_minute=9))
    assert _times(content) == pytest.approx(
        [0.0, 1.0, 2.0, 3.0, 4.0, 14.0, 24.0, 34.0, 54.0], abs=10
    )
    assert len(_times(content)) == 9


def test_scene_changes_are_named_when_they_exceed_the_limit(tmp_path):
    shots = [(0.4, str(number)) for number in range(10)]
    content = _read(write_video(tmp_path / "a.mp4", shots), tmp_path, _options(max_frames=3))
    assert len(_times(content)) == 3
    assert _times(content)[-1] > 2.0
    assert content.units[1].status == "failed"
    assert content.units[1].name.endswith(": 7")
    assert "max_frames" in content.units[1].error
    assert dict(content.metadata)["frames_over_budget"] == "7"


def test_limit_is_shared_out_over_the_film_when_it_is_long(tmp_path):
    shots = [(8.0, str(number)) for number in range(25)]
    path = write_video(tmp_path / "a.mp4", shots, fps=2)
    content = _read(path, tmp_path, _options(max_frames=8))
    minutes = [int(time // 60) for time in _times(content)]
    assert len(minutes) <= 8
    assert set(minutes) == {0, 1, 2, 3}


def test_a_strobe_takes_no_more_than_its_minute(tmp_path):
    def shade(number: int) -> int:
        return 40 + 150 * (number % 2)

    flashes = [picture(str(n), shade=shade(n), width=320, height=180) for n in range(150)]
    frames = [(n / 5, pixels) for n, pixels in enumerate(flashes)]
    calm = picture("end", shade=128, width=320, height=180)
    frames += [(30 + n / 2, calm) for n in range(70)]
    path = write_frames(tmp_path / "a.mkv", frames)
    times = _times(_read(path, tmp_path, _options(frames_per_minute=4)))
    assert sum(time < 60 for time in times) == 4
    assert max(times) >= 30


def test_scenes_left_out_are_named_when_every_frame_is_another(tmp_path):
    rng = np.random.default_rng(5)
    noise = [rng.integers(0, 256, (180, 320, 3)).astype(np.uint8) for _ in range(100)]
    path = write_frames(tmp_path / "a.mkv", [(n / 25, one) for n, one in enumerate(noise)])
    content = _read(path, tmp_path, _options(frames_per_minute=5))
    times = _times(content)
    assert len(times) == 5
    # They are spread over the film: no two lie nearer than a third of an even share.
    assert min(after - before for before, after in itertools.pairwise(times)) > 0.25
    left_out = int(dict(content.metadata)["frames_over_budget"])
    assert left_out > 20
    name = f"scene changes over the budget: {left_out}"
    assert [(unit.name, unit.status) for unit in content.units[1:]] == [(name, "failed")]
    assert "frames_per_minute is 5" in content.units[1].error


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "bgr0", "gray", "yuv444p"])
def test_cuts_are_found_whatever_the_pixels_are(tmp_path, pix_fmt):
    frames = [(t / 10, picture("x", shade=40 if t < 7 else 190)) for t in range(15)]
    path = write_frames(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt=pix_fmt)
    assert _times(_read(path, tmp_path)) == pytest.approx([0.0, 0.7])


def test_contact_sheet_is_for_people_and_no_segment(tmp_path):
    shots = [(1.0, str(number)) for number in range(6)]
    content = _read(write_video(tmp_path / "a.mp4", shots), tmp_path)
    sheet = content.media[-1]
    assert sheet.name == "contact-sheet.jpg"
    assert all(segment.media != sheet.name for segment in content.segments)
    pixels = cv2.imread(str(tmp_path / sheet.name))
    assert pixels.shape[:2] == (sheet.height_px, sheet.width_px)
    # Two rows of four.
    assert sheet.width_px > 4 * 320
    assert 2 * 180 < sheet.height_px < 3 * 180


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
    # Frame 31 is torn, and what the decoder makes up of the others is not shown.
    assert content.units[1].name == "frames from 3.00 s"
    assert max(_ends(content)) < 3.0


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv"])
def test_torn_film_is_read_as_far_as_it_goes(tmp_path, suffix):
    frames = [(t / 10, picture(str(t // 10), shade=40 + 3 * t)) for t in range(60)]
    codec = "mjpeg" if suffix == "avi" else "mpeg4"
    pix_fmt = "yuvj420p" if suffix == "avi" else "yuv420p"
    path = tmp_path / f"a.{suffix}"
    write_frames(path, frames, codec=codec, pix_fmt=pix_fmt, faststart=suffix == "mp4")
    whole = path.read_bytes()
    assert [unit.status for unit in _read(path, tmp_path).units] == ["read"]
    path.write_bytes(whole[: len(whole) * 6 // 10])
    content = _read(path, tmp_path)
    assert max(_times(content)) == pytest.approx(4.0 if suffix == "avi" else 2.0, abs=0.01)
    assert [unit.status for unit in content.units] == ["read", "failed"]


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
