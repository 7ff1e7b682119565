"""Speech of films. What needs the extra `speech` is skipped where it is not installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from connectors.document import Span
from connectors.errors import ConnectorError
from connectors.reader_pool import ReaderPool
from connectors.readers import ReaderOptions, speech, video
from tests.corpora.make import picture, write_video

RATE = 16_000
OPTIONS = ReaderOptions(ocr="off", speech="whisper")


def _film(path: Path, sound: Iterable[tuple[float, np.ndarray]], *, codec="pcm_s16le") -> Path:
    """Write two seconds of a slide, and pieces of sound at their times."""
    with av.open(str(path), "w") as container:
        shown = container.add_stream("mpeg4", rate=10)
        shown.width, shown.height, shown.pix_fmt = 640, 360, "yuv420p"
        heard = container.add_stream(codec, rate=RATE, layout="mono")
        for _ in range(20):
            frame = av.VideoFrame.from_ndarray(picture("Berths"), format="bgr24")
            container.mux(shown.encode(frame))
        container.mux(shown.encode(None))
        for time_s, samples in sound:
            piece = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            piece.sample_rate, piece.time_base = RATE, Fraction(1, RATE)
            piece.pts = round(time_s * RATE)
            container.mux(heard.encode(piece))
        container.mux(heard.encode(None))
    return path


def _hum(length_s: float) -> np.ndarray:
    turns = np.arange(round(length_s * RATE)) / RATE * 220
    return (np.sin(2 * np.pi * turns) * 8000).astype(np.int16)


def _spoil(source: Path, target: Path, *, is_bad) -> Path:
    """Copy a film; the bytes of those sound packets that `is_bad` picks by number are zeros."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {one.index: new.add_stream_from_template(one) for one in old.streams}
        number = 0
        for packet in old.demux():
            if packet.dts is None:
                continue
            copy = packet
            if packet.stream.type == "audio":
                if is_bad(number):
                    copy = av.Packet(b"\x00" * packet.size)
                    copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                number += 1
            copy.stream = streams[packet.stream.index]
            new.mux(copy)
    return target


def test_choice_says_what_to_install_when_the_extra_is_missing():
    if importlib.util.find_spec("faster_whisper"):
        pytest.skip("the extra is installed")
    with pytest.raises(ConnectorError, match=r"pip install -e '\.\[speech\]'"):
        ReaderPool(1, OPTIONS)


def test_film_without_sound_says_nothing_of_it(tmp_path):
    path = write_video(tmp_path / "a.mp4", [(1.0, "One")])
    assert speech.read_speech(path, 600) == speech.Heard()


def test_film_is_whole_when_its_sound_goes_on_in_one_long_packet(tmp_path):
    path = _film(tmp_path / "a.mkv", [(0.0, _hum(8))])
    content = video.read(path, "", tmp_path, ReaderOptions(ocr="off"))
    assert [unit.status for unit in content.units] == ["read"]


def test_sound_that_cannot_be_decoded_is_a_failed_unit(tmp_path):
    whole = _film(tmp_path / "a.mkv", [(0.0, _hum(2))], codec="aac")
    heard = speech.read_speech(_spoil(whole, tmp_path / "b.mkv", is_bad=lambda _: True), 600)
    assert [(unit.name, unit.status) for unit in heard.units] == [("speech", "failed")]
    assert "Invalid data" in heard.units[0].error
    assert heard.segments == ()


def test_sound_keeps_its_times_when_it_starts_late_and_has_a_hole(tmp_path):
    path = _film(tmp_path / "a.mkv", [(0.5, _hum(1)), (2.5, _hum(0.5))])
    sound = speech._sound(path, 600)
    assert sound.start_s == pytest.approx(0.5, abs=0.002)
    assert sound.end_s == pytest.approx(3.0, abs=0.01)
    samples = sound.samples()
    assert np.abs(samples[round(1.05 * RATE) : round(1.95 * RATE)]).max() == 0
    assert np.abs(samples[round(2.05 * RATE) :]).max() > 0.2
    assert sound.error is None
    assert not sound.is_over


def test_torn_packet_costs_no_more_than_itself(tmp_path):
    whole = _film(tmp_path / "a.mkv", [(0.0, _hum(2))], codec="aac")
    path = _spoil(whole, tmp_path / "b.mkv", is_bad=lambda number: number == 10)
    sound = speech._sound(path, 600)
    assert sound.error is not None
    assert 0.3 < sound.error_s < 0.8
    assert sound.end_s == pytest.approx(2.0, abs=0.1)


def test_sound_behind_the_limit_is_not_kept(tmp_path):
    sound = speech._sound(_film(tmp_path / "a.mkv", [(0.0, _hum(2))]), 0.75)
    assert sound.is_over
    assert len(sound.samples()) == 0.75 * RATE


def test_pieces_are_joined_to_sentences():
    said = [
        speech._Said(0.0, 1.0, "The ship"),
        speech._Said(1.2, 2.0, "leaves at seven."),
        speech._Said(2.1, 3.0, "Close the door"),
        speech._Said(5.0, 6.0, "behind you"),
    ]
    found = [(one.start_s, one.end_s, one.text) for one in speech._sentences(said)]
    assert found == [
        (0.0, 2.0, "The ship leaves at seven."),
        (2.1, 3.0, "Close the door"),
        (5.0, 6.0, "behind you"),
    ]


@pytest.mark.parametrize("sound", [np.zeros(3 * RATE, np.int16), _hum(3)], ids=["silence", "hum"])
def test_nothing_is_made_up_when_nobody_speaks(tmp_path, sound):
    pytest.importorskip("faster_whisper")
    content = video.read(_film(tmp_path / "a.mkv", [(0.0, sound)]), "", tmp_path, OPTIONS)
    assert [segment.kind for segment in content.segments] == ["image"]
    assert [unit.status for unit in content.units] == ["read", "empty"]
    assert "+faster-whisper-" in content.reader
    assert dict(content.metadata)["speech_language"] == "en"


def test_sound_that_is_left_out_is_named(tmp_path):
    pytest.importorskip("faster_whisper")
    path = _film(tmp_path / "a.mkv", [(0.0, _hum(3))])
    heard = speech.read_speech(path, 1.0)
    assert [(unit.name, unit.status) for unit in heard.units] == [
        ("speech 0.00-1.00 s", "empty"),
        ("speech from 1.00 s", "failed"),
    ]
    assert "max_speech_s is 1" in heard.units[1].error


@pytest.mark.corpus
def test_what_is_said_is_read_in_a_child_process(tmp_path):
    pytest.importorskip("faster_whisper")
    path = Path(os.environ["HEADRACE_CORPUS"], "video", "sample_10s_video-avi.avi")
    if not path.exists():
        pytest.skip(f"the corpus has no video/{path.name}")
    with ReaderPool(1, OPTIONS) as readers:
        content = readers.read(path, path.name, tmp_path)
    said = [segment for segment in content.segments if segment.tier == "speech"]
    assert "Shakespeare on scenery" in said[0].text
    assert "public domain" in said[-1].text
    assert said[0].span.t0 == pytest.approx(0.7, abs=0.5)
    assert said[-1].span.t1 <= 10.0
    times = [segment.span.t0 for segment in content.segments]
    assert times == sorted(times)
    assert video.preview(path, "", Span(t0=said[0].span.t0, t1=said[0].span.t1), 320)
