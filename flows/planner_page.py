"""Writes docs/planner.md and docs/memory.svg: the planner against what was published.

`python -m flows.planner_page` prints the page, `--write` writes both into docs/; a test compares them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from config.load import REPOSITORY
from config.model_facts import load_model
from engine.capacity import Wish, parse_gpus, plan
from engine.capacity.gpus import CATALOGUE
from flows.capacity_sketch import draw_capacity
from flows.planner_points import LIMIT, Point, Verdict, as_published, points, verdicts

_TOP = """\
# The planner against what was published

<!-- Written by `make reference` from flows/planner_points.py; edit that file instead. -->

`headrace engine plan` computes what a model takes on a set of GPUs, from its config.json and the way its
files store numbers. Nothing is started. [engines.md](engines.md) shows how to use it. This page holds it
against every published number that was found.

![One GPU of 8xH200](memory.svg)

## How it computes

- **Weights** part by part: experts, attention, shared experts, embedding, router, vision. Each part has its own
  bits and scales in a file. Experts are divided over all GPUs of a server, the rest over those of tensor
  parallelism; the projections into MLA's latent, the router, norms and the vision part lie on each GPU whole.
- **KV cache** of MLA: (kv_lora_rank + rope) x 2 bytes x layers = 70,272 bytes a token for Kimi K2.5, 35,136
  with fp8. It is repeated on every GPU of a tensor-parallel group; decode context parallelism divides it.
  Other models: heads of keys and values, divided down to one per GPU. Whole blocks only.
- **vLLM's own memory**: 8.6 GiB a GPU, from one log; `--overhead` sets another. Everything else follows from
  published facts.
- **Verdict**: a server starts where one request of the context fits into the cache; it `fits` where as many as
  `--concurrency` do.

"""


def page() -> str:
    """Return docs/planner.md."""
    found, judged = points(), verdicts()
    return "".join([_TOP, _numbers(found), _taken(), _verdicts(judged), _sentences(), _gpus()])


def sketch() -> str:
    """Return docs/memory.svg."""
    return draw_capacity(plan(load_model("kimi-k2.5"), parse_gpus("8xH200"), Wish()))


def _numbers(found: Sequence[Point]) -> str:
    met = sum(point.is_met for point in found)
    rows = [
        f"| {point.what} | {_figure(point.published, point)} | {_figure(point.planned, point)} |"
        f" {_error(point)} | {point.source} | {point.why} |"
        for point in found
    ]
    return (
        f"## Numbers\n\n{met} of {len(found)} within {LIMIT:.0%}, those with an exact source exactly; the others"
        " with the reason.\n\n| | published | planner | error | source | remark |\n"
        "| --- | ---: | ---: | ---: | --- | --- |\n" + "\n".join(rows) + "\n\n"
    )


def _figure(value: float, point: Point) -> str:
    digits = 0 if point.unit in {"bytes", "tokens"} else 1
    return f"{value:,.{digits}f} {point.unit}"


def _error(point: Point) -> str:
    text = "0" if point.planned == point.published else f"{100 * point.error:+.2f} %"
    return text if point.is_met else f"**{text}**"


def _taken() -> str:
    rows = [f"| {title} | {size:,.0f} GB | {source} |" for title, size, source in as_published()]
    return (
        "Of these the mixture of precisions is not published; the planner takes their size as it is:\n\n"
        "| file | published | source |\n| --- | ---: | --- |\n" + "\n".join(rows) + "\n\n"
    )


def _verdicts(judged: Sequence[Verdict]) -> str:
    words = {True: "works", False: "does not"}
    rows = [
        f"| {one.setup} | {words[one.works]} | {_said(one)} | {one.source} | {one.why} |"
        for one in judged
    ]
    met = sum(one.is_met for one in judged)
    return (
        f"## Set-ups\n\n{met} of {len(judged)} agree.\n\n| | published | planner | source | remark |\n"
        "| --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n\n"
    )


def _said(one: Verdict) -> str:
    text = "fits" if one.planned.fits else "does not fit"
    if one.planned.fits and one.planned.kv_tokens and one.planned.file.runs_on == "vllm":
        text += f", {one.planned.kv_tokens:,} tokens"
    return text if one.is_met else f"**{text}**"


def _sentences() -> str:
    model = load_model("kimi-k2.5")
    lines = []
    for gpus in ("4xH200", "8xH100"):
        reason = plan(model, parse_gpus(gpus), Wish()).reasons[0]
        lines.append(f"- {reason}.")
    return "## Two that do not fit, in a sentence each\n\n" + "\n".join(lines) + "\n\n"


def _gpus() -> str:
    rows = [
        f"| {gpu.name} | {gpu.memory_bytes / 2**30:.1f} GiB | {gpu.capability or '-'} | {gpu.source} |"
        for gpu in CATALOGUE.values()
    ]
    return (
        "## GPUs it knows\n\nAny other is given by its memory: `--gpus 8x96GiB`.\n\n"
        "| kind | memory | compute capability | source |\n| --- | ---: | --- | --- |\n"
        + "\n".join(rows)
        + "\n"
    )


PAGES = {"docs/planner.md": page, "docs/memory.svg": sketch}
"""What writes a file, by its path in the repository."""


def main() -> int:
    """Print the page, or write it and the sketch with `--write`."""
    parser = argparse.ArgumentParser(description="Write docs/planner.md and docs/memory.svg.")
    parser.add_argument("--write", action="store_true", help="write them to docs/")
    if not parser.parse_args().write:
        sys.stdout.write(page())
        return 0
    for path, make in PAGES.items():
        (REPOSITORY / path).write_text(make(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
