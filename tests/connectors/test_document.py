import pickle
from dataclasses import MISSING, fields

from connectors.document import Content, Media, Segment, Span, TableFile, Unit

SPAN = Span(
    page=1, bbox=(0.0, 0.1, 0.2, 0.3), sheet="S", cells="A1", t0=0.5, t1=1.5, char_start=2,
    char_end=3,
)  # fmt: skip
SEGMENT = Segment(
    kind="table", text="x", span=SPAN, tier="ocr", media="p.jpg", is_rest=True, label="L1"
)
CONTENT = Content(
    media_type="text/csv",
    reader="r/1",
    units=(Unit(name="rows", status="failed", error="why"),),
    segments=(SEGMENT, Segment(kind="heading", text="y", span=Span())),
    media=(Media(name="p.jpg", width_px=1, height_px=2),),
    tables=(TableFile(name="t", sheet="S", cells="A1", title="T", columns=("row",), num_rows=1),),
    metadata=(("a", "b"),),
)


def test_content_is_the_same_when_it_has_crossed_a_process_border():
    # Every field has a value of its own, so that one added later is not forgotten on the way.
    for value in (SPAN, SEGMENT, CONTENT):
        for field in fields(value):
            assert field.default is MISSING or getattr(value, field.name) != field.default
    assert pickle.loads(pickle.dumps(CONTENT)) == CONTENT
