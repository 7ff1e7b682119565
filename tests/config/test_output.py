import pytest

from config.output import check_output

LABEL = {"type": "string", "format": "segment-label"}
TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"uri": TEXT}, "output field 'uri' is a column of every record; rename it"),
        ({"Uri": TEXT}, "output field 'Uri' is a column of every record; rename it"),
        ({"stage": TEXT}, "output field 'stage' is a column of every record; rename it"),
        ({"a": TEXT, "A": TEXT}, "'a' and 'A' differ in case only"),
        ({"a": {"$ref": "#/$defs/b"}}, r"\$ref '#/\$defs/b' leads nowhere"),
        ({"a": {"anyOf": [LABEL, {"type": "null"}]}}, "stands under properties or items"),
        ({"a": {"format": "segment-label"}}, "is of type string"),
        ({"a": {**LABEL, "type": ["string", "integer"]}}, "is of type string"),
        ({"a": {"type": "nonsense"}}, "output is not a JSON Schema"),
    ],
)
def test_output_is_refused_with_its_reason_when_it_makes_no_table(properties, message):
    with pytest.raises(ValueError, match=message):
        check_output({"type": "object", "properties": properties})


def test_labels_are_taken_where_they_are_bound():
    inner = {"type": "object", "properties": {"line": {**LABEL, "type": ["string", "null"]}}}
    check_output({
        "type": "object",
        "properties": {"title": LABEL, "facts": {"type": "array", "items": inner}},
    })
