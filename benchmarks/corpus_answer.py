"""One answer about a corpus of known facts: whether it is right, what it cites, and the memory it takes.

`python -m benchmarks.corpus_answer [--documents 1000]` makes PDFs and sheets, each with an order on a page or in
a row that is known, runs a pipeline from chunks to one answer, and once more over ten times as many. The
engine of the benchmark adds up what it finds in the lines that it is sent, and knows nothing else.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from aiohttp import web

from benchmarks.machine import ROOT, machine, show
from benchmarks.pdf_writing import pdf
from config.load import set_environment
from flows.run.core import run_job
from flows.run.job import Options, make_job

CONTEXT = 8192
_PAGES, _ROWS = 3, 12
_PIPELINE = """
name: orders
failure_limit: 0
reader: {ocr: "off"}
chunk: {max_tokens: 2000}
stages:
  - {name: facts, prompt: TASK facts, output: {orders: [cited]}, max_output_tokens: 200}
  - {name: document, over: document, needs: [facts], prompt: TASK add,
     output: {total: integer, says: cited}, max_output_tokens: 200}
  - {name: answer, over: corpus, needs: [document], prompt: TASK add,
     output: {total: integer, says: cited}, max_output_tokens: 400}
"""
_LINE = re.compile(r"^\[(L\d+)\] (.*)$", re.MULTILINE)
_ORDER = re.compile(r"Order of (\d+) ropes")
_TOTAL = re.compile(r"in all (\d+) ropes")


def main() -> None:
    """Run both, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--growth", type=int, default=10)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        web.run_app(_app(), host="127.0.0.1", port=0, print=_print_address)
        return
    if asked.arm:
        sys.stdout.write(json.dumps(_measure(Path(asked.arm), asked.url)) + "\n")
        return
    measured_on = machine()
    rows = []
    with _serving() as url:
        for number in (asked.documents, asked.growth * asked.documents):
            with tempfile.TemporaryDirectory(prefix="bench-") as name:
                facts = write_corpus(Path(name) / "in", number)
                found = _in_process(Path(name), url)
                rows.append({"arm": f"{number} documents", **found, **_check(Path(name), facts)})
    show("corpus_answer", measured_on, {"mb, large / small": rows[1]["mb"] / rows[0]["mb"]}, rows)


def write_corpus(folder: Path, num_documents: int) -> dict[str, tuple[int, int]]:
    """Write the documents and return, by path, the page or row of the order and its ropes."""
    folder.mkdir()
    facts = {}
    for number in range(num_documents):
        ropes = 1 + number * 7919 % 1000
        if number % 2:
            place = 1 + number % _PAGES
            texts = [f"Page {page} of letter {number}." for page in range(1, _PAGES + 1)]
            texts[place - 1] += f" Order of {ropes} ropes."
            name = f"{number:06d}.pdf"
            (folder / name).write_bytes(pdf([[text] for text in texts]))
        else:
            place = 2 + number % _ROWS
            rows = [f"{row},nothing" for row in range(_ROWS)]
            rows[place - 2] = f"{place - 2},Order of {ropes} ropes"
            name = f"{number:06d}.csv"
            (folder / name).write_text("\n".join(["number,text", *rows]) + "\n", encoding="utf-8")
        facts[name] = (place, ropes)
    return facts


def _in_process(folder: Path, url: str) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.corpus_answer", "--arm", str(folder), "--url", url],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def _measure(folder: Path, url: str) -> dict[str, Any]:
    set_environment({"HEADRACE_STATE": f"{folder}/state"})
    (folder / "pipeline.yaml").write_text(_PIPELINE, encoding="utf-8")
    started = time.monotonic()
    asked = Options(source=f"{folder}/in", sink=f"{folder}/lake", engine=url)
    manifest = run_job(make_job(folder / "pipeline.yaml", asked))
    stages = manifest["stages"]
    return {
        "verdict": manifest["verdict"],
        "adds_up": all(s["inputs"] == sum(s["outcomes"].values()) for s in stages.values()),
        "parts": stages["answer"]["parts"],
        "claims": {name: stage["claims"] for name, stage in stages.items()},
        "seconds": round(time.monotonic() - started, 1),
        "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _check(folder: Path, facts: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Return whether the answer is right, and how many citations lead to the right page or row."""
    answer = pl.read_parquet(f"{folder}/lake/records/stage=answer/*.parquet").to_dicts()
    documents = pl.read_parquet(f"{folder}/lake/records/stage=document/*.parquet")
    cited = [one for row in documents["citations"].to_list() for one in row]
    cited += [one for row in answer for one in row["citations"]]
    right = sum(_place(one) == facts[one["path"]][0] for one in cited)
    return {
        "is_right": [row["total"] for row in answer] == [sum(ropes for _, ropes in facts.values())],
        "rests_on": [(row["num_answered"], row["num_inputs"]) for row in answer],
        "citations": len(cited),
        "citations_right": right,
    }


def _place(cited: Mapping[str, Any]) -> int | None:
    span = cited["span"]
    if span["page"] is not None:
        return int(span["page"])
    found = re.fullmatch(r"[A-Z]+(\d+):[A-Z]+\1", span["cells"] or "")
    return int(found[1]) if found else None


def _reply(text: str) -> dict[str, Any]:
    """Return what follows from the lines of a prompt."""
    # What an earlier claim quotes stands behind it, and is not to be added twice.
    lines = [(label, line.partition(" («")[0]) for label, line in _LINE.findall(text)]
    orders = [(label, m[0], int(m[1])) for label, line in lines for m in _ORDER.finditer(line)]
    if "TASK facts" in text:
        claims = [{"lines": [label], "quote": said, "text": said} for label, said, _ in orders]
        return {"orders": claims}
    totals = [(label, m[0], int(m[1])) for label, line in lines for m in _TOTAL.finditer(line)]
    found = totals or orders
    total = sum(number for _, _, number in found)
    return {
        "total": total,
        "says": {
            "lines": [label for label, _, _ in found][:8],
            "quote": found[0][1] if found else "",
            "text": f"in all {total} ropes",
        },
    }


async def _complete(request: web.Request) -> web.Response:
    body = await request.json()
    content = body["messages"][-1]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    answer = json.dumps(_reply(text))
    usage = {"prompt_tokens": len(text) // 4, "completion_tokens": len(answer) // 4}
    head = {"id": "1", "object": "chat.completion.chunk", "model": "adds-up", "created": 1}
    delta = {"index": 0, "delta": {"role": "assistant", "content": answer}, "finish_reason": None}
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    if not body.get("stream"):
        message = {"role": "assistant", "content": answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({**head, "choices": [choice], "usage": usage})
    events = [
        {**head, "choices": [delta]},
        {**head, "choices": [end]},
        {**head, "choices": [], "usage": usage},
    ]
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return web.Response(text=text, content_type="text/event-stream")


async def _models(_: web.Request) -> web.Response:
    model = {"id": "adds-up", "object": "model", "owned_by": "vllm", "max_model_len": CONTEXT}
    return web.json_response({"object": "list", "data": [model]})


def _app() -> web.Application:
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/chat/completions", _complete)
    app.router.add_get("/v1/models", _models)
    return app


def _print_address(text: str) -> None:
    found = re.search(r"http://127\.0\.0\.1:\d+", text)
    if found:
        sys.stdout.write(found[0] + "\n")
        sys.stdout.flush()


@contextmanager
def _serving() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.corpus_answer", "--serve"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip() + "/v1"
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    main()
