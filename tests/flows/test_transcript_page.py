"""The page of a transcript, and the command that writes it."""

import json
import re

import pytest
from typer.testing import CliRunner

from engine.steps import (
    Decided,
    Nudged,
)
from flows.cli import app
from flows.report.page import POLICY
from flows.report.timeline import Bar, Lane, timeline
from flows.report.transcript import MAX_TEXT
from flows.run.transcripts import (
    transcript_rows,
    write_transcripts,
)
from tests.flows.report_sink import Sample
from tests.flows.test_report import Balance
from tests.flows.transcript_events import (
    HOSTILE,
    LONG,
    RUN_ID,
    T0,
    call,
    lone_agent,
    page_of,
    returned,
    swarm,
    turn,
)

# The page


def test_page_is_whole_and_holds_no_markup_of_others_when_texts_names_and_arguments_are_hostile():
    for page in (
        page_of({"k1": lone_agent()}, outcome="failed", error=HOSTILE, question=HOSTILE),
        page_of(swarm(), "5a" * 32),
    ):
        parser = Balance()
        parser.feed(page)
        assert parser.open == []
        assert "<script" not in page
        assert "\u202e" not in page
        assert page.count("alert(1)") >= 4
        assert POLICY in page
        assert not re.findall(r'(?:src|href)="(?!#)', page)


def test_no_name_is_markup_when_tools_engines_and_reasons_are_hostile():
    odd = call(0, HOSTILE, HOSTILE)
    page = page_of({
        "k1": [
            turn(2, odd, notes=(HOSTILE,), engine=HOSTILE, finish_reason=HOSTILE),
            returned(3, odd, HOSTILE, HOSTILE),
            Decided(call_id=odd.call_id, is_approved=True, by=HOSTILE, at=T0),
            Nudged(why=HOSTILE, text=HOSTILE, cause=HOSTILE, at=T0),
        ]
    })  # fmt: skip
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 10


def test_page_tells_of_every_event_when_an_agent_went_astray():
    page = page_of({"k1": lone_agent()})
    assert page.count('class="panel step"') == 3
    for said in (
        "Thinking, ", "not json", "{&#34;query&#34;: ", "result, 66,000 characters",
        "Put into notes", "Goal: the fuse.", "leaked tool call", "<b>refused</b> by <bdi>ann</bdi>",
        "limit: 6 steps are all there are", "Stop here.", "2 failed: 1 not json, 1 refused", "0.0160",
        "1,000 prompt tokens (60% cached)", "after 5.0 s, 2.0 s", "&#34;cause&#34;: &#34;a fuse&#34;",
    ):  # fmt: skip
        assert said in page, said
    for kind in ("nudged", "compacted", "decided"):
        assert len(re.findall(f'<path class="{kind}"', page)) == 1
    assert page.count('<rect class="turn"') == 3
    assert page.count('<rect class="failed"') == 2


def test_page_shows_a_part_of_a_text_and_says_how_much_is_left_when_it_is_very_long():
    page = page_of({"k1": lone_agent()})
    assert f"{len(LONG) - MAX_TEXT:,} more characters" in page
    assert page.count("line of a long result") < MAX_TEXT / len("line of a long result\n") + 10


def test_page_stays_of_a_size_that_opens_when_there_are_very_many_long_results():
    asked = [call(number) for number in range(1_000)]
    events = [turn(2, *asked), *(returned(3, one, "x" * 30_000) for one in asked)]
    assert len(page_of({"k1": events})) < 15_000_000


def test_links_lead_to_a_place_of_the_page_when_it_is_a_swarm():
    page = page_of(swarm(), "5a" * 32)
    links = set(re.findall(r'href="#([^"]*)"', page))
    assert {"own", "a9", "a10", "own-c9", "own-c10", "a10-t1", "a10-c1"} <= links
    for link in links:
        assert page.count(f'id="{link}"') == 1, link
    for said in (
        "critical steps",
        "<bdi>1.17</bdi>",
        "begun, no end on record",
        "10 reader",
        "Read reader.",
    ):
        assert said in page, said


def test_deep_arguments_are_shown_as_they_are_when_they_cannot_be_set_out():
    deep = '{"a":' * 3_000 + "1" + "}" * 3_000
    page = page_of({"k1": [turn(2, call(0, arguments=deep), content='{"a": "\\ud800"}')]})
    assert "{&#34;a&#34;:{&#34;a&#34;:" in page
    page.encode()


def bars(drawing):
    found = re.findall(r'<rect class="turn" x="([\d.]+)" y="(\d+)" width="([\d.]+)"', drawing)
    return [tuple(map(float, bar)) for bar in found]


def lane(*spans, name="agent"):
    made = [Bar(kind="turn", start=T0 + a, end=T0 + b, words="", href="#t") for a, b in spans]
    return Lane(name=name, href="#own", bars=made)


def test_lanes_lie_side_by_side_in_time_when_agents_worked_at_once():
    (first, whole, half) = bars(timeline([lane((0, 10), (10, 20)), lane((10, 15), name="b")]))
    assert whole[0] == pytest.approx(first[0] + first[2], abs=0.2)
    assert half[0] == whole[0]
    assert half[1] > whole[1]
    assert half[2] == pytest.approx(whole[2] / 2, abs=0.2)


def test_a_pause_is_drawn_short_when_a_run_was_taken_up_again_a_day_later():
    drawing = timeline([lane((0, 10), (86_400, 86_410))])
    first, second = bars(drawing)
    assert first[2] == pytest.approx(second[2], abs=0.2)
    assert first[2] > 400
    assert "a pause of 23 h 59 min" in drawing


def test_something_is_drawn_when_nothing_took_time():
    assert len(bars(timeline([lane((5, 5))]))) == 1
    assert timeline([]) == ""


# The command


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run in which stages `pick` and `briefing` had agents."""
    monkeypatch.setenv("HEADRACE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    sample = Sample(tmp_path)
    sample.records("briefing", {"unit": "corpus", "request_key": "5a" * 32, "outcome": "failed",
                                "error": "it was lost"})  # fmt: skip
    pick = transcript_rows("pick", "b1" * 32, "letters/a.png [red]", {"b1" * 32: lone_agent()})
    write_transcripts(sample.lake, RUN_ID, "s00000", pick)
    whole = transcript_rows("briefing", "5a" * 32, "corpus", swarm())
    write_transcripts(sample.lake, RUN_ID, "stage-briefing", whole)
    return sample.finish()


def call_cli(sample, *arguments):
    words = ["transcript", RUN_ID, "--sink", str(sample.sink), *map(str, arguments)]
    return CliRunner().invoke(app, words)


def test_requests_are_listed_when_a_run_had_agents(run):
    shown = call_cli(run)
    assert shown.exit_code == 0, shown.output
    assert "letters/a.png [red]" in shown.stdout
    assert "5a5a5a5a5a5a" in shown.stdout
    assert "limit: 6 steps" in shown.stdout
    listed = json.loads(call_cli(run, "--json").stdout)
    assert [one["stage"] for one in listed["requests"]] == ["briefing", "pick"]
    assert listed["requests"][0]["critical_steps"] == 6
    (only,) = json.loads(call_cli(run, "--stage", "pick", "--json").stdout)["requests"]
    assert only["num_failed_calls"] == 2


def test_pages_are_written_beside_the_report_or_into_a_folder_when_asked_for(run, tmp_path):
    result = call_cli(run, "--request", "5a5a")
    assert result.exit_code == 0, result.output
    (file,) = (run.sink / "reports" / RUN_ID / "transcripts").iterdir()
    assert file.name == f"briefing-{'5a' * 32}.html"
    page = file.read_text(encoding="utf-8")
    assert "it was lost" in page
    assert "What does it all say?" in page
    told = json.loads(call_cli(run, "--out", tmp_path / "pages", "--json").stdout)
    assert {one["outcome"] for one in told["requests"]} == {"failed", "no record yet"}
    written = sorted(str(page) for page in (tmp_path / "pages").iterdir())
    assert sorted(one["page"] for one in told["requests"]) == written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--request", "ff"], "has no request whose key begins with 'ff'"),
        (["--request", ""], "--request is empty"),
        (["--request", "5a", "--stage", "pick"], "leave out --stage"),
        (["--stage", "nix"], "'nix' is no stage"),
    ],
)
def test_one_message_says_what_to_do_when_the_request_is_not_there(run, arguments, said):
    result = call_cli(run, *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_a_line_says_so_when_a_run_had_no_agents(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_STATE", str(tmp_path / "state"))
    sample = Sample(tmp_path).finish()
    assert "no agent has done anything" in call_cli(sample).stdout
    assert json.loads(call_cli(sample, "--json").stdout)["requests"] == []
    assert call_cli(sample, "--out", tmp_path / "pages").exit_code == 2
