"""The run form and the run page of `headrace up` in a real browser. Needs Debian's chromium.

Pictures are put into the folder that HEADRACE_SHOTS names, or into the test's own.
"""

import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from tests.fakes.engine_server import FakeEngine, Fault
from tests.flows.stack_client import Stack, write_files

pytestmark = pytest.mark.system

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTH = 1400


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(tmp_path_factory.mktemp("up"))
    stack.up("--port", stack.port)
    yield stack
    stack.headrace("down")


@pytest.fixture
def page():
    program = shutil.which("chromium")
    assert program, "chromium is not installed; apt-get install chromium"
    # Imported here, so that the file is collected where only `make install` for deployment ran.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser.new_page(viewport={"width": WIDTH, "height": 1000}, color_scheme="light")
        browser.close()


@pytest.fixture
def shots(tmp_path):
    folder = Path(os.environ.get("HEADRACE_SHOTS", tmp_path / "shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def slow_engine():
    """A fake engine that takes a second, so that progress can be watched."""
    with FakeEngine(script=lambda *_: Fault(hang_s=1.0)) as engine:
        yield engine


def fill(page, name, value):
    """Write into the form's field of this name."""
    label = page.locator("label").filter(has_text=re.compile(rf"^{name} \(Optional\)"))
    field = page.locator(".p-label").filter(has=label).locator("textarea, input").first
    field.fill(str(value))


def open_artifacts(stack, page, run_id):
    """Open the artifacts of a flow run; Prefect's page shows its log first."""
    page.goto(f"http://127.0.0.1:{stack.port}/runs/flow-run/{run_id}")
    page.get_by_text("Artifacts", exact=True).first.click()


@pytest.fixture
def lake():
    """A folder with a short name, since it is seen in pictures."""
    with tempfile.TemporaryDirectory(prefix="lake-") as folder:
        yield Path(folder)


@pytest.mark.timeout(240)
def test_run_is_started_watched_and_read_when_a_person_uses_the_ui(
    stack, page, shots, slow_engine, lake
):
    source = write_files(lake / "papers", 60)
    page.goto(f"http://127.0.0.1:{stack.port}/deployments")
    # By its address: the flow has the same name, and its link may be drawn first.
    page.locator('a[href*="/deployments/deployment/"]', has_text="process-corpus").first.click()
    page.wait_for_url("**/deployments/deployment/**")
    page.goto(page.url.split("?")[0] + "/run")
    page.wait_for_selector("text=secret_blocks (Optional)")
    values = {
        "source": source,
        "sink": lake / "answers",
        "engine_url": slow_engine.url,
        "limit": 40,
    }
    for name, value in values.items():
        fill(page, name, value)
    page.screenshot(path=shots / "run-form.png")
    page.get_by_role("button", name="Submit").click()

    run = _newest_run(stack)
    assert run["parameters"]["limit"] == 40
    stack.wait(run["id"], {"RUNNING"})
    seen = _watch(stack, page, run["id"])
    assert len(seen) >= 2, seen
    ended = stack.wait(run["id"])
    assert ended["state"]["name"] == "Completed", ended["state"]

    open_artifacts(stack, page, run["id"])
    page.wait_for_selector("text=done: 40 of 40 documents, 120 succeeded")
    page.wait_for_timeout(1500)
    page.screenshot(path=shots / "run-page.png")
    page.get_by_role("link", name="report").first.click()
    link = page.get_by_role("link", name="Open the report")
    link.wait_for()
    address = link.get_attribute("href")
    assert address.startswith(f"http://127.0.0.1:{stack.port + 1}/runs/")
    page.goto(address)
    assert "000.txt" in page.inner_text("body")
    page.screenshot(path=shots / "report-page.png")


def _watch(stack, page, run_id):
    """Return the lines that the progress card has shown until the run ended."""
    seen, deadline = [], time.monotonic() + 90
    while stack.api(f"flow_runs/{run_id}")[1]["state"]["type"] == "RUNNING":
        assert time.monotonic() < deadline, "the run did not end"
        open_artifacts(stack, page, run_id)
        page.wait_for_timeout(1000)
        card = page.get_by_text(
            re.compile(r"^processing: \d+ of 40 documents, \d+ succeeded")
        ).first
        if card.count() and card.inner_text() not in seen:
            seen.append(card.inner_text())
    return seen


def _newest_run(stack):
    """Return the run that the form has asked for."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        _, runs = stack.api("flow_runs/filter", {"limit": 1})
        if runs:
            return runs[0]
        time.sleep(0.3)
    raise AssertionError("the form made no run")
