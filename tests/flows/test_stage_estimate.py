import pytest

from flows.stage_estimate import QUOTED_TOKENS, tree


@pytest.mark.parametrize(
    ("num_answers", "room", "requests", "tokens"),
    [
        (0, 400, 1, 0),
        (10, 400, 1, 400),
        (11, 400, 3, 440 + 80),
        (100, 400, 11, 4000 + 400),
        (101, 400, 14, 4040 + 440 + 80),
    ],
)
def test_answers_are_put_together_in_levels_when_they_exceed_the_room(
    num_answers, room, requests, tokens
):
    assert tree(num_answers, room) == (requests, tokens)


def test_tree_ends_when_there_is_hardly_room():
    requests, tokens = tree(1000, 1)
    assert requests < 1010
    assert tokens < 2.1 * 1000 * QUOTED_TOKENS
