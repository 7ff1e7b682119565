"""What stages are asked about: chunks, rows of tables, and what is reduced from earlier answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from config.pipeline import StageConfig
from connectors.document import Chunk, Document, Segment
from connectors.readers.table_fields import Field, columns_of, fields_text, row_fields
from engine.batch import AWAITING_BATCH
from flows.run.labels import Line
from flows.run.lines import Given, heading, lines_of
from flows.run.row_order import RowOrder, given_order, shared_order

WHEN = "when"
"""Error class of what a stage's `when` leaves out: it is not missing."""

UPSTREAM_OVER_BUDGET = "upstream_over_budget"
"""Error class of what needs an answer that waits for a larger budget, a person or a batch: a later run will ask it."""

AWAITING_APPROVAL = "awaiting_approval"
"""Error class of a request that waits for a person's decision, on its stage or on a call of its agent."""

REFUSED = "refused"
"""Error class of what a person has refused to let go out; the next run asks again."""

AWAITED = frozenset({AWAITING_APPROVAL, AWAITING_BATCH})
"""Error classes of what is answered by and by, whatever the budget is."""

UNPAID = frozenset({"budget_reached", UPSTREAM_OVER_BUDGET, *AWAITED})
"""Error classes of what is missing only until there is a larger budget, a decision, or a batch's end."""

DOCUMENT, CORPUS = "document", "corpus"


def chunk_unit(chunk: Chunk) -> str:
    """Return the name of a chunk in its document."""
    return f"chunk-{chunk.ordinal:05d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a table in a chunk."""

    chunk: int
    """Position of the chunk in its document."""
    unit: str
    """Begins with the chunk's name."""
    segment: Segment
    """As the table has it."""
    fields: tuple[Field, ...] = ()
    """Its cells that are filled, in the table's order; empty where the row has no named cells."""
    order: tuple[int, ...] = ()
    """Places of the fields, in the order in which the model is shown them."""
    num_shared: int = 0
    """How many of them the row asked before it begins with too."""

    @property
    def shown(self) -> Segment:
        """Return the row as the model is shown it: its fields by name, in their order."""
        if not self.fields:
            return self.segment
        return replace(self.segment, text=fields_text([self.fields[place] for place in self.order]))

    @property
    def beginning(self) -> str:
        """Return what of its text the row asked before it begins with too, as far as fields go."""
        return fields_text([self.fields[place] for place in self.order[: self.num_shared]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of a document's tables, in reading order, and the order in which they are asked about."""

    rows: Sequence[Row] = ()
    turns: Sequence[int] = ()
    """Places of the rows, one table after the other."""


def rows_of(chunks: Sequence[Chunk], order: Literal["shared", "given"]) -> Rows:
    """Return the rows of the tables in a document's chunks; a header repeated is no row.

    Args:
        chunks: All of the document's.
        order: Whether rows and fields are put so that prompts begin alike (flows.run.row_order).
    """
    found: list[Row] = []
    tables: dict[str, list[int]] = defaultdict(list)
    seen: set[tuple[object, str]] = set()
    named, columns = "", columns_of("")
    for number, chunk in enumerate(chunks):
        ordinal = 0
        for segment in chunk.segments:
            if segment.kind == "heading":
                # One that was too long for a chunk goes on in the next segments.
                named = f"{named} {segment.text}" if segment.is_rest else segment.text
                columns = columns_of(named)
            if segment.kind != "table":
                continue
            # A sheet's header row stands in each chunk of its rows.
            key = (segment.span, segment.text)
            if key not in seen:
                seen.add(key)
                unit = f"{chunk_unit(chunk)}-row-{ordinal:05d}"
                row = Row(
                    chunk=number,
                    unit=unit,
                    segment=segment.with_label("L1"),
                    fields=row_fields(columns, segment) if columns else (),
                )
                tables[named].append(len(found))
                found.append(row)
            ordinal += 1
    turns: list[int] = []
    for places in tables.values():
        way = (shared_order if order == "shared" else given_order)([
            found[place].fields for place in places
        ])
        _put_in_order(found, places, way)
        turns += [places[at] for at in way.rows]
    return Rows(rows=found, turns=turns)


def _put_in_order(rows: list[Row], places: Sequence[int], way: RowOrder) -> None:
    for at, place in enumerate(places):
        rows[place] = replace(rows[place], order=way.fields[at], num_shared=way.num_shared[at])


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A document, group or corpus that a stage is asked about through earlier answers."""

    stage: StageConfig
    name: str
    document: Document | None = None
    group: str | None = None
    """What the members of a group have in common."""
    scope: str = ""
    """Key of the documents that an agent may read besides what it is shown."""
    left_out: bool = False
    """Whether there are answers, and `when` leaves all of them out."""
    is_unpaid: bool = False
    """Whether an answer is missing for want of budget, so that it would be asked, and paid, again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A record of a stage, as stages after it see it."""

    stage: str
    path: str
    """Of its document; empty where it spans documents."""
    unit: str
    error_class: str | None
    given: Given | None
    """None where there is no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What all needed stages say of one thing, to be reduced with others."""

    identity: str
    """Says where it stands among the inputs, whatever it says."""
    lines: Sequence[Line]
    outputs: Mapping[str, Mapping[str, Any]]
    """The answers themselves, by stage."""
    num_inputs: int = 1
    num_answered: int = 1


def inputs_of(
    replies: Iterable[Reply],
    when: Callable[[Mapping[str, Any]], bool] | None,
    *,
    titled: bool,
) -> Iterator[Input]:
    """Yield what the replies about one document, or about none, come to, in reading order.

    A reply about a chunk counts for the chunk's rows too where `when` looks at it, one about the
    document for all of it.

    Args:
        replies: Of the stages needed.
        when: Which are built on; where it looks at a stage that says nothing of a unit, it stays.
        titled: Whether the document's path stands in front of the lines.
    """
    by_unit: dict[str, list[Reply]] = defaultdict(list)
    for reply in replies:
        by_unit[reply.unit].append(reply)
    for unit in sorted(by_unit):
        own = [reply for reply in by_unit[unit] if reply.error_class != WHEN]
        if not own or (when is not None and not _holds(when, unit, by_unit)):
            continue
        answers = [reply for reply in own if reply.given is not None]
        lines = [line for reply in answers if reply.given for line in lines_of(reply.given)]
        path = own[0].path
        if titled and lines:
            lines = [heading(path or unit), *lines]
        yield Input(
            identity=f"{path}\0{unit}",
            lines=lines,
            outputs={reply.stage: reply.given.output for reply in answers if reply.given},
            num_answered=int(len(answers) == len(own)),
        )


def upstream_of(unit: str, by_unit: Mapping[str, Sequence[Reply]]) -> dict[str, Any]:
    """Return what is known of a unit: its own answers, its chunk's and its document's, by stage."""
    around = [name for name in by_unit if unit.startswith(f"{name}-")]
    names = [DOCUMENT, *sorted(around), unit]
    return {
        reply.stage: reply.given.output
        for name in names
        for reply in by_unit.get(name, ())
        if reply.given is not None
    }


def _holds(
    when: Callable[[Mapping[str, Any]], bool], unit: str, by_unit: Mapping[str, Sequence[Reply]]
) -> bool:
    try:
        return when(upstream_of(unit, by_unit))
    except KeyError:
        return True
