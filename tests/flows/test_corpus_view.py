"""What tools see of a sink: lines as the readers gave them, pictures and tables, and nothing else."""

import asyncio
import shutil
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

from connectors.chunker import ChunkRule, chunk_document
from connectors.document import Content, Document, Media, Segment, SourceRef, Span
from connectors.errors import DiskFull
from connectors.readers import ReaderOptions, detect_media_type, load_reader
from connectors.sinks.lake import Lake
from flows.run.core import run_job
from flows.run.corpus_view import ChunkCorpus, SinkCorpus
from flows.run.job import Options, make_job
from flows.run.line_store import LineStore, in_reading_order
from tests.corpora.make import write_xlsx
from tests.fakes.aside import FakeAside
from tests.fakes.engine_server import FakeEngine
from tools.registry import Tools
from tools.tool import Scope

CORPORA = Path(__file__).resolve().parent.parent / "corpora"
PIPELINE = """
name: view
documents_per_shard: 2
reader: {ocr: "off"}
chunk: {max_tokens: 200, overlap_tokens: 40}
stages:
  - {name: kind, prompt: What is it?, output: {kind: a|b}}
"""


class Letters:
    """Counts characters."""

    weighs_exactly = True

    def count(self, text):
        return len(text)

    def weigh(self, texts):
        return [len(text) for text in texts]


def read(path, media_dir, **options):
    media_type = detect_media_type(path, path.name)
    return load_reader(media_type).read(path, media_type, media_dir, ReaderOptions(**options))


def chunks_of(content, max_tokens=2000, **options):
    rule = ChunkRule(max_tokens=max_tokens, counter=Letters(), name="letters", **options)
    return chunk_document("key", content, rule)


def lines_of(content, **options):
    return in_reading_order([chunk.segments for chunk in chunks_of(content, **options)])


def text_file(tmp_path, num_lines=60):
    file = tmp_path / "text.md"
    parts = [f"# Part {n}\n\n" + " ".join(f"Sentence {n}.{i} is said." for i in range(9)) for n in
             range(num_lines // 10)]  # fmt: skip
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("overlap", [0, 120, 400])
def test_lines_are_those_of_the_reader_when_chunks_repeat_some(overlap, tmp_path):
    content = read(text_file(tmp_path), tmp_path)
    assert len(chunks_of(content, max_tokens=500, overlap_tokens=overlap)) > 3
    lines = lines_of(content, max_tokens=500, overlap_tokens=overlap)
    assert lines == list(content.segments)


def test_header_rows_are_there_once_when_sheets_are_cut(tmp_path):
    cells = {f"{column}{row}": f"{column}{row}" for row in range(1, 60) for column in "ABC"}
    file = write_xlsx(tmp_path / "a.xlsx", {"One": cells, "Two": cells})
    content = read(file, tmp_path)
    assert len(chunks_of(content, max_tokens=400)) > 4
    assert lines_of(content, max_tokens=400) == list(content.segments)


def test_image_is_at_its_page_when_a_text_model_cannot_read_it():
    def page(number, kind="paragraph", text="text"):
        media = f"p{number}.jpg" if kind == "image" else None
        return Segment(
            kind=kind, text=text, span=Span(page=number), media=media,
            tier="none" if kind == "image" else "native",
        )  # fmt: skip

    segments = (
        page(1, "image", ""), page(2), page(2, text="more"), page(3, "image", ""), page(4),
        page(5, "image", ""), page(6, "image", ""),
    )  # fmt: skip
    media = tuple(Media(name=f"p{n}.jpg", width_px=9, height_px=9) for n in (1, 3, 5, 6))
    content = Content(
        media_type="application/pdf", reader="pdf/1", units=(), segments=segments, media=media
    )
    assert lines_of(content) == list(segments)
    assert lines_of(content, image_tokens=lambda _: 100) == list(segments)


def test_segments_said_twice_stay_two_when_they_are_in_one_chunk():
    same = [Segment(kind="paragraph", text="ditto", span=Span(t0=n, t1=n + 1)) for n in range(6)]
    chunks = [[*same[:3]], [same[2], *same[3:]]]
    assert in_reading_order(chunks) == same
    assert in_reading_order([]) == []


def run(source, sink):
    """Make the sink anew, as it is after another run."""
    (source.parent / "pipeline.yaml").write_text(PIPELINE, encoding="utf-8")
    with FakeEngine() as engine:
        asked = Options(source=str(source), sink=str(sink), engine=engine.url)
        assert run_job(make_job(source.parent / "pipeline.yaml", asked))["verdict"] == "complete"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A source and the sink of a run over it, for tests that change neither."""
    folder = tmp_path_factory.mktemp("view")
    source = folder / "source"
    (source / "b").mkdir(parents=True)
    for number in range(5):
        text_file(folder, 3000 if number == 4 else 30).rename(source / f"b/{number}.md")
    (source / "empty.txt").write_text("", encoding="utf-8")
    shutil.copy(CORPORA / "counter.mp4", source / "a.mp4")
    (source / "table.csv").write_text("a,b\n" + "".join(f"{n},{n}\n" for n in range(9)))
    run(source, folder / "sink")
    return source, folder / "sink"


@pytest.fixture
def store(made, tmp_path):
    with closing(LineStore(Lake(str(made[1])), tmp_path / "store")) as opened:
        yield opened


def check(corpus, source, tmp_path):
    """Check that a view has what the readers give of a source."""
    for entry in corpus.entries:
        content = read(source / entry.path, tmp_path, ocr="off")
        assert list(corpus.lines(entry.label)) == list(content.segments), entry.path
        assert entry.num_lines == len(corpus.lines(entry.label)) == len(content.segments)
        assert (entry.media_type, entry.tables) == (content.media_type, content.tables)


def test_sink_has_the_lines_pictures_and_tables_of_its_documents_when_viewed(made, store, tmp_path):
    corpus = SinkCorpus(store)
    paths = ["a.mp4", *(f"b/{n}.md" for n in range(5)), "table.csv"]
    assert [(e.label, e.path) for e in corpus.entries] == [
        (f"D{n}", path) for n, path in enumerate(paths, start=1)
    ]
    check(corpus, made[0], tmp_path)
    assert corpus.media("D1", "t00002.00.jpg").read_bytes().startswith(b"\xff\xd8")
    (table,) = corpus.entries[-1].tables
    assert pl.read_parquet(corpus.table("D7", table.name))["b"].to_list() == list(range(9))


def test_sink_in_a_bucket_is_seen_the_same_way_when_viewed(bucket, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    text_file(tmp_path).rename(source / "a.md")
    (source / "table.csv").write_text("a,b\n1,2\n")
    run(source, bucket)
    with closing(LineStore(Lake(bucket), tmp_path / "store")) as store:
        corpus = SinkCorpus(store)
        assert len(corpus.entries) == 2
        check(corpus, source, tmp_path)
        assert pl.read_parquet(corpus.table("D2", "t0001.parquet"))["b"].to_list() == [2]


def test_only_given_paths_can_be_reached_when_a_view_is_narrow(store):
    corpus = SinkCorpus(store, ["b/3.md", "b/1.md", "nowhere.md"])
    assert [(e.label, e.path) for e in corpus.entries] == [("D1", "b/1.md"), ("D2", "b/3.md")]
    for call in (
        lambda: corpus.lines("D3"),
        lambda: corpus.media("D1", "t00002.00.jpg"),
        lambda: corpus.table("D1", "t0001.parquet"),
    ):
        with pytest.raises(KeyError):
            call()
    assert list(SinkCorpus(store).lines("D3")) == list(corpus.lines("D1"))


@pytest.mark.parametrize("name", ["../../../documents/x", "/etc/hostname", "t00009.00.jpg", ""])
def test_only_what_lines_name_is_fetched_when_a_picture_is_asked_for(name, store):
    with pytest.raises(KeyError):
        SinkCorpus(store).media("D1", name)
    with pytest.raises(FileNotFoundError):
        store.files.fetch("../documents", name)
    with pytest.raises(FileNotFoundError):
        store.files.fetch("key", name)


def test_file_that_the_sink_lost_is_no_picture_when_fetched(made, tmp_path):
    sink = shutil.copytree(made[1], tmp_path / "sink")
    shutil.rmtree(sink / "media")
    with closing(LineStore(Lake(str(sink)), tmp_path / "store")) as store:
        corpus = SinkCorpus(store)
        with pytest.raises(FileNotFoundError):
            corpus.media("D1", "t00002.00.jpg")
        with pytest.raises(KeyError):
            corpus.table("D7", "t0001.parquet")


def test_lines_are_as_a_list_has_them_when_sliced(store):
    lines = SinkCorpus(store).lines("D6")
    every = list(lines)
    assert len(every) > 1000
    for part in (slice(0, 5), slice(120, 135), slice(-3, None), slice(5000, 6000), slice(9, 2)):
        assert lines[part] == every[part]
    assert (lines[127], lines[128], lines[-1]) == (every[127], every[128], every[-1])
    with pytest.raises(IndexError):
        lines[len(every)]


def test_full_disk_is_told_with_the_folder_when_lines_are_brought(store):
    store._db.execute("PRAGMA max_page_count = 8")
    with pytest.raises(DiskFull, match=r"lines\.sqlite.*make room"):
        SinkCorpus(store).entries[0]


def test_changed_document_has_its_new_lines_when_the_sink_was_written_again(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("1.md", "2.md", "3.md"):
        (source / name).write_text("# Old\n\nAll is old.\n", encoding="utf-8")
    run(source, tmp_path / "sink")
    (source / "2.md").write_text("# New\n\nAll is new.\n", encoding="utf-8")
    (source / "3.md").unlink()
    run(source, tmp_path / "sink")
    with closing(LineStore(Lake(str(tmp_path / "sink")), tmp_path / "store")) as store:
        corpus = SinkCorpus(store, ["2.md", "3.md"])
        assert [entry.path for entry in corpus.entries] == ["2.md"]
        assert [line.text for line in corpus.lines("D1")] == ["New", "All is new."]


def test_tools_work_on_one_document_in_memory_when_it_is_being_asked_about(tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    content = read(CORPORA / "counter.mp4", media)
    source = SourceRef(uri="file:///c.mp4", path="c.mp4", size_bytes=1, etag="e")
    document = Document(source=source, document_key="key", status="read", content=content)
    corpus = ChunkCorpus(document, chunks_of(content), media)
    tools = Tools(["search", "read", "view_frame"], Scope(corpus=corpus, scratch=tmp_path))
    aside = FakeAside()

    def call(name, **arguments):
        return asyncio.run(tools.call(name, arguments, aside)).text

    assert "[D1L3] Frame = 21" in call("search", query="frame 21")
    assert "lines 1-4 of 4" in call("read", document="D1")
    assert call("view_frame", document="c.mp4", time_s=0, question="?").startswith("[D1L1] frame")
    assert aside.asked[0].images == [media / "t00000.00.jpg"]


def test_picture_comes_from_the_sink_when_a_document_was_not_read_again(made, tmp_path):
    lake = Lake(str(made[1]))
    content = read(CORPORA / "counter.mp4", tmp_path, ocr="off")
    (key,) = {
        item.path.split("/")[1] for item in lake.storage.list("media") if "t00002" in item.path
    }
    origin = SourceRef(uri="file:///a.mp4", path="a.mp4", size_bytes=1, etag="e")
    document = Document(source=origin, document_key=key, status="read", content=content)
    media = tmp_path / "media"
    media.mkdir()
    bare = ChunkCorpus(document, chunks_of(content), media)
    with pytest.raises(FileNotFoundError):
        bare.media("D1", "t00002.00.jpg")
    held = ChunkCorpus(document, chunks_of(content), media, lake)
    assert held.media("D1", "t00002.00.jpg").stat().st_size > 1000
    with pytest.raises(KeyError):
        held.media("D1", "../source/table.csv")
