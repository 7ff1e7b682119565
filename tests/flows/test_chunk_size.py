"""A sink keeps the size of its chunks, so that an edited prompt moves none of them."""

import polars as pl
import pytest

from config.errors import ConfigError
from flows.run.core import run_job
from flows.run.job import Options, make_job

PIPELINE = """\
name: sizes
stages:
  - name: kind
    prompt: What is it about?{more}
    output: {{kind: "a|b|c"}}
"""


@pytest.fixture
def run(tmp_path, engine):
    source = tmp_path / "source"
    source.mkdir()
    text = "\n\n".join(
        f"Note {number}: the harbour was calm, and so it went." for number in range(400)
    )
    (source / "notes.txt").write_text(text, encoding="utf-8")
    engine.max_model_len = 3_000
    file = tmp_path / "sizes.yaml"

    def once(more="", sink="sink", **options):
        file.write_text(PIPELINE.format(more=more), encoding="utf-8")
        asked = Options(source=str(source), sink=str(tmp_path / sink), engine=engine.url, **options)
        manifest = run_job(make_job(file, asked))
        chunks = pl.read_parquet(f"{tmp_path / sink}/chunks/*.parquet")
        return manifest["chunk_max_tokens"], sorted(chunks["chunk_key"])

    return once


def test_chunks_stay_when_the_prompt_is_edited(run):
    size, keys = run()
    assert len(keys) > 2
    assert run(more=" Be brief, and name the line.") == (size, keys)
    assert run(more=" Be brief, and name the line.", sink="other")[0] < size


def test_run_is_refused_when_the_question_does_not_fit_beside_the_chunks(run):
    size, _ = run()
    with pytest.raises(ConfigError, match=rf"holds chunks of up to {size:,} tokens.*shorten the"):
        run(more=" Think of the harbour." * 100)
    # Cut anew where the pipeline says so.
    assert run(more=" Think.", settings=("chunk.max_tokens=500",))[0] == 500
