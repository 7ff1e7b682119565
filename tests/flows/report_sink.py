"""A sink with records over groups, the corpus and computed tables, its rows written by hand."""

import hashlib
import json

import cv2
import numpy as np

from config.load import pipeline_from
from config.yaml_text import parse_yaml
from connectors.document import Span
from connectors.sinks.columns import output_values
from connectors.sinks.lake import Lake
from connectors.sinks.parquet import CHUNKS, DOCUMENTS, record_schema, span_row, to_parquet
from flows.report.build import write_report
from flows.run.bench import open_room
from flows.run.job import job_of
from flows.run.resume import job_path, manifest_path

BIDI = "\u202e\u2066\u2069"
HOSTILE = f'<img src=x onerror=alert(1)>[a](https://evil.example)|`=1+1`{BIDI}"</style>'
RUN_ID = "20260101T000000Z-abcd"

PIPELINE = """\
name: sampled
report: {title: What the letters say}
stages:
  - {name: pick, prompt: Which line counts?, output: "{point: line}"}
  - name: by_kind
    over: group
    needs: [pick]
    by: point
    prompt: What do they have in common?
    output: "{common: cited}"
  - {name: early, over: corpus, needs: [pick], prompt: What comes first?, output: "{first: string}"}
  - name: totals
    over: corpus
    needs: [pick]
    compute: SELECT point AS vendor, 1.5 AS amount, 1 AS count FROM pick
    output: "{vendor: string, amount: decimal, count: integer?}"
  - name: briefing
    over: corpus
    needs: [pick]
    prompt: What does it all say?
    output: "{summary: cited, points: [cited], tags: [string]}"
"""


def letter(width=300, height=400):
    """Return a scanned page as the bytes of a PNG."""
    pixels = np.full((height, width, 3), 245, dtype=np.uint8)
    for line in range(8):
        y = 50 + 40 * line
        cv2.putText(pixels, f"Line {line}", (30, y), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (40, 40, 40), 1)
    return cv2.imencode(".png", pixels)[1].tobytes()


class Sample:
    """A source with a letter and a list, and the tables of a run over them.

    `lines` are the segments of a document by its path: text and span.
    """

    def __init__(self, folder, stages=None, **settings):
        self.source, self.sink = folder / "source", folder / "sink"
        self.source.mkdir()
        data = {"source": str(self.source), "sink": str(self.sink), **settings}
        data = parse_yaml(PIPELINE) | data
        data["stages"] = [s for s in data["stages"] if stages is None or s["name"] in stages]
        self.config = pipeline_from(data, folder / "pipeline.yaml")
        self.job = job_of(self.config, origin="pipeline", run_id=RUN_ID)
        self.lake = Lake(str(self.sink))
        self.lines, self.keys, self.manifest = {}, {}, _manifest(self.config)
        box = (0.1, 0.2, 0.5, 0.26)
        words = ("Dear all", "The harbour closes on 3 May", "Yours")
        self.add(
            "letters/a.png", letter(), [(text, Span(page=1, bbox=box)) for text in words], "s00000"
        )
        rows = [f"vendor: V{n}; amount: {n}00" for n in range(1, 6)]
        self.add(
            "lists/b.csv",
            b"vendor,amount\n",
            [(text, Span(sheet="", cells=f"A{n}:B{n}")) for n, text in enumerate(rows, 2)],
            "s00001",
        )

    def add(self, path, data, lines, shard):
        """Put a document into the source, and its rows into the sink."""
        file = self.source / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        self.lines[path], self.keys[path] = lines, hashlib.sha256(data).hexdigest()
        identity = {"uri": str(file), "path": path, "document_key": self.keys[path]}
        units = [{"name": "1", "status": "read", "error": None}]
        document = {"shard": shard, "status": "read", "units": units, "num_chunks": 1}
        segments = [
            {
                "label": f"L{n}", "kind": "text", "text": text, "tier": "native", "media": None,
                "is_rest": False, "span": span_row(span),
            }
            for n, (text, span) in enumerate(lines)
        ]  # fmt: skip
        chunk = {"chunk_key": path, "ordinal": 0, "num_tokens": 9, "segments": segments}
        self._put(f"documents/{shard}.parquet", [identity | document], DOCUMENTS)
        self._put(f"chunks/{shard}.parquet", [identity | chunk], CHUNKS)

    def cite(self, field, path, number):
        """Return a citation row of the line with this number."""
        text, span = self.lines[path][number]
        return {
            "field": field, "label": f"L{number}", "quote": text, "tier": "native", "media": None,
            "span": span_row(span), "uri": f"file:///{path}", "path": path,
            "document_key": self.keys.get(path),
        }  # fmt: skip

    def records(self, stage, *rows):
        """Put the part of a stage over groups or the corpus."""
        self._put(
            f"records/stage={stage}/stage-{stage}.parquet",
            [self._record(stage, **row) for row in rows],
            record_schema(self._output(stage)),
        )

    def shard_records(self, stage, path, shard, **row):
        """Put the part of a stage over chunks, with one record."""
        identity = {"uri": path, "path": path, "document_key": self.keys[path]}
        record = self._record(stage, unit="chunk-00000", **row) | identity
        part = f"records/stage={stage}/{shard}.parquet"
        self._put(part, [record], record_schema(self._output(stage)))

    def finish(self, **changes):
        """Put the run's job and manifest."""
        self.manifest |= changes
        self.lake.put_json(job_path(RUN_ID), json.loads(json.dumps(self.job.as_json())))
        self.lake.put_json(manifest_path(RUN_ID), self.manifest)
        return self

    def _output(self, stage):
        return next(each.output for each in self.config.stages if each.name == stage)

    def _record(self, stage, unit, output=None, outcome="succeeded", **tail):
        return {
            "row_key": f"{stage}-{unit}", "unit": unit, "outcome": outcome, "saw": "text",
            **output_values(self._output(stage), output or {}), **tail,
        }  # fmt: skip

    def _put(self, path, rows, schema):
        self.lake.storage.put(path, to_parquet(rows, schema))


def claim(field, text, verdict, quote="closes on 3 May"):
    return {"field": field, "text": text, "quote": quote, "verdict": verdict}


def written(sample):
    """Write the report of a sample, and return its page and its Markdown."""
    with open_room(sample.job) as room:
        write_report(room, sample.manifest)
    folder = sample.sink / "reports" / RUN_ID
    return [(folder / name).read_text(encoding="utf-8") for name in ("index.html", "report.md")]


def sampled(folder, value="The harbour closes.", group="harbour", **settings):
    """Return a finished sample; `value` is the first sentence of the corpus answer."""
    sample = Sample(folder, **settings)
    letter_line = sample.cite("summary", "letters/a.png", 1)
    first, second = (sample.cite("points[0]", "lists/b.csv", n) for n in (2, 3))
    sample.records(
        "briefing",
        {
            "unit": "corpus",
            "output": {
                "summary": value,
                "points": ["V3 has most.", "Invented."],
                "tags": ["x", "y"],
            },
            "citations": [letter_line, first, second],
            "claims": [
                claim("summary", value, "verified"),
                claim("points[0]", "V3 has most.", "not_found", quote="V3 has all of it"),
                claim("points[1]", "Invented.", "unsourced", quote=None),
            ],
            "num_inputs": 100,
            "num_answered": 97,
        },
    )
    sample.records("early", {"unit": "corpus", "output": {"first": "Early thought."}})
    sample.records(
        "by_kind",
        {
            "unit": f"group-{group}",
            "output": {"common": "They close."},
            "citations": [sample.cite("common", "letters/a.png", 1)],
            "claims": [claim("common", "They close.", "verified")],
            "num_inputs": 2,
            "num_answered": 2,
        },
        *({"unit": f"group-g{n}", "output": {"common": f"Common {n}"}} for n in range(52)),
    )
    if any(stage.name == "totals" for stage in sample.config.stages):
        sample.records(
            "totals",
            *(
                {
                    "unit": f"row-{n:06d}",
                    "output": {"vendor": value if n == 0 else f"V{n}", "amount": f"{n}.50"},
                    "citations": [sample.cite("amount", "lists/b.csv", n)] if n < 3 else None,
                }
                for n in range(60)
            ),
        )
    sample.shard_records(
        "pick", "letters/a.png", "s00000", output={"point": value},
        citations=[sample.cite("point", "letters/a.png", 1)],
    )  # fmt: skip
    return sample.finish()


def _manifest(config):
    stage = {
        "outcomes": {"succeeded": 1}, "inputs": 1, "prompt_tokens": 10, "cached_tokens": 5,
        "planned_cached_tokens": 5, "completion_tokens": 3, "mode": "instant",
        "modes_observed": {"instant": 1}, "mode_mismatches": 0, "escalated": 0, "by_fallback": 0,
        "mode_notes": {}, "usage_guessed": 0,
    }  # fmt: skip
    stages = {each.name: {**stage, "table": f"records/stage={each.name}"} for each in config.stages}
    if "totals" in stages:
        stages["totals"] = {"outcomes": {"succeeded": 60}, "table": "records/stage=totals"}
    stages["briefing"]["claims"] = {"verified": 1, "not_found": 1, "unsourced": 1}
    stages["pick"]["skipped"] = {"no_modality": 4}
    return {
        "run_id": RUN_ID, "verdict": "complete", "started": "2026-01-01T00:00:00+00:00",
        "seconds": 36.0, "documents": {"listed": 2, "read": 2}, "stages": stages,
        "engine": {"profile": "embedded", "model": "m"}, "spent": {"tokens": 60, "usd": 0.5},
        "versions": {"headrace": "0.1.0"},
    }  # fmt: skip
