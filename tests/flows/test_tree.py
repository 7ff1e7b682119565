import random

import pytest

from flows.run.tree import cut, marks_of


def tree(names, tokens, room):
    """Return the runs as tuples of names."""
    return [tuple(names[i] for i in run) for run in cut(marks_of(names), tokens, room)]


@pytest.fixture
def names():
    return [f"doc-{number:05d}" for number in range(1000)]


def test_every_input_is_in_one_run_in_order_when_cut(names):
    pick = random.Random(1)
    tokens = [pick.randrange(10, 100) for _ in names]
    runs = tree(names, tokens, 2000)
    assert [name for run in runs for name in run] == names
    size = dict(zip(names, tokens, strict=True))
    assert all(sum(size[name] for name in run) <= 2000 for run in runs)


def test_runs_are_balanced_when_cut(names):
    runs = tree(names, [50] * len(names), 2000)
    assert min(map(len, runs)) >= 40 / 4
    assert sum(map(len, runs)) / len(runs) > 40 / 2


def test_one_run_is_made_when_all_fits(names):
    assert tree(names, [1] * len(names), 1000) == [tuple(names)]
    assert cut([], [], 10) == []


def test_input_that_exceeds_the_room_is_a_run_of_its_own(names):
    runs = tree(names[:5], [5, 5, 500, 5, 5], 20)
    assert (names[2],) in runs


def test_other_runs_stay_when_one_input_grows(names):
    tokens = [50] * len(names)
    before = set(tree(names, tokens, 2000))
    for number in range(0, len(names), 37):
        grown = [*tokens[:number], 1500, *tokens[number + 1 :]]
        (divided,) = (run for run in before if names[number] in run)
        changed = set(tree(names, grown, 2000)) - before
        # Its own run is divided further where it has grown too large; no other one is touched.
        assert sorted(name for run in changed for name in run) in ([*divided], [])


def test_most_runs_stay_when_an_input_is_added_or_removed(names):
    tokens = [50] * len(names)
    before = set(tree(names, tokens, 2000))
    lost = 0
    for number in range(0, len(names), 50):
        fewer = [*names[:number], *names[number + 1 :]]
        lost += len(set(tree(fewer, tokens[1:], 2000)) - before)
        more = [*names[:number], f"doc-{number:05d}b", *names[number:]]
        lost += len(set(tree(more, [*tokens, 50], 2000)) - before)
    assert lost / 40 < len(before) / 4


def test_million_inputs_are_cut_in_bounded_time():
    marks = marks_of(map(str, range(1_000_000)))
    runs = cut(marks, [50] * 1_000_000, 200_000)
    assert sum(map(len, runs)) == 1_000_000
    assert len(runs) < 1_000_000 * 50 / 200_000 * 3
