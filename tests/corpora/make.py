"""Small files with known content, written byte by byte, so that readers can be held to the truth."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a workbook that is more than a value."""

    value: object = ""
    error: str = ""
    formula: str = ""
    style: str = "General"


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What a sheet has besides its cells."""

    merges: Sequence[str] = ()
    hidden_rows: Sequence[int] = ()
    hidden_columns: Sequence[int] = ()
    """Numbers from 1."""
    comments: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, str] = field(default_factory=dict)
    """Ranges by name, of tables that are marked as such; more attributes may follow a range."""
    dimension: str = ""
    """The range that the sheet declares."""


def write_xlsx(
    path: Path,
    sheets: Mapping[str, Mapping[str, object]],
    hidden: str = "",
    *,
    extras: Mapping[str, Extras] | None = None,
    from_1904: bool = False,
) -> Path:
    """Write a workbook: by sheet, cells by their A1 name (row by row); str, number, bool or Cell."""
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    styles = ["General"]
    tabs, links, parts = "", "", ""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (name, cells) in enumerate(sheets.items(), start=1):
            extra = (extras or {}).get(name, Extras())
            state = ' state="hidden"' if name == hidden else ""
            tabs += f'<sheet name="{name}" sheetId="{number}"{state} r:id="r{number}"/>'
            target = f"worksheets/sheet{number}.xml"
            links += f'<Relationship Id="r{number}" Type="{office}/worksheet" Target="{target}"/>'
            parts += f'<Override PartName="/xl/{target}" ContentType="{kind}.worksheet+xml"/>'
            archive.writestr(
                f"xl/{target}",
                f'<worksheet xmlns="{main}">{_sheet(cells, extra, styles)}</worksheet>',
            )
            sheet_parts = {}
            if extra.comments:
                notes = "".join(
                    f'<comment ref="{ref}" authorId="0"><text><t>{escape(text)}</t></text></comment>'
                    for ref, text in extra.comments.items()
                )
                sheet_parts[f"comments{number}.xml"] = (
                    "comments",
                    f'<comments xmlns="{main}"><authors><author>Ann</author></authors>'
                    f"<commentList>{notes}</commentList></comments>",
                )
            for count, (table, cells_of) in enumerate(extra.tables.items()):
                sheet_parts[f"table{number}-{count}.xml"] = (
                    "table",
                    f'<table xmlns="{main}" displayName="{table}" ref="{cells_of}"/>',
                )
            for part, (_, text) in sheet_parts.items():
                archive.writestr(f"xl/{part}", text)
            if sheet_parts:
                relations = "".join(
                    f'<Relationship Id="{part}" Type="{office}/{type_}" Target="../{part}"/>'
                    for part, (type_, _) in sheet_parts.items()
                )
                archive.writestr(
                    f"xl/worksheets/_rels/sheet{number}.xml.rels",
                    f'<Relationships xmlns="{package}/relationships">{relations}</Relationships>',
                )
        links += f'<Relationship Id="s" Type="{office}/styles" Target="styles.xml"/>'
        parts += f'<Override PartName="/xl/styles.xml" ContentType="{kind}.styles+xml"/>'
        archive.writestr(
            "xl/styles.xml", f'<styleSheet xmlns="{main}">{_styles(styles)}</styleSheet>'
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
        epoch = '<workbookPr date1904="1"/>' if from_1904 else ""
        archive.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{main}" xmlns:r="{office}">{epoch}<sheets>{tabs}</sheets></workbook>',
        )
        archive.writestr(
            "xl/_rels/workbook.xml.rels",
            f'<Relationships xmlns="{package}/relationships">{links}</Relationships>',
        )
    return path


def _sheet(cells: Mapping[str, object], extra: Extras, styles: list[str]) -> str:
    dimension = f'<dimension ref="{extra.dimension}"/>' if extra.dimension else ""
    columns = "".join(f'<col min="{n}" max="{n}" hidden="1"/>' for n in extra.hidden_columns)
    merges = "".join(f'<mergeCell ref="{ref}"/>' for ref in extra.merges)
    return (
        f"{dimension}{f'<cols>{columns}</cols>' if columns else ''}"
        f"<sheetData>{_rows(cells, extra, styles)}</sheetData>"
        f"{f'<mergeCells>{merges}</mergeCells>' if merges else ''}"
    )


def _rows(cells: Mapping[str, object], extra: Extras, styles: list[str]) -> str:
    rows: dict[int, list[str]] = {}
    for name, value in cells.items():
        number = int(name.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
        cell = value if isinstance(value, Cell) else Cell(value=value)
        rows.setdefault(number, []).append(_cell(name, cell, styles))
    return "".join(
        f'<row r="{number}" hidden="{int(number in extra.hidden_rows)}">{"".join(row)}</row>'
        for number, row in sorted(rows.items())
    )


def _cell(name: str, cell: Cell, styles: list[str]) -> str:
    if cell.style not in styles:
        styles.append(cell.style)
    start = f'<c r="{name}" s="{styles.index(cell.style)}"'
    formula = f"<f>{escape(cell.formula)}</f>" if cell.formula else ""
    if cell.error:
        return f'{start} t="e">{formula}<v>{cell.error}</v></c>'
    if isinstance(cell.value, bool):
        return f'{start} t="b">{formula}<v>{int(cell.value)}</v></c>'
    if isinstance(cell.value, int | float):
        return f"{start}>{formula}<v>{cell.value}</v></c>"
    if formula:
        value = f"<v>{escape(str(cell.value))}</v>" if cell.value else ""
        return f'{start} t="str">{formula}{value}</c>'
    return f'{start} t="inlineStr"><is><t>{escape(str(cell.value))}</t></is></c>'


def _styles(codes: Sequence[str]) -> str:
    formats = "".join(
        f'<numFmt numFmtId="{200 + number}" formatCode="{escape(code, {chr(34): "&quot;"})}"/>'
        for number, code in enumerate(codes)
        if number
    )
    entries = "".join(
        f'<xf numFmtId="{200 + number if number else 0}" fontId="0" fillId="0" borderId="0"/>'
        for number in range(len(codes))
    )
    return (
        f'<numFmts count="{len(codes) - 1}">{formats}</numFmts>'
        '<fonts count="1"><font/></fonts><fills count="1"><fill><patternFill/></fill></fills>'
        f'<borders count="1"><border/></borders><cellXfs count="{len(codes)}">{entries}</cellXfs>'
    )


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
