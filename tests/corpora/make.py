"""Small files with known content, written byte by byte, so that readers can be held to the truth."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from xml.sax.saxutils import escape

import av
import cv2
import numpy as np
from av.subtitles.subtitle import SubtitleSet

ASS_HEADER = b"""[Script Info]
ScriptType: v4.00+
[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour
Style: Default,Arial,16,&Hffffff
[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


def text_operator(x: float, y: float, text: str, *, size: float = 12, font: str = "F1") -> str:
    """Return the PDF operators that set a line of text with its baseline at x, y."""
    safe = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
    return f"BT /{font} {size} Tf 1 0 0 1 {x} {y} Tm ({safe}) Tj ET\n"


def write_pdf(
    path: Path,
    pages: Sequence[str],
    *,
    rotate: int = 0,
    size: tuple[int, int] = (600, 800),
    info: Mapping[str, str] | None = None,
) -> Path:
    """Write a PDF whose pages have the given content streams; F1 is Helvetica, F2 is bold."""
    kids = " ".join(f"{5 + 2 * index} 0 R" for index in range(len(pages)))
    stated = " ".join(f"/{key} ({value})" for key, value in (info or {}).items())
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> "
        "/F2 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica-Bold >> >>",
        f"<< {stated} >>",
    ]
    for index, content in enumerate(pages):
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {size[0]} {size[1]}] /Rotate {rotate} "
            f"/Resources << /Font 3 0 R >> /Contents {6 + 2 * index} 0 R >>",
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        ]
    data, offsets = b"%PDF-1.7\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    count = len(objects) + 1
    trailer = (
        f"trailer << /Size {count} /Root 1 0 R /Info 4 0 R >>\nstartxref\n{len(data)}\n%%EOF\n"
    )
    path.write_bytes(data + f"xref\n0 {count}\n0000000000 65535 f \n{table}{trailer}".encode())
    return path


def write_xlsx(path: Path, sheets: Mapping[str, Mapping[str, object]], hidden: str = "") -> Path:
    """Write a workbook: by sheet, cells by their A1 name (row by row); str, number or bool."""
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    tabs, links, parts = "", "", ""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (name, cells) in enumerate(sheets.items(), start=1):
            state = ' state="hidden"' if name == hidden else ""
            tabs += f'<sheet name="{name}" sheetId="{number}"{state} r:id="r{number}"/>'
            target = f"worksheets/sheet{number}.xml"
            links += f'<Relationship Id="r{number}" Type="{office}/worksheet" Target="{target}"/>'
            parts += f'<Override PartName="/xl/{target}" ContentType="{kind}.worksheet+xml"/>'
            archive.writestr(
                f"xl/{target}",
                f'<worksheet xmlns="{main}"><sheetData>{_rows(cells)}</sheetData></worksheet>',
            )
        archive.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{package}/content-types"><Default Extension="xml" '
            'ContentType="application/xml"/><Default Extension="rels" ContentType='
            '"application/vnd.openxmlformats-package.relationships+xml"/>'
            f'<Override PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/>{parts}</Types>',
        )
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
            f'Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        )
        archive.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>{tabs}</sheets></workbook>',
        )
        archive.writestr(
            "xl/_rels/workbook.xml.rels",
            f'<Relationships xmlns="{package}/relationships">{links}</Relationships>',
        )
    return path


def _rows(cells: Mapping[str, object]) -> str:
    rows: dict[int, str] = {}
    for name, value in cells.items():
        number = int("".join(char for char in name if char.isdigit()))
        if isinstance(value, bool):
            cell = f'<c r="{name}" t="b"><v>{int(value)}</v></c>'
        elif isinstance(value, int | float):
            cell = f'<c r="{name}"><v>{value}</v></c>'
        else:
            cell = f'<c r="{name}" t="inlineStr"><is><t>{escape(str(value))}</t></is></c>'
        rows[number] = rows.get(number, "") + cell
    return "".join(f'<row r="{number}">{row}</row>' for number, row in sorted(rows.items()))


def write_video(
    path: Path,
    shots: Sequence[tuple[float, str]],
    *,
    fps: int = 10,
    subtitles: Sequence[tuple[float, float, str]] = (),
    subtitle_codec: str = "mov_text",
) -> Path:
    """Write a video of shots, each a length in seconds and a text on a colour of its own."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=fps)
        video.width, video.height, video.pix_fmt = 640, 360, "yuv420p"
        lines = container.add_stream(subtitle_codec) if subtitles else None
        if lines is not None:
            lines.time_base = Fraction(1, 1000)
            lines.codec_context.time_base = Fraction(1, 1000)
            lines.codec_context.subtitle_header = ASS_HEADER
            for number, (start, end, text) in enumerate(subtitles):
                dialogue = f"{number},0,Default,,0,0,0,,{text}".encode()
                length = int((end - start) * 1000)
                entry = SubtitleSet.create(dialogue, 0, length, int(start * 1000))
                packet = lines.codec_context.encode_subtitle(entry)
                packet.stream, packet.time_base = lines, Fraction(1, 1000)
                container.mux(packet)
        for number, (length, text) in enumerate(shots):
            pixels = picture(text, shade=40 + 150 * (number % 2))
            for _ in range(round(length * fps)):
                container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="bgr24")))
        container.mux(video.encode(None))
    return path


def write_frames(
    path: Path,
    frames: Sequence[tuple[float, np.ndarray]],
    *,
    codec: str = "mpeg4",
    pix_fmt: str = "yuv420p",
    faststart: bool = False,
) -> Path:
    """Write a video whose frames stand at the given times, in seconds, to the millisecond."""
    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        video = container.add_stream(codec, rate=1000)
        height, width = frames[0][1].shape[:2]
        video.width, video.height, video.pix_fmt = width, height, pix_fmt
        video.codec_context.time_base = Fraction(1, 1000)
        for time_s, pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="bgr24")
            frame.pts, frame.time_base = round(time_s * 1000), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


def picture(text: str, *, shade: int = 255, width: int = 640, height: int = 360):
    """Return an image of one grey with a line of text across its middle."""
    pixels = np.full((height, width, 3), shade, np.uint8)
    ink = (0, 0, 0) if shade > 128 else (255, 255, 255)
    cv2.putText(pixels, text, (30, height // 2), cv2.FONT_HERSHEY_SIMPLEX, 1.6, ink, 3, cv2.LINE_AA)
    return pixels
