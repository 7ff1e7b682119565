"""Child processes that go wrong: who hosts them gets a reply or a reason, and nothing is left."""

import asyncio
import logging
import time
from pathlib import Path

import pytest

from tests.tools.children import children_of
from tools import child
from tools.child import Ended, in_child

WORK = "tests.fakes.child_work"


def do(what, timeout_s=20.0, **more):
    return asyncio.run(in_child(WORK, {"do": what, **more}, timeout_s))


def test_only_the_reply_comes_back_when_a_library_prints(monkeypatch):
    monkeypatch.setenv("A_SECRET", "x")
    reply = do("reply", text="y" * 1_000_000)
    assert len(reply["got"]) == 1_000_000
    assert set(reply["environment"]) <= {"TZ", "LC_CTYPE"}


@pytest.mark.parametrize(
    ("what", "why"), [("abort", "crash"), ("exit", "crash"), ("flood", "size"), ("raise", "crash")]
)
def test_the_reason_is_told_when_there_is_no_reply(what, why):
    with pytest.raises(Ended) as error:
        do(what)
    assert error.value.why == why


def test_its_own_mistake_is_logged_when_it_raises(caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(Ended):
        do("raise")
    assert "RuntimeError: a mistake of its own" in caplog.text


def test_it_is_killed_when_its_time_is_over():
    began = time.monotonic()
    with pytest.raises(Ended, match="time"):
        do("sleep", timeout_s=1.0)
    assert time.monotonic() - began < 5


def test_what_it_started_ends_too_when_it_ends():
    pid = do("leave")
    deadline = time.monotonic() + 5
    while _is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(pid)


def _is_alive(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text(encoding="utf-8")


def test_only_some_are_alive_when_many_are_asked_for():
    async def main():
        # Servers of other tests may be children of this process too.
        before = children_of()
        calls = [asyncio.create_task(in_child(WORK, {"do": "sleep"}, 2.0)) for _ in range(9)]
        await asyncio.sleep(1)
        found = len(children_of() - before)
        for call in calls:
            call.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError)
            for end in await asyncio.gather(*calls, return_exceptions=True)
        )
        return found

    assert 0 < asyncio.run(main()) <= child._AT_ONCE
    # Those that waited do not begin after all.
    assert do("reply")["pid"]
