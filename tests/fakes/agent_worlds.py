"""What the scripted models ask: a ledger of chained keys, and a set of items with values.

Both are tool boxes as the engine takes them (engine.tool.ToolBox), and count what was called.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.tool import Aside, ToolAnswer, ToolError, ToolSpec

TABLE = {
    "type": "object",
    "properties": {
        "rows": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"item": {"type": "string"}, "value": {"type": "integer"}},
                "required": ["item", "value"],
            },
        }
    },
    "required": ["rows"],
}
"""Schema of an answer with a value for each item."""

END = "END"
"""The next key of a chain's last entry."""

LOOKUP = ToolSpec(
    name="lookup",
    description="Returns the number of one key, and the key that comes next.",
    parameters={
        "type": "object",
        "properties": {"key": {"type": "string", "description": "The key, as it was given."}},
        "required": ["key"],
        "additionalProperties": False,
    },
)
PROBE = ToolSpec(
    name="probe",
    description="Returns the value of one item, or of one part of it.",
    parameters={
        "type": "object",
        "properties": {
            "item": {"type": "string", "description": "The item, as it was given."},
            "part": {"type": "integer", "minimum": 1, "description": "Which part; 1 is the first."},
        },
        "required": ["item"],
        "additionalProperties": False,
    },
)


def declared(*specs: ToolSpec) -> list[dict[str, Any]]:
    """Return tools as a body names them."""
    return [
        {
            "type": "function",
            "function": {
                "name": spec.name,
                "description": spec.description,
                "parameters": dict(spec.parameters),
            },
        }
        for spec in specs
    ]


def pick(*parts: object) -> int:
    """Return a large number that follows from the parts."""
    text = json.dumps(parts, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class _World:
    """One tool, with a count of its calls."""

    spec: ToolSpec

    def __init__(self, delay_s: float, log: Path | None) -> None:
        self.called: Counter[str] = Counter()
        """How often each call was made, by its arguments as JSON."""
        self._delay_s = delay_s
        self._log = log

    @property
    def specs(self) -> Sequence[ToolSpec]:
        return (self.spec,)

    async def call(self, name: str, arguments: Mapping[str, Any], aside: Aside) -> ToolAnswer:
        if name != self.spec.name:
            raise ToolError(f"There is no tool {name!r}; call {self.spec.name!r}.")
        await asyncio.sleep(self._delay_s)
        return ToolAnswer(text=self.told(arguments))

    def told(self, arguments: Mapping[str, Any]) -> str:
        """Return what the tool gives, and count the call."""
        key = json.dumps(dict(arguments), sort_keys=True)
        self.called[key] += 1
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(key + "\n")
        return self._give(arguments)

    def _give(self, arguments: Mapping[str, Any]) -> str:
        raise NotImplementedError


class Ledger(_World):
    """Chains of keys, each with a number; only the entry before a key names it."""

    spec = LOOKUP

    def __init__(
        self,
        *,
        num_calls: int = 300,
        lanes: int = 1,
        seed: int = 0,
        delay_s: float = 0.0,
        log: Path | None = None,
        padding: int = 0,
    ) -> None:
        """Make the entries.

        Args:
            num_calls: Entries in all, so calls that are needed.
            lanes: Chains they are dealt to; the model may follow several in one turn.
            seed: Other keys and numbers.
            delay_s: Seconds that a call takes.
            log: File that gets the arguments of every call as a line.
            padding: Characters that every result has on top, to fill the context.
        """
        super().__init__(delay_s, log)
        self.starts: list[str] = []
        self.entries: dict[str, tuple[int, str]] = {}
        self._padding = padding
        for lane in range(lanes):
            length = len(range(lane, num_calls, lanes))
            keys = [f"k{pick(seed, lane, i) % 16**10:010x}" for i in range(length)]
            self.starts += keys[:1]
            for i, key in enumerate(keys):
                number = 1 + pick(seed, key) % 999
                self.entries[key] = (number, keys[i + 1] if i + 1 < length else END)
        self.total = sum(number for number, _ in self.entries.values())

    @property
    def question(self) -> str:
        starts = " ".join(f"start={key}" for key in self.starts)
        return (
            f"Look up each key with lookup, then the key it names, until {END}: {starts}."
            " What is the sum of all numbers?"
        )

    def _give(self, arguments: Mapping[str, Any]) -> str:
        key = arguments["key"]
        if key not in self.entries:
            raise ToolError(f"There is no key {key!r}; take one that a result named as next.")
        number, following = self.entries[key]
        line = f"key={key} number={number} next={following}"
        return line + ("\n" + "x" * self._padding if self._padding else "")


class Items(_World):
    """Items with a value each, given in parts."""

    spec = PROBE

    def __init__(
        self,
        *,
        num_items: int = 10,
        parts: int = 1,
        seed: int = 0,
        delay_s: float = 0.0,
        log: Path | None = None,
    ) -> None:
        """Make the items: as many parts each as `parts`, whose sum is the value.

        Args:
            num_items: How many there are.
            parts: Parts of each, so probes that an item needs.
            seed: Other names and values.
            delay_s: Seconds that a call takes.
            log: File that gets the arguments of every call as a line.
        """
        super().__init__(delay_s, log)
        self.parts = {
            f"item{i:03d}-{pick(seed, i) % 16**4:04x}": [
                1 + pick(seed, i, part) % 999 for part in range(parts)
            ]
            for i in range(num_items)
        }
        self.values = {name: sum(values) for name, values in self.parts.items()}

    @property
    def question(self) -> str:
        return f"Find the value of every item.\nitems: {', '.join(self.parts)}"

    def _give(self, arguments: Mapping[str, Any]) -> str:
        item, part = arguments["item"], arguments.get("part", 1)
        if item not in self.parts or part > len(self.parts[item]):
            raise ToolError(f"There is no part {part} of an item {item!r}.")
        return f"item={item} part={part} value={self.parts[item][part - 1]}"
