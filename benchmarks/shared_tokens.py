"""What prompts begin with in common, counted with a tokenizer, and what planning their order takes."""

from __future__ import annotations

import csv
import itertools
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from connectors.readers.table_fields import Field, fields_text
from flows.run.row_order import RowOrder, given_order, num_alike, shared_order

_NUM_COMPARED = 500
"""Rows that are compared with all others."""


def count_rows(
    table: Path, counted: int, planned: int, tokenizer: Tokenizer
) -> dict[str, dict[str, float]]:
    """Return what rows of a CSV file leave to compute, by arm.

    Args:
        table: The file, with a header.
        counted: How many rows to count, from the first on.
        planned: How many rows to plan, against the clock.
        tokenizer: Of the model.
    """
    with table.open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    rows = [[(n, c) for n, c in zip(header, line, strict=True) if c] for line in lines]
    started = time.process_time()
    shared_order(rows[:planned])
    planning_s = time.process_time() - started
    rows = rows[:counted]
    given = given_order(rows)
    places = list(range(len(rows)))
    random.Random(0).shuffle(places)
    shuffled = RowOrder(rows=tuple(places), fields=given.fields, num_shared=given.num_shared)
    arms = {"planned": shared_order(rows), "given": given, "shuffled": shuffled}
    found = {}
    for arm, order in arms.items():
        prompts = _prompts(rows, order, tokenizer)
        found[arm] = {
            "prompt": float(sum(map(len, prompts))),
            "consecutive": float(consecutive(prompts, 1)),
            "consecutive, blocks of 16": float(consecutive(prompts, 16)),
            "unique one by one": float(unique(prompts, 1)),
        }

    found["planned"]["least"] = float(least(rows, tokenizer))
    found["planned"] |= {"rows planned": len(lines[:planned]), "CPU s to plan": planning_s}
    return found


def _prompts(
    rows: Sequence[Sequence[Field]], order: RowOrder, tokenizer: Tokenizer
) -> list[list[int]]:
    texts = [
        "[L1] " + fields_text([rows[place][at] for at in order.fields[place]])
        for place in order.rows
    ]
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def unique(prompts: Sequence[list[int]], block: int) -> int:
    """Return the tokens that a cache without end leaves to compute, where it keeps whole blocks."""
    return consecutive(sorted(prompts), block)


def least(rows: Sequence[Sequence[Field]], tokenizer: Tokenizer) -> int:
    """Return what no order of rows and fields can go below, by the tokens of fields.

    A row begins at most with all fields that it has in common with the row most like it, and a part of one. Not all rows can, so this
    is less than what the best order leaves; of many rows some are looked at, at equal distances.
    """
    pairs: dict[Field, int] = {}
    columns: dict[str, int] = {}
    for name, _ in itertools.chain.from_iterable(rows):
        columns.setdefault(name, len(columns))
    table = np.full((len(rows), len(columns)), -1)
    for place, row in enumerate(rows):
        for one in row:
            table[place, columns[one[0]]] = pairs.setdefault(one, len(pairs))
    texts = [f"{fields_text([one])} |" for one in pairs]
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    # Of what a row does not have, nothing is shared.
    weights = np.array([*map(len, encoded), 0])
    left, step = 0, -(-len(rows) // _NUM_COMPARED)
    for place in range(0, len(rows), step):
        is_same, own = table == table[place], weights[table[place]]
        # Behind what is the same, most of one more field: its name, and how its value begins.
        alike = np.where(is_same, own, 0).sum(axis=1) + np.where(is_same, 0, own).max(axis=1)
        alike[place] = 0
        left += int(own.sum() - alike.max(initial=0))
    return left * len(rows) // len(range(0, len(rows), step))


def consecutive(prompts: Sequence[Sequence[int]], block: int) -> int:
    """Return the tokens that a cache of one prompt leaves to compute, in this order."""
    total = sum(map(len, prompts))
    for before, own in itertools.pairwise(prompts):
        total -= num_alike(before, own) // block * block
    return total
