"""What a model is told of the answer's schema where no grammar holds it to that."""

import pytest

from engine.prompt import shown_schema


def schema_of(choices):
    return {"type": "object", "properties": {"code": {"type": "string", "enum": choices}}}


@pytest.mark.parametrize(
    "choices",
    [
        [f"A{number}" for number in range(40)],
        [f"L{number}" for number in range(16)],
        [*(f"L{number}" for number in range(40)), "none"],
    ],
)
def test_choices_are_all_shown_when_they_stand_nowhere_else(choices):
    assert all(f'"{choice}"' in shown_schema(schema_of(choices)) for choice in choices)


@pytest.mark.parametrize("more", [[], [None]])
def test_labels_of_many_lines_are_put_in_words(more):
    shown = shown_schema(schema_of([*(f"L{number}" for number in range(1, 400)), *more]))
    assert "one label of a line, such as L1" in shown
    assert "L2" not in shown
