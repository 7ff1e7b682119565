"""What the agents of a shard work with: tools over its documents, their steps on record, lines to cite.

An agent of a stage over groups or the corpus has all documents of the sink before it; any other one has the
document that its question is about, and no other.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from config.load import load_secrets
from connectors.document import Segment, Span
from engine.modes.mode import Workshop
from engine.request import Request, Result, content_key
from engine.tool import ToolBox
from flows.run.corpus_view import SinkCorpus
from flows.run.graph import stage_shard
from flows.run.labels import Line, Origin
from flows.run.rows import Inquiry
from flows.run.units import Input
from tools.corpus import Corpus, Entry
from tools.labels import shown_text
from tools.mcp_config import variables
from tools.registry import Tools
from tools.tool import Scope, Tool

if TYPE_CHECKING:
    from config.pipeline import StageConfig
    from flows.run.bench import Bench
    from flows.run.shard import Shard

_LABEL = re.compile(r"\b(D\d{1,7})L(\d{1,8})\b")
_BESIDE = 4
"""Lines around a cited one that its quote may run over."""
_MAX_LISTED = 40
"""Documents that an agent is told of at the start; it lists the others with a tool."""


class ShardAgents:
    """Makes the tools of requests as they are asked for."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._inquiries: dict[str, Inquiry] = {}
        self._boxes: dict[tuple[str, str], ToolBox] = {}
        self._others: dict[str, Tool] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Hold connections to the MCP servers that the shard's stages use while the block runs.

        Raises:
            PrerequisiteError: One of them cannot be used.
        """
        wanted = {name.partition("__")[0] for stage in self._stages() for name in stage.tools}
        servers = [one for one in self._shard.bench.job.pipeline.mcp if one.name in wanted]
        async with AsyncExitStack() as stack:
            if servers:
                # The SDK takes two seconds to import.
                from tools.mcp import McpServer  # noqa: PLC0415

                for config in servers:
                    server = McpServer(
                        config, load_secrets((*variables(config), "PATH", "HOME", "LANG"))
                    )
                    await stack.enter_async_context(server)
                    self._others |= {tool.spec.name: tool for tool in server.tools}
            yield

    def _stages(self) -> list[StageConfig]:
        """Return the stages that this shard asks."""
        stages = self._shard.bench.job.pipeline.stages
        name = self._shard.plan.shard
        gathered = [one for one in stages if one.is_gathered and stage_shard(one) == name]
        return gathered or [one for one in stages if not one.is_gathered]

    def workshop(self) -> Workshop:
        """Return what the engine gives to agents."""
        return Workshop(
            tools=self._tools,
            steps=self._shard.ledger.steps.of,
            approval=self._shard.bench.approval,
        )

    def expect(self, request: Request, inquiry: Inquiry) -> None:
        """Take down what a request is about, before it is sent."""
        if request.limits is not None:
            self._inquiries[request.request_key] = inquiry

    def done(self, request_key: str) -> None:
        """Forget what a request was about, after its end."""
        self._inquiries.pop(request_key, None)

    def _tools(self, request: Request) -> ToolBox:
        inquiry = self._inquiries[request.request_key]
        path = inquiry.document.source.path if inquiry.document else ""
        found = self._boxes.get((inquiry.stage.name, path))
        if found is None:
            scratch = self._shard.bench.scratch / self._shard.plan.shard / "tools"
            scratch /= content_key(inquiry.stage.name, path)[:16]
            scratch.mkdir(parents=True, exist_ok=True)
            vectors = self._shard.bench.vectors
            scope = Scope(
                corpus=self._corpus(inquiry),
                scratch=scratch,
                vectors=vectors.store if vectors else None,
            )
            stage = inquiry.stage
            # One that its server does not offer is left out, as the log has said.
            names = [name for name in stage.tools if "__" not in name or name in self._others]
            found = Tools(names, scope, others=self._others, approval=stage.approve_calls)
            self._boxes[inquiry.stage.name, path] = found
        return found

    def _corpus(self, inquiry: Inquiry) -> Corpus:
        if inquiry.document is not None:
            return self._shard.corpora[inquiry.document.source.path]
        return self._sink_corpus

    @cached_property
    def _sink_corpus(self) -> SinkCorpus:
        # One for all requests of the shard: it is read anew from every commit.
        return sink_corpus(self._shard.bench)

    def with_cited(self, inquiry: Inquiry, results: Sequence[Result]) -> Inquiry:
        """Return the inquiry with the lines that its answers name, wherever the agent has found them."""
        said = json.dumps([result.output for result in results])
        named = dict.fromkeys((label, int(number)) for label, number in _LABEL.findall(said))
        if not named:
            return inquiry
        corpus = self._corpus(inquiry)
        entries = {entry.label: entry for entry in corpus.entries}
        wanted: dict[str, set[int]] = {}
        for label, number in named:
            if label in entries:
                beside = range(max(1, number - _BESIDE), number + _BESIDE + 1)
                wanted.setdefault(label, set()).update(beside)
        lines = [
            line
            for label in sorted(wanted, key=lambda name: int(name[1:]))
            for line in _lines(corpus, entries[label], sorted(wanted[label]))
        ]
        return replace(inquiry, lines=[*inquiry.lines, *lines])


def _lines(corpus: Corpus, entry: Entry, numbers: Sequence[int]) -> Iterator[Line]:
    segments = corpus.lines(entry.label)
    for number in numbers:
        if number <= len(segments):
            segment = segments[number - 1].with_label(f"{entry.label}L{number}")
            place = Origin(path=entry.path, document_key=entry.document_key, segment=segment)
            yield Line(segment=segment, origins=(place,))


def sink_corpus(bench: Bench) -> SinkCorpus:
    """Return all documents of the sink as they are now."""
    folder = bench.scratch / "lines"
    return SinkCorpus(bench.line_stores.at(scope_key(bench), bench.lake, folder))


def scope_key(bench: Bench) -> str:
    """Return the key of all that an agent over the corpus may read: of the chunks in the sink."""
    parts = sorted(
        (path, part.sha256)
        for commit in bench.commits.values()
        for path, part in commit.parts.items()
        if path.startswith("chunks/")
    )
    return content_key("corpus", parts)


def looks_itself(stage: StageConfig) -> bool:
    """Tell whether a stage begins with the corpus itself and not with earlier answers."""
    return bool(stage.tools) and not stage.needs


def catalogue(bench: Bench) -> Input:
    """Return what an agent is told of the corpus before it has looked."""
    entries = sink_corpus(bench).entries
    kinds: dict[str, int] = {}
    for entry in entries:
        kinds[entry.media_type] = kinds.get(entry.media_type, 0) + 1
    told = [f"The corpus has {len(entries):,} documents: {_counts(kinds)}."]
    told += [_told(entry) for entry in entries[:_MAX_LISTED]]
    if len(entries) > _MAX_LISTED:
        told.append(f"and {len(entries) - _MAX_LISTED:,} more")
    return Input(
        identity="catalogue",
        lines=tuple(
            # No document says this: a claim that rests on it has no source.
            Line(
                segment=Segment(kind="paragraph", text=text, span=Span()),
                origins=(),
                verdict="unsourced",
            )
            for text in told
        ),
        outputs={},
        num_inputs=len(entries),
        num_answered=len(entries),
    )


def _counts(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {kind}" for kind, number in sorted(kinds.items())) or "none"


def _told(entry: Entry) -> str:
    number = len(entry.tables)
    tables = f", {number} {'table' if number == 1 else 'tables'}" if number else ""
    return f"{entry.label} {shown_text(entry.path)} ({entry.media_type}, {entry.num_lines:,} lines{tables})"
