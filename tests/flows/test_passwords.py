"""Passwords of documents: from the environment to the reader, and nowhere else."""

from __future__ import annotations

import logging

import polars as pl
import pypdf
import pytest

from config.errors import ConfigError
from config.load import load_pipeline
from flows.report.build import rebuild
from flows.run.core import run_job
from flows.run.job import Options, make_job
from tests.corpora.pages import Page, Text, write_pages
from tests.flows.test_run import DEMO

CANARY = "canary-5f60-of-the-vault"
VARIABLE = "TEST_CONTRACTS_PASSWORD"
SETTING = f'reader.passwords={{"contracts/**/*.pdf": {VARIABLE}}}'


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source" / "contracts" / "2024"
    folder.mkdir(parents=True)
    page = Page(texts=[Text(x=80, y=600, text="The agreed price is four crates of tea.")])
    writer = pypdf.PdfWriter(clone_from=write_pages(tmp_path / "plain.pdf", [page]))
    writer.encrypt(CANARY, "the owner's", algorithm="AES-256")
    writer.write(folder / "tea.pdf")
    writer.write(tmp_path / "source" / "elsewhere.pdf")
    return tmp_path / "source"


def _job(source, tmp_path, engine):
    asked = Options(
        source=str(source), sink=str(tmp_path / "sink"), engine=engine.url, settings=(SETTING,)
    )
    return make_job(DEMO, asked)


def _documents(tmp_path):
    rows = pl.read_parquet(tmp_path / "sink" / "documents" / "*.parquet").to_dicts()
    return {row["path"]: row for row in rows}


def test_password_opens_what_its_glob_names_and_is_written_nowhere(
    source, tmp_path, engine, state_folder, monkeypatch, caplog
):
    monkeypatch.setenv(VARIABLE, CANARY)
    caplog.set_level(logging.DEBUG)
    manifest = run_job(_job(source, tmp_path, engine))
    rebuild(manifest["run_id"], str(tmp_path / "sink"))
    documents = _documents(tmp_path)
    assert documents["contracts/2024/tea.pdf"]["status"] == "read"
    assert documents["elsewhere.pdf"]["error_class"] == "encrypted"
    assert "reader.passwords" in documents["elsewhere.pdf"]["error"]
    for folder in (tmp_path / "sink", state_folder):
        for file in folder.rglob("*"):
            assert not file.is_file() or CANARY.encode() not in file.read_bytes(), file
    for path in (tmp_path / "sink").glob("*/*.parquet"):
        # Parquet is compressed: the values are looked at as well.
        assert CANARY not in str(pl.read_parquet(path).to_dicts())
    assert CANARY not in caplog.text
    assert CANARY not in str(engine.calls)


def test_rejection_names_the_key_when_the_password_is_wrong(source, tmp_path, engine, monkeypatch):
    monkeypatch.setenv(VARIABLE, "canary-of-another-vault")
    run_job(_job(source, tmp_path, engine))
    row = _documents(tmp_path)["contracts/2024/tea.pdf"]
    assert (row["status"], row["error_class"]) == ("rejected", "encrypted")
    assert "contracts/**/*.pdf" in row["error"]
    assert VARIABLE in row["error"]
    assert "canary" not in row["error"]


def test_run_is_refused_when_the_variable_is_not_set(source, tmp_path, engine, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(
        ConfigError, match=r"reader\.passwords\['contracts.*TEST_CONTRACTS_PASSWORD"
    ):
        run_job(_job(source, tmp_path, engine))
    assert not (tmp_path / "sink" / "documents").exists()


@pytest.mark.parametrize("value", ["two\nlines", "bytes \udce9 of Latin-1"])
def test_run_is_refused_and_shows_nothing_when_the_password_is_no_text(
    source, tmp_path, engine, monkeypatch, value
):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ConfigError, match=VARIABLE) as caught:
        run_job(_job(source, tmp_path, engine))
    assert value not in str(caught.value)


def test_pipeline_is_refused_and_hides_it_when_the_password_itself_stands_there(tmp_path):
    with pytest.raises(ConfigError, match="passwords") as caught:
        load_pipeline(DEMO, settings=(f'reader.passwords={{"**/*.pdf": {CANARY}}}',))
    shown = f"{caught.value}{caught.value.__cause__}"
    assert CANARY not in shown
