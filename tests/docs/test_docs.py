"""README and docs tell the truth: their commands exist and run, their code runs, their links lead."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from config.load import load_pipeline
from flows.run.core import run_job
from flows.run.job import Options, make_job
from tests.fakes.engine_server import FakeEngine

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "requirements" / "README.md",
]


def blocks(language):
    for page in PAGES:
        for number, code in enumerate(
            re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        ):
            yield pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A folder with `lake/` in it, as a run of the demo's pipeline leaves it."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "papers").mkdir()
    (folder / "papers" / "a.txt").write_text("The crane stopped at noon. A fuse had blown.")
    with FakeEngine() as engine:
        run_job(
            make_job(
                ROOT / "config/pipelines/demo.yaml",
                Options(
                    source=str(folder / "papers"), sink=str(folder / "lake"), engine=engine.url
                ),
            )
        )  # fmt: skip
    return folder


@pytest.mark.parametrize("code", list(blocks("python")))
def test_python_runs_when_copied_from_the_docs(code, lake):
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=lake, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.parametrize("code", list(blocks("yaml")))
def test_pipeline_loads_when_copied_from_the_docs(code, tmp_path):
    file = tmp_path / "pipeline.yaml"
    file.write_text(code, encoding="utf-8")
    if "stages:" in code:
        assert load_pipeline(file).stages


def test_make_targets_exist_when_the_docs_name_them():
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for page in PAGES:
        for words in re.findall(
            r"(?:^|`)make ([a-z -]+)", page.read_text(encoding="utf-8"), re.MULTILINE
        ):
            assert set(words.split(" #")[0].split()) <= targets, (page, words)


def test_links_lead_somewhere_when_they_are_relative():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), (page, link)


def test_columns_are_documented_when_tables_have_them():
    from connectors.sinks.parquet import CHUNKS, DOCUMENTS, RECORD_COLUMNS, RECORD_TAIL

    text = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    names = [
        *DOCUMENTS.names,
        *CHUNKS.names,
        *(name for name, _ in (*RECORD_COLUMNS, *RECORD_TAIL)),
    ]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_readme_opens_with_the_two_commands_when_read():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines[3].startswith("make demo ")
    assert lines[4].startswith("make test ")
