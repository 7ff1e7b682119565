"""Puts many answers together to one, in as many levels as the context makes necessary.

Inputs of one unit (a document, a group, the corpus) are cut into runs that fit one request each
(flows.run.tree); the answers to the runs are the inputs of the next level, until one run is left. A part
without an answer is carried as a number: what an answer rests on is never less than it says.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from flows.run.lines import lines_of, relabelled
from flows.run.rows import Answered, Inquiry, close
from flows.run.tree import cut, marks_of
from flows.run.units import AWAITED, Input, Subject

if TYPE_CHECKING:
    from flows.run.shard import Shard

_Taker = Callable[[int, Answered], None]
Ask = Callable[[Iterator[Inquiry]], AsyncGenerator[Answered, None]]
"""Brings inquiries to their ends, in their order; takes them as it has room for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """A unit with its inputs, which are loaded when they are asked about."""

    subject: Subject
    marks: Sequence[int]
    """Of the inputs' identities, see `flows.run.tree`."""
    tokens: Sequence[int]
    load: Callable[[range], Sequence[Input]]


def members_of(
    shard: Shard, subject: Subject, inputs: Sequence[Input], marks: Sequence[int] | None = None
) -> Members:
    """Return a unit with inputs that are in memory; `marks` are those of their identities where None."""
    return Members(
        subject=subject,
        marks=marks_of(one.identity for one in inputs) if marks is None else marks,
        tokens=[shard.bench.asker.weigh(one.lines) for one in inputs],
        load=lambda run: inputs[run.start : run.stop],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """One request's share of a unit's inputs."""

    number: int
    """Of the unit that it belongs to."""
    mark: int
    inquiry: Inquiry


@dataclass(slots=True)
class _Level:
    """What a unit's nodes of one level came to."""

    members: Members
    first: Answered | None = None
    marks: list[int] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)
    waits: bool = False
    """Whether an answer to a part of it is still to come: they are put together when all are there."""


async def reduce_all(
    shard: Shard,
    every: Iterable[Members],
    takers: tuple[_Taker, _Taker],
    ask: Ask,
) -> None:
    """Ask about every unit.

    Args:
        shard: Whose ledger and engine it goes through.
        every: The units.
        takers: The first gets each unit's number, from 0, and the answer about it; levels apart, in
            order. The second gets each unit's number and an answer about a part of it.
        ask: Brings inquiries to their ends, in their order; takes more of them as it has room.
    """
    pending = dict(enumerate(every))
    level = 0
    while pending:
        pending = await _ask_level(shard, (pending, level), takers, ask)
        level += 1


async def _ask_level(
    shard: Shard,
    asked: tuple[dict[int, Members], int],
    takers: tuple[_Taker, _Taker],
    ask: Ask,
) -> dict[int, Members]:
    """Ask about units of a level, and return those that take one more."""
    (pending, level), (done, part) = asked, takers
    found: dict[int, _Level] = {}
    again: dict[int, Members] = {}

    def finish(number: int) -> None:
        ended = found.pop(number)
        if len(ended.inputs) == 1:
            assert ended.first is not None
            named = replace(ended.first.inquiry, unit=ended.members.subject.name)
            done(number, replace(ended.first, inquiry=named))
        elif ended.waits:
            subject, num_inputs = ended.members.subject, sum(one.num_inputs for one in ended.inputs)
            done(number, close(shard.bench.asker.unpaid(subject, num_inputs), None))
        elif level and len(ended.inputs) >= len(ended.members.marks):
            done(
                number, close(shard.bench.asker.too_many(ended.members.subject, ended.inputs), None)
            )
        else:
            # A node stands where its first input does, so that a changed input moves no border.
            again[number] = members_of(shard, ended.members.subject, ended.inputs, ended.marks)

    nodes = (node for number, one in pending.items() for node in _nodes(shard, number, one, level))
    asked_about: deque[_Node] = deque()

    def inquiries() -> Iterator[Inquiry]:
        for node in nodes:
            asked_about.append(node)
            yield node.inquiry

    async with aclosing(ask(inquiries())) as ends:
        async for end in ends:
            node = asked_about.popleft()
            # Units come one after the other.
            for number in [number for number in found if number < node.number]:
                finish(number)
            _take(found.setdefault(node.number, _Level(pending[node.number])), node, end, part)
    for number in list(found):
        finish(number)
    return again


def _take(ended: _Level, node: _Node, end: Answered, part: Callable[[int, Answered], None]) -> None:
    """Add a node's end to those of its unit."""
    if ended.first is None:
        ended.first = end
    else:
        if len(ended.inputs) == 1:
            part(node.number, ended.first)
        part(node.number, end)
    ended.waits |= end.result.error_class in AWAITED
    inquiry, given = end.inquiry, end.given
    assert inquiry.num_inputs is not None
    ended.marks.append(node.mark)
    ended.inputs.append(
        Input(
            identity=inquiry.unit,
            lines=lines_of(given) if given else (),
            outputs={inquiry.stage.name: given.output} if given else {},
            num_inputs=inquiry.num_inputs,
            num_answered=(inquiry.num_answered or 0) if given else 0,
        )
    )


def _nodes(shard: Shard, number: int, members: Members, level: int) -> Iterator[_Node]:
    asker, subject = shard.bench.asker, members.subject
    if subject.is_unpaid:
        yield _Node(number=number, mark=0, inquiry=asker.unpaid(subject, len(members.marks)))
        return
    room = asker.room(subject.stage)
    # Without inputs there still is one question, whose end says so.
    runs = cut(members.marks, members.tokens, room) or [range(0)]
    for ordinal, (run, inquiry) in enumerate(_inquiries(shard, members, runs, level)):
        name = f"{subject.name}~{level}-{ordinal:05d}"
        mark = members.marks[run.start] if run else 0
        yield _Node(number=number, mark=mark, inquiry=replace(inquiry, unit=name))


def _inquiries(
    shard: Shard, members: Members, runs: Iterable[range], level: int
) -> Iterator[tuple[range, Inquiry]]:
    """Yield the runs with their questions; one that is too long after all is cut once more."""
    for run in runs:
        inquiry = _inquiry(shard, members, run, level)
        too_long = inquiry.unasked is not None and inquiry.unasked[1] == "too_long"
        if not too_long or len(run) <= 1:
            yield run, inquiry
            continue
        tokens = members.tokens[run.start : run.stop]
        inner = cut(members.marks[run.start : run.stop], tokens, max(1, sum(tokens) - 1))
        parts = [range(run.start + one.start, run.start + one.stop) for one in inner]
        if len(parts) == 1:
            half = (run.start + run.stop) // 2
            parts = [range(run.start, half), range(half, run.stop)]
        yield from _inquiries(shard, members, parts, level)


def _inquiry(shard: Shard, members: Members, run: range, level: int) -> Inquiry:
    inputs = members.load(run)
    outputs: dict[str, list[Any]] = defaultdict(list)
    for one in inputs:
        for stage, output in one.outputs.items():
            outputs[stage].append(output)
    return shard.bench.asker.about_lines(
        members.subject,
        relabelled([line for one in inputs for line in one.lines]),
        counts=(
            sum(one.num_inputs for one in inputs),
            sum(one.num_answered for one in inputs),
        ),
        combines=level > 0,
        outputs=outputs,
    )
