import jsonschema
import pytest

from connectors.document import Segment, Span
from flows.run.labels import Binding, Line, Origin, bind_labels, resolve_labels

LABEL = {"type": "string", "format": "segment-label"}
SCHEMA = {
    "type": "object",
    "properties": {
        "title": LABEL,
        "topic": {"type": "string"},
        "facts": {"type": "array", "items": {"type": "object", "properties": {"line": LABEL}}},
    },
    "required": ["title"],
}
SEGMENTS = {
    f"L{i}": Segment(kind="paragraph", text=f"line {i}", span=Span(page=i), label=f"L{i}")
    for i in (1, 2)
}
LINES_SHOWN = [
    Line(segment=segment, origins=(Origin(path="a.txt", document_key="k", segment=segment),))
    for segment in SEGMENTS.values()
]


def test_only_shown_labels_validate_when_bound():
    bound = bind_labels(SCHEMA, list(SEGMENTS.values()))
    jsonschema.validate({"title": "L2", "facts": [{"line": "L1"}]}, bound)
    for wrong in ({"title": "L3"}, {"title": "L1", "facts": [{"line": "line 1"}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, bound)


def test_format_of_decimals_is_not_sent_wherever_it_stands():
    decimal = {"type": "string", "format": "decimal"}
    places = {
        "a": {"anyOf": [decimal, {"type": "null"}]},
        "b": {"type": "array", "items": {"oneOf": [True, {"allOf": [decimal]}]}},
        "c": {"$ref": "#/$defs/sum"},
    }
    schema = {"properties": places, "$defs": {"sum": {"properties": {"net": decimal}}}}
    assert repr(schema).count("'format': 'decimal'") == 3
    bound = bind_labels(schema, list(SEGMENTS.values()))
    assert repr(bound) == repr(schema).replace(", 'format': 'decimal'", "")


def test_bindings_of_one_schema_stay_apart():
    binding = Binding({**SCHEMA, "anyOf": [{"properties": {"title": LABEL}}, {}]})
    first, second = (binding.to([segment]) for segment in SEGMENTS.values())
    for bound, label in ((first, "L1"), (second, "L2")):
        title, facts = bound["properties"]["title"], bound["properties"]["facts"]
        assert list(bound["properties"]) == ["title", "topic", "facts"]
        assert title == {"type": "string", "enum": [label]}
        assert facts["items"]["properties"]["line"] == bound["anyOf"][0]["properties"]["title"]
        assert facts["items"]["properties"]["line"]["enum"] == [label]


def test_schema_is_unchanged_when_bound():
    before = repr(SCHEMA)
    bind_labels(SCHEMA, list(SEGMENTS.values()))
    assert repr(SCHEMA) == before


def test_labels_become_text_with_citations_when_resolved():
    answer = {"title": "L2", "topic": "L1", "facts": [{"line": "L1"}]}
    found = resolve_labels(SCHEMA, answer, LINES_SHOWN)
    assert found.output == {"title": "line 2", "topic": "L1", "facts": [{"line": "line 1"}]}
    assert [(c.field, c.origin.segment.span.page) for c in found.citations] == [
        ("title", 2),
        ("facts[0].line", 1),
    ]


LINES = [
    Segment(kind=kind, text=text, span=Span(page=1), label=f"L{number}")
    for number, (kind, text) in enumerate(
        [
            ("heading", "A long heading of six words"),
            ("paragraph", "Short."),
            ("paragraph", "The crane stopped at noon."),
        ],
        1,
    )
]


@pytest.mark.parametrize(
    ("keywords", "labels"),
    [
        ({}, ["L1", "L2", "L3"]),
        ({"segmentKinds": ["paragraph"]}, ["L2", "L3"]),
        ({"minWords": 4}, ["L1", "L3"]),
        ({"segmentKinds": ["paragraph"], "minWords": 4}, ["L3"]),
        ({"segmentKinds": ["table"]}, ["L1", "L2", "L3"]),
    ],
)
def test_choice_is_narrowed_when_the_schema_says_so(keywords, labels):
    assert bind_labels({**LABEL, **keywords}, LINES) == {"type": "string", "enum": labels}
