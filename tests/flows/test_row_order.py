"""The order of rows and fields: complete, the same each time, and never worse than what is given."""

from __future__ import annotations

import itertools
import random

import pytest

from flows.run.row_order import Fields, given_order, shared_order, text_bytes


def _table(seed: int, num_rows: int = 60) -> list[Fields]:
    """Return rows with repeated, dependent and own values; some cells are not there."""
    rng = random.Random(seed)
    depth = rng.randint(1, 5)
    rows = []
    for number in range(num_rows):
        port = rng.randrange(1 + seed % 7)
        fields = [("id", str(number)), ("port", f"P{port}"), ("place", f"Airport {port} of a town")]
        fields += [(f"c{column}", str(rng.randrange(3 + column))) for column in range(depth)]
        rng.shuffle(fields)
        rows.append([field for field in fields if rng.random() < 0.9])
    return rows


def _in_order(rows: list[Fields], order) -> list[list[tuple[str, str]]]:
    return [[rows[place][at] for at in order.fields[place]] for place in order.rows]


def _shared(shown: list[list[tuple[str, str]]], weigh=text_bytes) -> int:
    """Return what rows begin with as the row before, counted apart from the code under test."""
    total = 0
    for before, own in itertools.pairwise(shown):
        for one, other in zip(before, own, strict=False):
            if one != other:
                break
            total += weigh(*one)
    return total


SEEDS = range(40)


@pytest.mark.parametrize("max_visits", [0, 50, 10**9])
@pytest.mark.parametrize("seed", SEEDS)
def test_rows_and_fields_are_complete_and_share_no_less_than_given_or_sorted(seed, max_visits):
    rows = _table(seed)
    order = shared_order(rows, max_visits=max_visits)
    assert sorted(order.rows) == list(range(len(rows)))
    for row, places in zip(rows, order.fields, strict=True):
        assert sorted(places) == list(range(len(row)))
    shown = _in_order(rows, order)
    given = [list(row) for row in rows]
    assert _shared(shown) >= max(_shared(given), _shared(sorted(given)))
    assert shared_order(rows, max_visits=max_visits) == order


@pytest.mark.parametrize("seed", SEEDS)
def test_number_of_shared_fields_is_what_the_rows_begin_with(seed):
    rows = _table(seed)
    for order in (shared_order(rows), given_order(rows)):
        shown = dict(zip(order.rows, _in_order(rows, order), strict=True))
        before: list[tuple[str, str]] = []
        for place in order.rows:
            num = order.num_shared[place]
            assert shown[place][:num] == before[:num]
            assert shown[place][num : num + 1] != before[num : num + 1] or num == len(before)
            before = shown[place]


def test_rows_are_grouped_by_the_column_that_saves_most_when_values_repeat():
    # As given, every row begins with a value of its own.
    rows = [
        [("id", str(n)), ("lane", "ab"[n % 2]), ("text", "long words " * (n % 3))]
        for n in range(12)
    ]
    order = shared_order(rows)
    shown = _in_order(rows, order)
    assert all(row[-1][0] == "id" for row in shown)
    assert [row[0] for row in shown] == sorted(row[0] for row in shown)
    assert _shared([list(row) for row in rows]) == 0
    # The lane is shown anew at most twice for each of three texts.
    assert _shared(shown) >= 9 * text_bytes("text", "long words ") + 6 * text_bytes("lane", "a")


def test_groups_have_orders_of_fields_of_their_own_when_they_share_other_columns():
    rows = [[("a", f"own {n}"), ("b", "the same in these rows")] for n in range(5)]
    rows += [[("a", "the same in those rows"), ("b", f"own {n + 5}")] for n in range(5)]
    shown = _in_order(rows, shared_order(rows))
    assert sorted(row[0][0] for row in shown) == ["a"] * 5 + ["b"] * 5
    assert _shared(shown) == 8 * text_bytes("a", "the same in these rows")


def test_column_with_what_follows_from_it_goes_first_when_one_value_alone_is_longer():
    codes = [n % 4 for n in range(32)]
    rows = [
        [
            ("note", f"{n % 8:06d}"),
            ("code", str(code)),
            ("name", f"Name{code}"),
            ("town", f"Town{code}"),
        ]
        for n, code in enumerate(codes)
    ]
    shown = _in_order(rows, shared_order(rows))
    assert _shared(shown) >= 28 * sum(text_bytes(*rows[0][at]) for at in (1, 2, 3))


def test_order_is_by_the_weights_when_they_are_given():
    rows = [[("a", str(n % 2)), ("b", str(n // 2 % 2)), ("id", str(n))] for n in range(8)]
    for weights in ({"a": 9, "b": 1}, {"a": 1, "b": 9}):
        order = shared_order(rows, weigh=lambda name, _, weights=weights: weights.get(name, 1))
        assert {row[0][0] for row in _in_order(rows, order)} == {
            max(weights, key=weights.__getitem__)
        }


@pytest.mark.parametrize("rows", [[], [[]], [[], []], [[("a", "1")]], [[("a", "1")], []]])
def test_order_is_complete_when_there_is_hardly_a_table(rows):
    order = shared_order(rows)
    assert sorted(order.rows) == list(range(len(rows)))
    assert len(order.fields) == len(order.num_shared) == len(rows)


def test_wide_rows_are_put_in_order_when_there_are_more_columns_than_calls_may_nest():
    rows = [[(f"c{column}", "x" * (row <= column)) for column in range(1200)] for row in range(4)]
    assert sorted(shared_order(rows).rows) == [0, 1, 2, 3]
