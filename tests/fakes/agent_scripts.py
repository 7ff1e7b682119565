"""Scripted models: what each does follows from the messages it is sent, and from nothing else.

After a compaction they go on from lines in any message that is not a tool's, in the forms below;
asked for a summary (no tools to call, the last user message says summarise, compact or condense) they
write those lines themselves:

    so far: sum=1234 next=kab12 next=kcd34     LedgerWalk: one next per chain, END for one that is done
    found item=alpha part=1 value=12           WideSearch, Swarm
    created=prober                             Swarm: a role there is
    tried item=alpha attempt=2                 Swarm: an assignment that was made
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.fakes.agent_script import (
    Body,
    MadeCall,
    ScriptedCall,
    ScriptedReply,
    Transcript,
    text_of,
)
from tests.fakes.agent_worlds import END, pick

_ENTRY = re.compile(r"key=(\w+)\s+number=(\d+)\s+next=(\w+)")
_SO_FAR = re.compile(r"sum=(\d+)((?:\s+next=\w+)+)")
_NEXT = re.compile(r"next=(\w+)")
_START = re.compile(r"start=(\w+)")
_ITEMS = re.compile(r"^items:\s*(.+)$", re.MULTILINE)
_ITEM = re.compile(r"\bitem=([\w-]+)")
_VALUE = re.compile(
    r"\bitem\"?\s*[=:]\s*\"?([\w-]+)\"?[,\s]+(?:\"?part\"?\s*[=:]\s*(\d+)[,\s]+)?"
    r"\"?value\"?\s*[=:]\s*(\d+)"
)
_CREATED = re.compile(r"created=([\w-]+)")
_ATTEMPT = re.compile(r"item=([\w-]+) attempt=(\d+)")
_TRIED = re.compile(r"tried item=([\w-]+) attempt=(\d+)")
_ORDER = re.compile(r"CALL ([\w-]+) (?=\{)")


@dataclass(frozen=True, kw_only=True)
class LedgerWalk:
    """Follows the chains of a Ledger by `lookup`, and answers with the sum of the numbers it was sent."""

    several: float = 0.0
    """Share of turns that look up the heads of all chains at once; the others look up one."""

    def reply(self, body: Body) -> ScriptedReply:
        sent = Transcript(body)
        total, heads = self._found(sent)
        done = bool(heads) and all(head == END for head in heads)
        if sent.is_summary:
            following = " ".join(f"next={head}" for head in heads)
            return sent.answer(f"so far: sum={total} {following}", {"sum": total})
        if not heads:
            return sent.answer("I have no key to start from.", {"sum": 0, "complete": False})
        if done or "lookup" not in sent.tools:
            text = f"The sum is {total}." if done else f"The sum is {total} until now."
            return sent.answer(text, {"sum": total, "complete": done})
        still = [head for head in heads if head != END]
        if pick("several", body["messages"]) % 1000 >= self.several * 1000:
            still = still[:1]
        return ScriptedReply(
            reasoning=f"The sum is {total} until now; next is {', '.join(still)}.",
            calls=[ScriptedCall("lookup", {"key": head}) for head in still],
        )

    def _found(self, sent: Transcript) -> tuple[int, list[str]]:
        """Return the sum and the heads of the chains, from the furthest summary on."""
        entries = {
            key: (int(number), following)
            for text in sent.results
            for key, number, following in _ENTRY.findall(text)
        }
        # Numbers are positive, so the largest sum is the furthest.
        known = max(_SO_FAR.findall(sent.notes), key=lambda pair: int(pair[0]), default=None)
        total = int(known[0]) if known else 0
        heads = _NEXT.findall(known[1]) if known else _START.findall(sent.asked)
        for lane, head in enumerate(heads):
            while head in entries:
                number, head = entries.pop(head)
                total += number
            heads[lane] = head
        return total, heads


class _Values:
    """The values of items as a body tells them."""

    def __init__(self, sent: Transcript, parts: int) -> None:
        self.parts = parts
        self.known: dict[tuple[str, int], int] = {}
        for text in (sent.notes, *sent.results):
            for item, part, value in _VALUE.findall(text):
                self.known[item, int(part or 1)] = int(value)

    def of(self, item: str) -> int | None:
        """Return the sum of an item's parts; None where one is missing."""
        values = [self.known.get((item, part)) for part in range(1, self.parts + 1)]
        return None if None in values else sum(v for v in values if v is not None)

    def lines(self) -> str:
        return "\n".join(
            f"found item={item} part={part} value={value}"
            for (item, part), value in sorted(self.known.items())
        )


@dataclass(frozen=True, kw_only=True)
class WideSearch:
    """Probes all items of `items: a, b, c`, some per turn, and answers with a table of values."""

    per_turn: int = 1
    parts: int = 1
    """Probes per item."""
    max_tries: int = 3
    """Calls for one part that bring no value before the item is given up."""

    def reply(self, body: Body) -> ScriptedReply:
        sent = Transcript(body)
        values, items = _Values(sent, self.parts), _items(sent)
        if sent.is_summary:
            return sent.answer(values.lines() or "Nothing is found so far.")
        calls = self._missing(sent, values, items)
        if calls and "probe" in sent.tools:
            return ScriptedReply(calls=calls[: self.per_turn])
        return _table(sent, {item: values.of(item) for item in items})

    def _missing(
        self, sent: Transcript, values: _Values, items: Sequence[str]
    ) -> list[ScriptedCall]:
        wanted = [_probe(item, part, self.parts) for item in items for part in _range(self.parts)]
        return [
            call
            for call in wanted
            if (call.arguments["item"], call.arguments.get("part", 1)) not in values.known
            and _times(sent.calls, call) < self.max_tries
        ]


@dataclass(frozen=True, kw_only=True)
class Swarm:
    """Orchestrator and sub-agents in one model: the tools of a body say which of them is asked.

    With `assign_task` it creates roles and assigns `items: a, b, c` to them, one item a task; without, it
    is a sub-agent that probes the `item=a` of its prompt and answers `item=a value=12`.
    """

    width: int = 20
    """Most tasks that are assigned in one turn."""
    roles: Sequence[str] = ("prober",)
    parts: int = 1
    """Probes of each sub-agent."""
    fails: float = 0.0
    """Share of items whose first attempt ends in `item=a failed`."""
    max_attempts: int = 3
    seed: int = 0

    def reply(self, body: Body) -> ScriptedReply:
        sent = Transcript(body)
        if "assign_task" in sent.tools:
            return self._orchestrate(sent)
        if "probe" in sent.tools or not _ITEMS.search(sent.asked):
            return self._probe(sent)
        values = _Values(sent, 1)
        if sent.is_summary:
            return sent.answer("\n".join([values.lines(), *self._state(sent)]))
        return _table(sent, {item: values.of(item) for item in _items(sent)})

    def _orchestrate(self, sent: Transcript) -> ScriptedReply:
        there, items = self._created(sent), _items(sent)
        missing = [role for role in self.roles if role not in there]
        if missing:
            return ScriptedReply(calls=[_create(role) for role in missing])
        values, attempts = _Values(sent, 1), self._attempts(sent)
        open_items = [
            item
            for item in items
            if values.of(item) is None and attempts.get(item, 0) < self.max_attempts
        ]
        if not open_items:
            return _table(sent, {item: values.of(item) for item in items})
        return ScriptedReply(
            reasoning=f"{len(open_items)} of {len(items)} items are open.",
            calls=[
                self._assign(item, items.index(item), attempts.get(item, 0) + 1)
                for item in open_items[: self.width]
            ],
        )

    def _assign(self, item: str, number: int, attempt: int) -> ScriptedCall:
        prompt = f"Find the value of item={item} attempt={attempt}."
        role = self.roles[number % len(self.roles)]
        return ScriptedCall("assign_task", {"agent": role, "prompt": prompt})

    def _created(self, sent: Transcript) -> set[str]:
        """Return the roles that a summary names, or whose call is whole and brought no error."""
        names = {
            call.arguments["name"]
            for call, text in sent.answered
            if call.name == "create_subagent"
            and all(isinstance(call.arguments.get(key), str) for key in ("name", "system_prompt"))
            and not text.lower().startswith("error")
        }
        return names | set(_CREATED.findall(sent.notes))

    def _attempts(self, sent: Transcript) -> dict[str, int]:
        told = [
            found
            for call in sent.calls
            if call.name == "assign_task"
            for found in _ATTEMPT.findall(str(call.arguments.get("prompt")))
        ]
        highest: dict[str, int] = {}
        for item, attempt in [*told, *_TRIED.findall(sent.notes)]:
            highest[item] = max(highest.get(item, 0), int(attempt))
        return highest

    def _state(self, sent: Transcript) -> list[str]:
        return [
            *(f"created={role}" for role in sorted(self._created(sent))),
            *(f"tried item={i} attempt={n}" for i, n in sorted(self._attempts(sent).items())),
        ]

    def _probe(self, sent: Transcript) -> ScriptedReply:
        named = _ITEM.findall(sent.asked)
        if not named:
            return sent.answer("I was given no item.")
        item = (
            named[-1] if not _ATTEMPT.findall(sent.asked) else _ATTEMPT.findall(sent.asked)[-1][0]
        )
        values = _Values(sent, self.parts)
        if sent.is_summary:
            return sent.answer(values.lines() or "Nothing is found so far.")
        calls = WideSearch(parts=self.parts)._missing(sent, values, [item])
        if calls and "probe" in sent.tools:
            return ScriptedReply(calls=calls[:1])
        first = f"item={item} attempt=1" in sent.asked
        fails = first and pick("fails", self.seed, item) % 1000 < self.fails * 1000
        value = None if fails else values.of(item)
        if value is None:
            return sent.answer(f"item={item} failed", {"item": item, "failed": True})
        return sent.answer(f"item={item} value={value}", {"item": item, "value": value})


@dataclass(frozen=True, kw_only=True)
class Drifter:
    """Makes the same calls again and again, until a message behind its own names the goal anew."""

    goal: str
    """Text of the goal; a user or system message with it, after a turn of the model's, ends the drift."""
    calls: Sequence[ScriptedCall] = (ScriptedCall("lookup", {"key": "start"}),)
    """What it calls, in turn: one call for ever, or a round of several."""
    stops: bool = True
    """Whether it can be brought back; otherwise it calls as long as there are tools."""

    def reply(self, body: Body) -> ScriptedReply:
        sent = Transcript(body)
        call = self.calls[len(sent.calls) % len(self.calls)]
        if call.name in sent.tools and not (self.stops and self._is_back(sent)):
            return ScriptedReply(reasoning="I had better look once more.", calls=[call])
        if sent.is_summary:
            return sent.answer("Nothing is found so far.")
        done = self.stops and self._is_back(sent)
        text = "I am back at the goal." if done else "I have not come to an end."
        return sent.answer(text, {"complete": done, "num_calls": len(sent.calls)})

    def _is_back(self, sent: Transcript) -> bool:
        roles = [message["role"] for message in sent.messages]
        if "assistant" not in roles:
            return False
        later = sent.messages[roles.index("assistant") :]
        return any(m["role"] in {"user", "system"} and self.goal in text_of(m) for m in later)


@dataclass(frozen=True, kw_only=True)
class Injected:
    """Obeys whatever a document or a tool's description says: `CALL tool {json}` is called as it stands, once each."""

    first: Sequence[ScriptedCall] = ()
    """What it calls of its own accord, to come to the documents."""
    obeys_material: bool = True
    """Whether orders in user messages count, where documents may stand as well."""

    def reply(self, body: Body) -> ScriptedReply:
        sent = Transcript(body)
        roles = {"tool", "user"} if self.obeys_material else {"tool"}
        texts = [text_of(m) for m in sent.messages if m["role"] in roles]
        texts += [tool["function"]["description"] for tool in body.get("tools", ())]
        orders = [*self.first, *(order for text in texts for order in _orders(text))]
        left = [o for o in orders if not _times(sent.calls, o)]
        # Not only what is declared: a model that is led astray calls what it was told.
        if left and sent.tools:
            return ScriptedReply(reasoning="The document tells me to.", calls=[left[0]])
        return sent.answer("I did all that the documents said.", {"num_calls": len(sent.calls)})


def _orders(text: str) -> list[ScriptedCall]:
    found = []
    for match in _ORDER.finditer(text):
        try:
            arguments, _ = json.JSONDecoder().raw_decode(text, match.end())
        except ValueError:
            continue
        found.append(ScriptedCall(match[1], arguments))
    return found


def _items(sent: Transcript) -> list[str]:
    found = _ITEMS.findall(sent.asked)
    names = [name.strip(" .") for name in found[-1].split(",")] if found else []
    return [name for name in names if name]


def _range(parts: int) -> range:
    return range(1, parts + 1)


def _probe(item: str, part: int, parts: int) -> ScriptedCall:
    return ScriptedCall("probe", {"item": item} | ({"part": part} if parts > 1 else {}))


def _create(role: str) -> ScriptedCall:
    system = f"You are a {role}. Probe the one item of your task and report its value."
    return ScriptedCall("create_subagent", {"name": role, "system_prompt": system})


def _times(calls: Sequence[MadeCall], wanted: ScriptedCall) -> int:
    return sum(c.name == wanted.name and c.arguments == wanted.arguments for c in calls)


def _table(sent: Transcript, values: Mapping[str, int | None]) -> ScriptedReply:
    rows: list[dict[str, Any]] = [
        {"item": item, "value": value} for item, value in values.items() if value is not None
    ]
    text = "\n".join(f"item={item} value={value}" for item, value in values.items())
    facts = {"complete": None not in values.values(), "sum": sum(row["value"] for row in rows)}
    return sent.answer(text, facts, rows)
