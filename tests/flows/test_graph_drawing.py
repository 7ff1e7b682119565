"""Drawings are read back: what a person would see must be what the pipeline says."""

import random
import re
from xml.etree import ElementTree as ET

import pytest

from config.pipeline import PipelineConfig
from flows.graph_drawing import draw_svg, draw_text, graph_json, graph_of

OUTPUT = {"type": "object", "properties": {"a": {"type": "string"}}}
SVG = "{http://www.w3.org/2000/svg}"


def stage(name, **keys):
    return {"name": name, "prompt": "What?", "output": OUTPUT, **keys}


def pipeline(*stages, source="s3://lake/in"):
    return PipelineConfig.model_validate({"name": "demo", "source": source, "stages": stages})


def computed(name, needs, **keys):
    sql = f"SELECT a FROM {needs[0]}"
    return {
        "name": name, "over": "corpus", "needs": needs, "compute": sql, "output": OUTPUT, **keys
    }  # fmt: skip


def random_pipeline(seed, num_stages=12):
    rng = random.Random(seed)
    stages = []
    for number in range(num_stages):
        name = f"s{number}"
        over = rng.choice(["chunk", "chunk", "rows", "document", "corpus"])
        grains = {"chunk": ["chunk"], "rows": ["chunk", "rows"]}
        usable = [
            other["name"]
            for other in stages
            if other["over"] in grains.get(over, ["chunk", "rows", "document"])
            or (over == "corpus" and other["over"] == "corpus")
        ]
        needs = rng.sample(usable, min(len(usable), rng.randint(0, 4)))
        if over in {"document", "corpus"} and not needs:
            over, needs = "chunk", []
        if over == "corpus" and rng.random() < 0.5:
            tables = {f"t{k}": f"lists/{k}.csv" for k in range(rng.randint(0, 2))}
            stages.append(computed(name, needs, tables=tables))
        else:
            stages.append(stage(name, over=over, needs=needs))
    return pipeline(*stages)


def read_back(text):
    """Return the edges of a drawing as names, followed along its lines."""
    rows = text.split("\n")
    width = max(map(len, rows))
    rows = [row.ljust(width) for row in rows]
    edges = set()
    for y, row in enumerate(rows):
        if "▶" in row:
            x = row.index("▶") - 1
            while row[x] in "─┼":
                x -= 1
            assert row[x] in "├╰", row
            above = y - 1
            while rows[above][x] in "│├┼":
                above -= 1
            assert rows[above][x] == "╭", rows[above]
            edges.add((giver(rows, above), box_name(rows, y)))
    return edges


def giver(rows, y):
    line = re.search(r"─ (source|table)  (\S+)", rows[y])
    return line[2] if line else box_name(rows, y)


def box_name(rows, y):
    while "┌" not in rows[y - 1]:
        y -= 1
    return rows[y][rows[y - 1].index("┌") + 2 :].split()[0]


def names(config):
    graph = graph_of(config)
    name = {node.id: node.name for node in graph.nodes}
    return {(name[source], name[target]) for source, target in graph.edges}


@pytest.mark.parametrize("seed", range(40))
def test_text_says_what_feeds_what_when_it_is_read_back(seed):
    config = random_pipeline(seed)
    text = draw_text(config)
    assert read_back(text) == names(config)
    assert text == draw_text(config)
    assert max(map(len, text.split("\n"))) <= 110


def test_text_is_as_it_looks_when_the_graph_is_small():
    config = pipeline(
        stage("kind"),
        stage("invoice", needs=["kind"], mode="thinking", when="upstream.kind.a == 'x'"),
        computed("sums", ["invoice"], tables={"t": "lists/a.csv"}),
    )
    assert draw_text(config).split("\n") == [
        "╭──── source  s3://lake/in",
        "│    ┌─────────────────┐",
        "├───▶│ kind            │",
        "│ ╭──┤ chunk · instant │",
        "│ │  └─────────────────┘",
        "│ │  ┌─────────────────────────────┐",
        "│ ╰─▶│ invoice                     │",
        "╰───▶│ chunk · thinking            │",
        "╭────┤ when upstream.kind.a == 'x' │",
        "│    └─────────────────────────────┘",
        "│ ╭── table  lists/a.csv",
        "│ │  ┌───────────────────────┐",
        "│ ╰─▶│ sums                  │",
        "╰───▶│ corpus · SQL          │",
        "     │ SELECT a FROM invoice │",
        "     └───────────────────────┘",
    ]


def test_source_is_shown_without_its_password_when_it_has_one():
    config = pipeline(stage("kind"), source="sftp://me:canary@host/in")
    for drawn in (draw_text(config), draw_svg(config), str(graph_json(config))):
        assert "sftp://host/in" in drawn
        assert "canary" not in drawn


def test_text_stays_in_its_line_when_a_condition_holds_marks():
    when = "upstream.kind.a == '\u202e\x1b[31m\n" + "漢" * 90 + "'"
    drawn = draw_text(pipeline(stage("kind"), stage("b", needs=["kind"], when=when)))
    assert "\x1b" not in drawn
    assert "\u202e" not in drawn
    assert "…" in drawn


def boxes(root):
    found = {}
    for group in root.iter(f"{SVG}g"):
        rect, title = group.find(f"{SVG}rect"), group.find(f"{SVG}title")
        x, y, width, height = (float(rect.get(k)) for k in ("x", "y", "width", "height"))
        found[title.text.split("\n")[0]] = (x, y, x + width, y + height)
    return found


def points(path):
    return [float(n) for n in re.findall(r"[\d.]+", path.get("d"))]


@pytest.mark.parametrize("seed", range(40))
def test_svg_says_what_feeds_what_when_it_is_read_back(seed):
    config = random_pipeline(seed)
    text = draw_svg(config)
    assert text == draw_svg(config)
    root = ET.fromstring(text)
    placed = boxes(root)
    ends = set()
    for path in root.iter(f"{SVG}path"):
        if "hg-edge" in (path.get("class") or ""):
            numbers = points(path)
            first, last = tuple(numbers[:2]), tuple(numbers[-2:])
            ends.add((touched(placed, first, side=2), touched(placed, last, side=0)))
    assert ends == names(config)
    width, height = float(root.get("width")), float(root.get("height"))
    for name, (left, top, right, bottom) in placed.items():
        assert 0 < left < right < width
        assert 0 < top < bottom < height
        for other, (left2, top2, right2, bottom2) in placed.items():
            apart = right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top
            assert name == other or apart


def touched(placed, point, side):
    (name,) = [
        name
        for name, box in placed.items()
        if abs(box[side] - point[0]) < 0.2 and box[1] <= point[1] <= box[3]
    ]
    return name


@pytest.mark.parametrize("seed", range(40))
def test_arrows_pass_boxes_by_when_they_cross_a_layer(seed):
    root = ET.fromstring(draw_svg(random_pipeline(seed)))
    placed = boxes(root)
    for path in root.iter(f"{SVG}path"):
        for x0, y, x1 in re.findall(r" ([\d.]+) ([\d.]+)H([\d.]+)", path.get("d")):
            for left, top, right, bottom in placed.values():
                outside = not top < float(y) < bottom
                assert outside or float(x1) <= left or float(x0) >= right


def test_svg_runs_nothing_when_texts_hold_markup():
    when = "upstream.kind.a == '</title><script>alert(1)</script>&\\x00'"
    text = draw_svg(
        pipeline(stage("kind"), stage("b", needs=["kind"], when=when), source="<b>&\x01")
    )
    root = ET.fromstring(text)
    assert not list(root.iter(f"{SVG}script"))
    attributes = {name for element in root.iter() for name in element.attrib}
    assert not {name for name in attributes if name.startswith("on") or "href" in name}
    assert "@import" not in text
    assert "prefers-color-scheme:dark" in text


def test_graph_has_texts_whole_when_it_is_json():
    when = "upstream.kind.a in ['" + "x" * 200 + "']"
    config = pipeline(stage("kind"), stage("b", needs=["kind"], when=when))
    graph = graph_json(config)
    assert [node["id"] for node in graph["nodes"]] == ["source", "stage:kind", "stage:b"]
    assert graph["nodes"][2]["when"] == when
    assert {"from": "stage:kind", "to": "stage:b"} in graph["edges"]
