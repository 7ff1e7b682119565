"""A run over a folder of real files, named by HEADRACE_CORPUS; run by `make check`."""

import json
import os
from pathlib import Path

import polars as pl
import pytest

from config.load import load_profile
from engine.tokens.opening import load_counter
from flows.run.core import run_job
from flows.run.job import Options, make_job
from tests.fakes.engine_server import FakeEngine, Fault
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


TEMPLATE_TOKENS = 24
"""What Kimi K2.5's chat template adds to a system and a user message, and a little more."""


def test_no_prompt_exceeds_the_context_when_a_book_has_619_pages(tmp_path):
    corpus = Path(os.environ["HEADRACE_CORPUS"])
    vocabulary = Path(os.environ["HEADRACE_KIMI_TOKENIZER"]) / "tiktoken.model"
    counter = load_counter(vocabulary)
    limit = 262_144
    sizes = []

    def refuse(_, body):
        prompt = sum(counter.count(message["content"]) for message in body["messages"])
        sizes.append(prompt + TEMPLATE_TOKENS + body["max_tokens"])
        error = {"message": f"This model's maximum context length is {limit} tokens."}
        return (
            Fault(status=400, body=json.dumps({"error": error}).encode())
            if sizes[-1] > limit
            else None
        )

    source = tmp_path / "source"
    source.mkdir()
    (source / "book.pdf").symlink_to(corpus / "pdf" / "DA-619p.pdf")
    # The fake counts three bytes a token itself; here the vocabulary does.
    with FakeEngine(script=refuse, max_model_len=4 * limit) as engine:
        profile = load_profile("kimi-k2.5").model_dump(mode="json")
        profile |= {"name": "kimi", "base_url": engine.url, "model": None}
        profile["tokenizer"] = {"file": str(vocabulary)}
        (tmp_path / "kimi.yaml").write_text(json.dumps(profile), encoding="utf-8")
        (tmp_path / "book.yaml").write_text(BOOK, encoding="utf-8")
        asked = Options(source=str(source), sink=str(tmp_path / "lake"))
        manifest = run_job(make_job(tmp_path / "book.yaml", asked))
    assert manifest["verdict"] == "complete"
    assert manifest["engine"]["tokens_counted"] == "exactly"
    assert manifest["stages"]["kind"]["outcomes"] == {"succeeded": len(sizes)}
    # Two chunks at least, of which the first is nearly full.
    assert len(sizes) >= 2
    assert 0.95 * limit < max(sizes) <= limit


BOOK = """\
name: book
engine: kimi.yaml
reader: {ocr: "off"}
stages:
  - name: kind
    prompt: What kind of book is it?
    output: {kind: novel|manual|law|other}
"""
