"""SQL over real Parquet files, in a real child process."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine.tool import ToolError
from tests.tools.children import children_of
from tests.tools.corpus import FolderCorpus, NoAside, row_segment, scope_of
from tools import table_query
from tools.table_query import TableQuery
from tools.tables import Tables


@pytest.fixture
def corpus(tmp_path):
    corpus = FolderCorpus(tmp_path / "corpus")
    corpus.add(
        "harbour/calls.xlsx",
        {"Q1": {"ship": ["Ann", "Bo", "Cy"], "Tonnes in": [10.5, None, 4.0]}, "Q2": {"x": [1]}},
        title="Ship calls",
        lines=[row_segment("Q1", 1, "head"), *(row_segment("Q1", n, f"{n},..") for n in (2, 3, 4))],
    )
    corpus.add("long.csv", {"": {"n": list(range(1000))}})
    return corpus


@pytest.fixture
def ask(corpus, tmp_path):
    tool = TableQuery(scope_of(corpus, tmp_path))

    def call(sql, **more):
        return asyncio.run(tool.call({"sql": sql, **more}, NoAside())).text

    return call


def test_rows_are_shown_with_their_lines_when_row_is_selected(ask):
    text = ask("select row, ship, \"Tonnes in\" from d1_t1 where ship <> 'Bo' order by ship desc")
    assert text.splitlines()[:5] == [
        "2 rows",
        "",
        "line | row | ship | Tonnes in",
        "D1L4 | 4 | Cy | 4.0",
        "D1L2 | 2 | Ann | 10.5",
    ]
    assert "D1, sheet 'Q1', row N" in text


def test_all_rows_are_counted_when_some_are_shown(ask):
    text = ask("select n from D2_T1 order by n desc;", max_rows=3)
    assert text.splitlines()[:6] == ["first 3 of 1,000 rows", "", "n", "999", "998", "997"]


def test_fewer_rows_are_shown_when_they_are_too_long(ask):
    text = ask("select repeat('x', 350) a, repeat('y', 5000) b from d2_t1", max_rows=200)
    assert len(text) < 22_000
    assert text.startswith("first 29 of 1,000 rows (20,000 characters are shown at most")
    assert "(5,000 characters)" in text


def test_a_table_is_described_when_asked(ask):
    assert "ship | VARCHAR" in ask("describe d1_t1")


@pytest.mark.attack("marks and labels that a text forges")
def test_marks_of_a_chat_template_are_disarmed_when_a_cell_has_them(ask):
    assert "< |im_end|>" in ask("select '<|im_end|>' a")


def test_the_reason_is_given_when_a_column_is_wrong(ask):
    with pytest.raises(ToolError, match="Candidate bindings"):
        ask("select shipp from d1_t1")


@pytest.mark.attack("SQL that is no query")
@pytest.mark.parametrize(
    "sql",
    [
        "copy d1_t1 to '/tmp/out.csv'",
        "copy (select 1) to '/tmp/out.csv'",
        "attach '/tmp/x.db'",
        "install httpfs",
        "load httpfs",
        "set memory_limit = '64GB'",
        "reset enable_external_access",
        "pragma database_list",
        "pragma threads = 8",
        "call pragma_version()",
        "create table x as select 1",
        "drop view d1_t1",
        "export database '/tmp/e'",
        "create secret s (type s3)",
        "prepare p as select 1",
        "update extensions",
        "explain analyze select 1",
        "begin",
    ],
)
def test_a_statement_is_refused_when_it_is_no_select(ask, sql):
    with pytest.raises(ToolError, match="only one SELECT"):
        ask(sql)


@pytest.mark.attack("SQL that is no query")
def test_statements_are_refused_when_there_are_two(ask):
    with pytest.raises(ToolError, match="found 2 statements"):
        ask("select 1; drop view d1_t1")


@pytest.mark.attack("files, addresses and variables from SQL")
@pytest.mark.parametrize(
    "source",
    [
        "read_csv('/etc/passwd')",
        "read_text('/etc/passwd')",
        "read_blob('/etc/hostname')",
        "read_json('/proc/self/environ')",
        "glob('/etc/*')",
        "sniff_csv('/etc/passwd')",
        "'http://127.0.0.1:9/a.csv'",
        "read_parquet('https://example.com/a.parquet')",
        "'s3://bucket/a.parquet'",
        "read_text('{table}/../../secret.txt')",
        "read_parquet('{table}/../*.parquet')",
        "parquet_metadata('{other}')",
        "'{other}'",
        "'{link}'",
    ],
)
def test_other_files_and_addresses_are_refused_when_a_query_reads_them(
    ask, corpus, tmp_path, source
):
    (tmp_path / "secret.txt").write_text("secret")
    other = tmp_path / "other.parquet"
    pq.write_table(pq.read_table(corpus.table("D1", "t0001.parquet")), other)
    link = tmp_path / "link.parquet"
    link.symlink_to(other)
    folder = corpus.table("D1", "t0001.parquet").parent
    named = source.format(table=folder, other=other, link=link)
    with pytest.raises(ToolError, match="cannot be used"):
        ask(f"select * from d1_t1, {named}")


@pytest.mark.attack("files, addresses and variables from SQL")
def test_a_table_of_the_corpus_is_refused_when_its_file_is_named_by_path(ask, corpus):
    path = corpus.table("D1", "t0002.parquet")
    with pytest.raises(ToolError, match="cannot be used"):
        ask(f"select * from '{path}'")


@pytest.mark.attack("files, addresses and variables from SQL")
@pytest.mark.parametrize(
    "sql", ["select getenv('HOME')", "select * from asked", "select * from d9_t1"]
)
def test_environment_and_variables_are_unknown_when_a_query_names_them(ask, sql):
    with pytest.raises(ToolError, match="does not exist"):
        ask(sql)


@pytest.mark.attack("endless or huge queries")
def test_a_query_is_stopped_when_it_does_not_end(ask, monkeypatch):
    monkeypatch.setattr(table_query, "TIMEOUT_S", 1.0)
    began = time.monotonic()
    with pytest.raises(ToolError, match="longer than 1 s"):
        ask("select count(*) from range(10000000000) t(i), range(1000000) u(j) where i % 7 = j % 3")
    assert time.monotonic() - began < 10


@pytest.mark.attack("endless or huge queries")
@pytest.mark.parametrize(
    "sql",
    [
        "select string_agg(i::varchar || repeat('x', 1000)) from range(100000000) t(i)",
        "select list(i) from range(10000000000) t(i)",
        "select array_agg(repeat('x', 1000000)) from range(100000)",
        "with recursive r(x) as (select 'x' union all select x || x from r) select max(length(x)) from r",
    ],
)
def test_this_process_lives_on_when_a_query_uses_up_memory(ask, sql):
    with pytest.raises(
        ToolError, match=r"needs more than|brought its process down|Out of Range|too large"
    ):
        ask(sql)
    assert ask("select 1 a").startswith("1 row")


def test_the_loop_goes_on_when_a_query_runs(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(table_query, "TIMEOUT_S", 1.0)
    tool = TableQuery(scope_of(corpus, tmp_path))

    async def main():
        query = asyncio.create_task(
            tool.call(
                {"sql": "select sum(i) from range(10000000000) t(i), range(100) u(j)"}, NoAside()
            )
        )
        longest = 0.0
        while not query.done():
            began = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - began)
        with pytest.raises(ToolError):
            await query
        return longest

    assert asyncio.run(main()) < 0.5


def test_the_child_ends_when_the_call_is_cancelled(corpus, tmp_path):
    tool = TableQuery(scope_of(corpus, tmp_path))

    async def main():
        sql = "select sum(i) from range(10000000000) t(i), range(100) u(j)"
        query = asyncio.create_task(tool.call({"sql": sql}, NoAside()))
        await asyncio.sleep(0.5)
        assert _children()
        query.cancel()
        with pytest.raises(asyncio.CancelledError):
            await query

    asyncio.run(main())
    deadline = time.monotonic() + 5
    while _children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _children()


def _children():
    """Return the command lines of the children that all threads of this process have started."""
    commands = []
    for pid in children_of():
        with suppress(OSError):
            commands.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return [command for command in commands if b"tools.table_child" in command]


def test_a_page_of_tables_has_columns_and_first_rows_when_listed(corpus, tmp_path):
    for number in range(11):
        corpus.add(f"many/{number}.csv", {"": {"v": [number]}})
    tool = Tables(scope_of(corpus, tmp_path))
    first = asyncio.run(tool.call({}, NoAside())).text
    assert first.startswith("Tables 1 to 10 of 14; the next ones with start=11.")
    assert "d1_t1: D1 harbour/calls.xlsx, sheet 'Q1', cells A1:F4, 'Ship calls'; 3 rows" in first
    assert 'columns: "row" BIGINT, "ship" VARCHAR, "Tonnes in" DOUBLE' in first
    assert "  2 | Ann | 10.5" in first
    assert asyncio.run(tool.call({"start": 11}, NoAside())).text.startswith(
        "Tables 11 to 14 of 14."
    )


def test_tables_are_found_by_words_and_document_when_asked(corpus, tmp_path):
    tool = Tables(scope_of(corpus, tmp_path))
    assert "of 1." in asyncio.run(tool.call({"contains": "TONNES calls"}, NoAside())).text
    assert "of 1." in asyncio.run(tool.call({"document": "d2"}, NoAside())).text
    assert "No table matches" in asyncio.run(tool.call({"contains": "zebra"}, NoAside())).text
    with pytest.raises(ToolError, match="no document 'D7'"):
        asyncio.run(tool.call({"document": "D7"}, NoAside()))
    with pytest.raises(ToolError, match="start is 9"):
        asyncio.run(tool.call({"start": 9}, NoAside()))


def test_lines_lead_to_the_rows_when_a_real_workbook_is_queried(demo_corpus, tmp_path):
    corpus = FolderCorpus(tmp_path / "corpus")
    corpus.read(demo_corpus / "tables" / "harbour-accounts.xlsx")
    corpus.read(demo_corpus / "tables" / "airports.csv")
    tool = TableQuery(scope_of(corpus, tmp_path))
    for table, column in (("d1_t2", "Ship"), ("d2_t1", "row")):
        sql = f"select row, {column} as told from {table} order by row desc limit 5"
        lines = asyncio.run(tool.call({"sql": sql}, NoAside())).text.splitlines()
        assert lines[2] == "line | row | told"
        for line in lines[3:8]:
            label, row, told = line.split(" | ")
            segment = corpus.lines(label.partition("L")[0])[int(label.partition("L")[2]) - 1]
            assert segment.text.startswith(f"{row},")
            assert told in segment.text
