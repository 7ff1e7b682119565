"""A run over a folder of real files, named by HEADRACE_CORPUS; run by `make check`."""

import os
from pathlib import Path

import polars as pl
import pytest

from flows.run.core import run_job
from flows.run.job import Options, make_job
from tests.fakes.engine_server import FakeEngine
from tests.flows.test_run import DEMO, check_adds_up

pytestmark = pytest.mark.corpus


def test_every_object_has_its_row_when_the_corpus_is_large(tmp_path):
    corpus = Path(os.environ["HEADRACE_CORPUS"])
    paths = [str(p.relative_to(corpus)) for p in corpus.rglob("*") if p.is_file()]
    assert len(paths) > 20
    with FakeEngine(max_model_len=262_144) as engine:
        options = Options(
            source=str(corpus),
            sink=str(tmp_path / "lake"),
            engine=engine.url,
            # Chunks for a long context.
            settings=("chunk.max_tokens=20000",),
        )
        job = make_job(DEMO, options)
        manifest = run_job(job)
    check_adds_up(tmp_path / "lake", manifest, paths)
    assert manifest["verdict"] == "complete"
    documents = pl.read_parquet(f"{tmp_path}/lake/documents/*.parquet")
    rejected = documents.filter(status="rejected")
    assert rejected["error"].null_count() == 0
    assert not set(rejected["error_class"]) & {"timeout", "crashed", "memory"}
