"""The report, and the transcript of an agent, in a real browser. Needs Debian's chromium."""

import shutil
import subprocess

import cv2
import pytest

from flows.report.page import render_html
from flows.report.transcript import Ended, render_page
from flows.run.transcripts import transcript_rows
from tests.flows.report_sample import sample
from tests.flows.test_transcripts import RUN_ID, lone_agent, swarm

pytestmark = pytest.mark.system

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars",
)  # fmt: skip


def chromium(tmp_path, *arguments):
    program = shutil.which("chromium")
    assert program, "chromium is not installed; apt-get install chromium"
    result = subprocess.run(
        [program, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *arguments],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return result.stdout


@pytest.fixture
def page(tmp_path):
    file = tmp_path / "index.html"
    file.write_text(render_html(sample()), encoding="utf-8")
    return file.as_uri()


def test_all_cards_and_no_script_are_in_the_page_when_a_browser_has_parsed_it(tmp_path, page):
    dom = chromium(tmp_path, "--dump-dom", page)
    assert dom.count("<article") == 4
    assert "alert(" in dom
    assert "<script" not in dom


@pytest.mark.parametrize("width", [1400, 420])
def test_page_is_drawn_without_overflow_when_wide_or_narrow(tmp_path, page, width):
    shot = tmp_path / "shot.png"
    chromium(tmp_path, f"--window-size={width},1800", f"--screenshot={shot}", page)
    pixels = cv2.imread(str(shot))
    assert pixels.shape[1] == width
    assert pixels.std() > 10
    # The mark over the quoted line: the only orange on the page's first card.
    blue, green, red = (pixels[:, :, i].astype(int) for i in range(3))
    assert ((red - blue > 60) & (green - blue > 20)).sum() > 200


def transcript(tmp_path, events, key):
    file = tmp_path / "transcript.html"
    rows = transcript_rows("dig", key, "a.txt", events)
    file.write_text(render_page(RUN_ID, rows, Ended(outcome="succeeded")), encoding="utf-8")
    return file.as_uri()


def test_every_turn_and_no_script_is_in_a_transcript_when_a_browser_has_parsed_it(tmp_path):
    dom = chromium(tmp_path, "--dump-dom", transcript(tmp_path, swarm(), "5a" * 32))
    assert dom.count("<article") == 7
    assert dom.count('<rect class="turn"') == 7
    assert "alert(" in dom
    assert "<script" not in dom


@pytest.mark.parametrize("width", [1400, 520])
def test_transcript_is_drawn_in_its_colours_when_wide_or_narrow(tmp_path, width):
    shot = tmp_path / "shot.png"
    page = transcript(tmp_path, {"k1": lone_agent()}, "k1")
    chromium(tmp_path, f"--window-size={width},1800", f"--screenshot={shot}", page)
    pixels = cv2.imread(str(shot))
    assert pixels.shape[1] == width
    blue, green, red = (pixels[:, :, i].astype(int) for i in range(3))
    # Turns, calls that failed, and marks.
    assert ((blue - red > 100) & (blue > 130)).sum() > 400
    assert ((red - blue > 90) & (green < 80)).sum() > 200
    assert ((red - blue > 150) & (green > 150)).sum() > 50
