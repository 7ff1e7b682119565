"""Subtitles inside a video container (mov_text, SubRip, WebVTT, ASS), as timed segments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import av
from av.subtitles.subtitle import AssSubtitle

from connectors.document import Segment, Span

_STYLE = re.compile(r"\{[^}]*\}|<[^>]*>")
_BREAK = re.compile(r"\\[Nnh]")


def subtitle_segments(packet: av.Packet[Any]) -> Iterator[Segment]:
    """Yield the lines of one subtitle packet with the time they are shown.

    Pictures (DVD, Blu-ray) have no text and are passed over; a packet that cannot be decoded too.
    """
    if packet.pts is None or packet.time_base is None:
        return
    try:
        rects = packet.decode()
    except av.FFmpegError:
        return
    text = " ".join(_text(rect) for rect in rects if isinstance(rect, AssSubtitle)).strip()
    if text:
        start_s = float(packet.pts * packet.time_base)
        length_s = float((packet.duration or 0) * packet.time_base)
        span = Span(t0=round(start_s, 3), t1=round(start_s + length_s, 3))
        yield Segment(kind="paragraph", text=text, span=span, tier="subtitle")


def _text(rect: AssSubtitle) -> str:
    raw = rect.dialogue.decode(errors="replace")
    return " ".join(_STYLE.sub("", _BREAK.sub(" ", raw)).split())
