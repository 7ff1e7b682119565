"""How well quotes are checked: true, altered and invented ones of real PDFs, sheets and films.

`python -m benchmarks.citation_check [--corpus FOLDER] [--num 3000] [--lines 100000]
[--kinds pdf,sheet,video]` reads the small
files of the repository, and those of a folder with a MANIFEST.tsv (FOLDER, or HEADRACE_CORPUS), and
makes quotes of them with a seeded generator (`benchmarks.quote_making`). A true quote must be found
where it was taken from; an altered or invented one nowhere in its document. Precision is the share
of true quotes among those found, recall the share of those found among the true.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import ROOT, machine, show
from benchmarks.quote_making import Quote, Source, make_quotes
from connectors.citations import Quotable
from connectors.errors import ConnectorError
from connectors.reader_pool import ReaderPool
from connectors.readers import ReaderOptions

_KINDS = {
    **dict.fromkeys((".pdf",), "pdf"),
    **dict.fromkeys((".xlsx", ".xlsm", ".xlsb", ".xls", ".ods", ".csv"), "sheet"),
    **dict.fromkeys((".mp4", ".mov", ".mkv", ".avi", ".webm", ".mpg"), "video"),
}
# Text of films is mostly what OCR reads; of PDFs there is enough without it.
_OPTIONS = {
    "pdf": ReaderOptions(ocr="off", max_pages=25),
    "sheet": ReaderOptions(max_rows=1000, tables=False),
    "video": ReaderOptions(max_frames=4),
}
_SHARES = {"pdf": 0.5, "sheet": 0.35, "video": 0.15}
_TIMEOUT_S = 60.0
_NUM_SHOWN = 20
_NUM_SEARCHES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found out about a quote."""

    quote: Quote
    source: Source
    is_found: bool

    @property
    def is_right(self) -> bool:
        """Whether that is so."""
        return self.is_found == (self.quote.truth == "true")


def main() -> None:
    """Read, make quotes, judge them, and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default=os.environ.get("HEADRACE_CORPUS"))
    parser.add_argument("--num", type=int, default=3000, help="quotes in all, about")
    parser.add_argument("--lines", type=int, default=100_000, help="of the speed test")
    parser.add_argument("--kinds", default=",".join(_OPTIONS), help="of documents, of these")
    parser.add_argument("--seed", default="1")
    asked = parser.parse_args()
    measured_on = machine()
    files = files_of(Path(asked.corpus) if asked.corpus else None)
    kinds = asked.kinds.split(",")
    begun = time.monotonic()
    sources = read_sources(path for path in files if _KINDS[path.suffix] in kinds)
    read_s = time.monotonic() - begun
    verdicts = list(judge(sources, asked.num, asked.seed))
    facts: dict[str, object] = {
        "documents": {kind: sum(s.kind == kind for s in sources) for kind in _SHARES},
        "texts": sum(len(source.texts) for source in sources),
        "s to read them": read_s,
        **_speed(asked.lines),
        "judged wrongly": [_told(v) for v in verdicts if not v.is_right][:_NUM_SHOWN],
    }
    show("citation_check", measured_on, facts, scores(verdicts))


def files_of(corpus: Path | None) -> list[Path]:
    """Return the files of the repository and of the corpus, each once by its name."""
    folders = [ROOT / "tests" / "corpora", ROOT / "config" / "demo_corpus"]
    found = [path for folder in folders for path in sorted(folder.rglob("*"))]
    if corpus is not None:
        lines = (corpus / "MANIFEST.tsv").read_text(encoding="utf-8").splitlines()[1:]
        found += [corpus / line.split("\t")[0] for line in lines]
    by_name = {path.name: path for path in found if path.suffix in _KINDS}
    return list(by_name.values())


def read_sources(files: Iterable[Path]) -> list[Source]:
    """Return the documents of the files that can be read and have a text, in order."""
    by_kind: dict[str, list[Path]] = {kind: [] for kind in _OPTIONS}
    for path in files:
        by_kind[_KINDS[path.suffix]].append(path)
    sources: list[Source] = []
    for kind, paths in by_kind.items():
        with (
            ReaderPool(2, _OPTIONS[kind], _TIMEOUT_S) as pool,
            ThreadPoolExecutor(2) as threads,
        ):
            read = [threads.submit(_texts, pool, path) for path in paths]
            sources += [
                Source(name=path.name, kind=kind, texts=texts.result())
                for path, texts in zip(paths, read, strict=True)
                if any(texts.result())
            ]
    return sources


def _texts(pool: ReaderPool, path: Path) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="bench-") as media:
        try:
            content = pool.read(path, path.name, Path(media))
        except ConnectorError:
            return []
    return [segment.text for segment in content.segments]


def judge(sources: Sequence[Source], num: int, seed: str) -> Iterator[Verdict]:
    """Yield what is found out about quotes of each document: about `num` in all."""
    for source in sources:
        alike = [other for other in sources if other.kind == source.kind]
        share = num * _SHARES[source.kind] / len(alike)
        others = [other for other in alike if other is not source]
        quotable = Quotable(source.texts)
        for quote in make_quotes(source, others, round(share), seed):
            among = {quote.index} if quote.truth == "true" else None
            found = quotable.find(quote.text, among)
            yield Verdict(quote=quote, source=source, is_found=found is not None)


def scores(verdicts: Sequence[Verdict]) -> list[dict[str, object]]:
    """Return precision and recall over all, of each kind of document, and what each change does."""
    rows = [_score("all", verdicts)]
    by_kind = {kind: [v for v in verdicts if v.source.kind == kind] for kind in _SHARES}
    rows += [_score(kind, of_kind) for kind, of_kind in by_kind.items() if of_kind]
    ways = sorted({(v.quote.truth, v.quote.how) for v in verdicts}, key=lambda way: way[::-1])
    for truth in ("true", "altered", "invented"):
        for way in (way for way in ways if way[0] == truth):
            of_way = [v for v in verdicts if (v.quote.truth, v.quote.how) == way]
            rows.append(_score(": ".join(way), of_way))
    return rows


def _score(name: str, verdicts: Sequence[Verdict]) -> dict[str, object]:
    found = [v for v in verdicts if v.is_found]
    num_true = sum(v.quote.truth == "true" for v in verdicts)
    num_right = sum(v.quote.truth == "true" for v in found)
    is_mixed = 0 < num_true < len(verdicts)
    return {
        "quotes": name,
        "true": num_true,
        "found": num_right,
        "untrue": len(verdicts) - num_true,
        "untrue_found": len(found) - num_right,
        "precision": num_right / len(found) if is_mixed and found else None,
        "recall": num_right / num_true if num_true else None,
    }


def _told(verdict: Verdict) -> dict[str, object]:
    quote, source = verdict.quote, verdict.source
    return {
        "file": source.name,
        "quote": f"{quote.truth}: {quote.how}",
        "text": quote.text[:300],
        "source": source.texts[quote.index][:300],
    }


def _speed(num_lines: int) -> dict[str, object]:
    """Return what it takes to make lines ready, and to search them, a tenth of them and all."""
    chance = random.Random(1)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(3000)]
    lines = [
        " ".join(
            chance.choice(words) if chance.random() < 0.9 else str(chance.randint(0, 99_999))
            for _ in range(14)
        )
        for _ in range(num_lines)
    ]
    facts: dict[str, object] = {}
    for num in (num_lines // 10, num_lines):
        some = lines[:num]
        begun = time.perf_counter()
        quotable = Quotable(some)
        facts[f"{num} lines, s to make ready"] = time.perf_counter() - begun
        asked = [chance.randrange(num) for _ in range(_NUM_SEARCHES)]
        calls: dict[str, list[tuple[str, set[int] | None]]] = {
            "true": [(some[i][3:60].partition(" ")[2].rpartition(" ")[0], None) for i in asked],
            "untrue": [(some[i][:50] + " zz", None) for i in asked],
            "untrue, line named": [(some[i][:50] + " zz", {i}) for i in asked],
        }
        for name, quotes in calls.items():
            took = [_took_s(quotable, *quote) for quote in quotes]
            facts[f"{num} lines, ms a search, {name}"] = 1000 * statistics.median(took)
            facts[f"{num} lines, most ms a search, {name}"] = 1000 * max(took)
    return facts


def _took_s(quotable: Quotable, quote: str, among: set[int] | None) -> float:
    begun = time.perf_counter()
    quotable.find(quote, among)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
