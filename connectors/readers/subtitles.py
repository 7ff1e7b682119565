"""Subtitles inside a video container (mov_text, SubRip, WebVTT, ASS), as timed segments."""

from __future__ import annotations

import re
from collections.abc import Iterator

import av
from av.subtitles.subtitle import AssSubtitle, SubtitleSet

from connectors.document import Segment, Span

_STYLE = re.compile(r"\{[^}]*\}|<[^>]*>")
_BREAK = re.compile(r"\\[Nnh]")


def subtitle_segments(packet: av.Packet) -> Iterator[Segment]:
    """Yield the lines of one subtitle packet with the time they are shown.

    Pictures (DVD, Blu-ray) have no text and are passed over; a packet that cannot be decoded too.
    """
    if packet.pts is None or packet.time_base is None:
        return
    try:
        sets = packet.decode()
    except av.FFmpegError:
        return
    start_s = float(packet.pts * packet.time_base)
    length_s = float((packet.duration or 0) * packet.time_base)
    for subtitle in sets:
        if not isinstance(subtitle, SubtitleSet):
            continue
        # Some formats state the time in the packet, some in the decoded set, in milliseconds.
        length_s = length_s or subtitle.end_display_time / 1000
        text = " ".join(_text(rect) for rect in subtitle.rects if isinstance(rect, AssSubtitle))
        if text.strip():
            span = Span(t0=round(start_s, 3), t1=round(start_s + length_s, 3))
            yield Segment(kind="paragraph", text=text.strip(), span=span, tier="subtitle")


def _text(rect: AssSubtitle) -> str:
    raw = rect.dialogue.decode(errors="replace")
    return " ".join(_STYLE.sub("", _BREAK.sub(" ", raw)).split())
