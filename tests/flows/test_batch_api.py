"""Stages that go through the host's batch API: the same records, for less, and each line sent once."""

import json

import pytest

from config.errors import ConfigError
from flows.artifacts import describe
from flows.cli import app
from flows.estimate import estimate
from flows.run.core import run_job
from flows.run.job import Options
from flows.run.progress import Progress
from flows.run.registry import known_runs
from flows.run.resume import reopen
from flows.terminal import summary_lines
from tests.fakes.batch_host import BatchHostServer
from tests.flows.batch_runs import (
    NUM_FILES,
    PIPELINE,
    check_paid_once,
    job_in,
    outcomes,
    records,
    run_in,
    submitted,
    usage,
    write_world,
)


@pytest.fixture
def host():
    with BatchHostServer() as fake:
        yield fake


def test_a_run_waits_for_its_batches_and_pays_the_lower_price(host, tmp_path):
    write_world(tmp_path, host.url)
    manifest = run_in(tmp_path)
    check_paid_once(tmp_path, host, manifest)
    # Two shards and two stages; the stage over the corpus asks at once.
    assert len(host.kept.submitted) == 4
    assert host.kept.at_once == 1
    table = usage(tmp_path, manifest["run_id"])
    by_stage = {name: rows for (name,), rows in table.group_by("stage")}
    assert all(len(ids) == 1 for ids in by_stage["kind"]["batch_ids"])
    assert all(len(ids) == 0 for ids in by_stage["all"]["batch_ids"])
    for name, factor in (("kind", 0.6), ("title", 0.6), ("all", 1.0)):
        rows = by_stage[name]
        full = (rows["prompt_tokens"].sum() * 1.0 + rows["completion_tokens"].sum() * 10.0) / 1e6
        assert rows["cost_usd"].sum() == pytest.approx(factor * full)
        assert manifest["stages"][name]["cost_usd"] == pytest.approx(factor * full)
    assert set(by_stage["kind"]["seconds"].round()) == {60.0}
    assert len(table) == 2 * NUM_FILES + 1


@pytest.mark.parametrize(
    "rules",
    [
        {"shuffle": True},
        {"double": True},
        {"strangers": 3},
        {"keeps_metadata": False},
        {"num_looks": 4},
    ],
    ids=lambda rules: next(iter(rules)),
)
def test_the_order_and_rest_of_a_hosts_files_do_not_matter(host, tmp_path, rules):
    host.set(**rules)
    write_world(tmp_path, host.url)
    check_paid_once(tmp_path, host, run_in(tmp_path))


def test_records_are_the_same_as_those_of_calls_at_once(host, tmp_path):
    write_world(tmp_path, host.url)
    run_in(tmp_path)
    before = host.kept.at_once
    run_in(tmp_path, "stages.*.batch_api=null", lake="other")
    assert host.kept.at_once - before == 2 * NUM_FILES + 1
    for stage in ("kind", "title", "all"):
        one, other = (records(tmp_path, stage, lake).sort("row_key") for lake in ("lake", "other"))
        assert one.equals(other)


LEAVE = ("stages.kind.batch_api.max_wait_s=0", "stages.title.batch_api.max_wait_s=0")


def test_a_run_that_does_not_wait_says_what_it_waits_for_and_goes_on_later(host, tmp_path):
    host.set(takes_to_end=False)
    write_world(tmp_path, host.url)
    first = run_in(tmp_path, *LEAVE)
    assert first["verdict"] == "awaiting_batch"
    assert outcomes(tmp_path, "kind") == {"over_budget": NUM_FILES}
    assert outcomes(tmp_path, "title") == {"skipped": NUM_FILES}
    told = first["batches"]
    assert sorted(one["batch_id"] for one in told) == sorted(host.kept.batches)
    assert {one["stage"] for one in told} == {"kind"}
    assert sum(one["lines"] for one in told) == NUM_FILES
    assert all(one["since"] and one["expires"] for one in told)
    assert first["requests"]["asked"] >= NUM_FILES
    lines = summary_lines(first)
    assert lines["go on"].startswith(f"headrace run --resume {first['run_id']}")
    assert f"batch {told[0]['batch_id']}" in lines
    page = (tmp_path / "lake" / "reports" / first["run_id"] / "index.html").read_text()
    assert f"Batch {told[0]['batch_id']} at the host" in page
    # Nothing has changed, so nothing is sent.
    second = run_job(reopen(first["run_id"], str(tmp_path / "lake"), "resume"))
    assert second["verdict"] == "awaiting_batch"
    assert len(host.kept.submitted) == 2
    host.set(takes_to_end=True)
    more = Options(settings=("stages.title.batch_api.max_wait_s=null",))
    last = run_job(reopen(first["run_id"], str(tmp_path / "lake"), "resume", more))
    check_paid_once(tmp_path, host, last)


def test_a_run_leaves_when_only_stages_wait_that_are_not_waited_for(host, tmp_path):
    host.set(takes_to_end=False)
    write_world(tmp_path, host.url)
    # `title` could be waited for, but has nothing at the host yet.
    first = run_in(tmp_path, "stages.kind.batch_api.max_wait_s=0")
    assert first["verdict"] == "awaiting_batch"
    assert {one["stage"] for one in first["batches"]} == {"kind"}
    host.set(takes_to_end=True)
    more = Options(settings=("stages.kind.batch_api.max_wait_s=null",))
    last = run_job(reopen(first["run_id"], str(tmp_path / "lake"), "resume", more))
    check_paid_once(tmp_path, host, last)


def test_a_run_leaves_for_its_own_stage_when_the_host_takes_nothing(host, tmp_path):
    host.set(refuse={"upload": 503})
    write_world(tmp_path, host.url)
    # `title` could be waited for, but has nothing to send yet.
    first = run_in(tmp_path, "stages.kind.batch_api.max_wait_s=0")
    assert (first["verdict"], first["batches"]) == ("awaiting_batch", [])
    host.set(refuse={})
    more = Options(settings=("stages.kind.batch_api.max_wait_s=null",))
    last = run_job(reopen(first["run_id"], str(tmp_path / "lake"), "resume", more))
    check_paid_once(tmp_path, host, last)


def test_the_command_tells_what_waits_and_that_the_run_can_go_on(host, tmp_path):
    from typer.testing import CliRunner

    host.set(takes_to_end=False)
    write_world(tmp_path, host.url)
    where = [f"--source={tmp_path}/in", f"--sink={tmp_path}/lake", f"--engine={tmp_path}/host.yaml"]
    settings = [f"--set={one}" for one in LEAVE]
    command = ["run", str(tmp_path / "waits.yaml"), *where, *settings, "--json"]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 4
    told = json.loads(ended.stdout)
    assert {one["status"] for one in told["batches"]} == {"in_progress"}
    shown = CliRunner().invoke(app, ["status", told["run_id"], "--json"])
    assert json.loads(shown.stdout)["state"] == "awaiting batch"
    assert json.loads(shown.stdout)["manifest"]["batches"] == told["batches"]


def test_the_run_page_shows_the_batches_while_the_run_waits(host, tmp_path):
    host.set(num_looks=4)
    write_world(tmp_path, host.url)
    pages = []
    progress = Progress(lambda snapshot: pages.append(describe("r", snapshot)), interval_s=0.0)
    manifest = run_job(job_in(tmp_path), progress=progress)
    assert manifest["verdict"] == "complete"
    waiting = [page for page in pages if page.startswith("waiting for")]
    assert any("waiting for 2 batches at the host, 0 of 8 requests answered" in p for p in waiting)
    assert any("| batch batch-" in page and "of stage kind" in page for page in waiting)
    # What was asked about twice is counted once.
    assert f"{2 * NUM_FILES + 1} of {2 * NUM_FILES + 1} asked" in pages[-1]


def test_the_status_is_that_of_the_wait_as_soon_as_the_run_waits(host, tmp_path):
    host.set(num_looks=4)
    write_world(tmp_path, host.url)
    phases, kept = ["starting"], []

    def look(snapshot):
        if phases[-1].startswith("waiting"):
            kept.append(known_runs()[0].progress)
        phases.append(snapshot.phase)

    run_job(job_in(tmp_path), progress=Progress(look, interval_s=0.0))
    assert {one["phase"].split()[0] for one in kept} == {"waiting"}
    # What the host has not answered is no answer.
    assert (kept[0]["num_results"], len(kept[0]["batches"])) == (0, 2)


def test_what_is_cancelled_at_the_host_fails_and_is_sent_anew_by_a_retry(host, tmp_path):
    host.set(ends_as="cancelled", leave_out=2, bad_batches=2)
    write_world(tmp_path, host.url)
    first = run_in(tmp_path, failure_limit=1.0)
    assert outcomes(tmp_path, "kind") == {"failed": NUM_FILES // 2, "succeeded": NUM_FILES // 2}
    errors = records(tmp_path, "kind").filter(outcome="failed")["error"]
    assert all("was cancelled at the host" in error for error in errors)
    last = run_job(reopen(first["run_id"], str(tmp_path / "lake"), "retry"))
    assert last["verdict"] == "complete"
    assert outcomes(tmp_path, "kind") == {"succeeded": NUM_FILES}


SAMPLES = """
name: waits
documents_per_shard: 4
stages:
  - name: kind
    prompt: What is it?
    output: {kind: a|b|c}
    samples: 3
    temperature: 0.7
    escalate: {when: [disagreement], max_share: 1.0}
    batch_api: {}
  - {name: title, needs: [kind], prompt: "Which, {{ upstream.kind.kind }}?", output: {title: string}, batch_api: {}}
"""


def test_samples_and_doubts_are_settled_when_all_answers_are_there(host, tmp_path):
    host.set(leave_out=3, bad_batches=2)
    write_world(tmp_path, host.url, pipeline=SAMPLES)
    manifest = run_in(tmp_path)
    assert manifest["verdict"] == "complete"
    kinds = records(tmp_path, "kind")
    assert set(kinds["outcome"]) == {"succeeded"}
    assert set(submitted(host).values()) == {1}
    # The fake's samples agree; of three, each has an answer.
    assert set(kinds["agreement"]) == {1.0}
    assert outcomes(tmp_path, "title") == {"succeeded": NUM_FILES}


CORPUS = """
name: waits
documents_per_shard: 4
chunk: {max_tokens: 200}
stages:
  - {name: kind, prompt: What is it?, output: {kind: a|b|c, says: line}}
  - {name: all, over: corpus, needs: [kind], prompt: What is it all about?, output: {about: line}, batch_api: {}}
"""


def test_parts_of_a_corpus_are_put_together_when_all_of_them_are_answered(host, tmp_path):
    host.set(leave_out=2, bad_batches=1)
    write_world(tmp_path, host.url, pipeline=CORPUS)
    profile = (
        (tmp_path / "host.yaml").read_text().replace("context_tokens: 8192", "context_tokens: 900")
    )
    (tmp_path / "host.yaml").write_text(profile)
    manifest = run_in(tmp_path)
    assert manifest["verdict"] == "complete"
    stage = manifest["stages"]["all"]
    assert stage["parts"] > 1
    assert stage["outcomes"] == {"succeeded": 1}
    [row] = records(tmp_path, "all").to_dicts()
    assert (row["num_inputs"], row["num_answered"]) == (NUM_FILES, NUM_FILES)
    # Parts, what was missing of them, then what puts them together.
    assert len(host.kept.submitted) == 3
    assert set(submitted(host).values()) == {1}
    assert sum(map(len, host.kept.submitted)) >= stage["requests"]


def test_a_budget_holds_for_batches_and_a_larger_one_goes_on(host, tmp_path):
    write_world(tmp_path, host.url)
    first = run_in(tmp_path, budget_usd=0.004)
    assert first["verdict"] == "budget_reached"
    assert 0 < first["spent"]["usd"] <= 0.004
    last = run_job(
        reopen(first["run_id"], str(tmp_path / "lake"), "resume", Options(budget_usd=1.0))
    )
    check_paid_once(tmp_path, host, last)


SMALL = """
name: waits
documents_per_shard: 1
stages:
  - {name: kind, prompt: What is it?, output: {kind: a|b|c}, batch_api: {window: 12h}}
"""


def test_shards_are_asked_about_when_batches_of_others_give_their_budget_back(host, tmp_path):
    write_world(tmp_path, host.url, pipeline=SMALL)
    # Three lines at worst, and far more than all of them take.
    manifest = run_in(tmp_path, budget_usd=0.006)
    assert manifest["verdict"] == "complete"
    assert outcomes(tmp_path, "kind") == {"succeeded": NUM_FILES}
    assert len(host.kept.submitted) == NUM_FILES
    assert set(submitted(host).values()) == {1}


@pytest.mark.parametrize(
    "more", ["", "  - {name: colour, prompt: Which one?, output: {colour: string}}\n"]
)
def test_a_run_ends_when_what_is_set_aside_for_a_batch_does_not_come_back(host, tmp_path, more):
    host.set(takes_to_end=False)
    write_world(tmp_path, host.url, pipeline=SMALL + more)
    first = run_in(tmp_path, "stages.kind.batch_api.max_wait_s=0", budget_usd=0.006)
    assert first["verdict"] == "awaiting_batch"
    [path, *_] = (tmp_path / "lake" / "_headrace" / "batches").rglob("*.json")
    # Of a shard that this run has not got any more.
    other = json.loads(path.read_bytes())
    lost = {"shard": "s99999", "lines": {"f" * 58 + "-0": [1, 0.006, 0.0]}}
    (path.parent.parent / "s99999").mkdir()
    (path.parent.parent / "s99999" / path.name).write_text(json.dumps(other | lost))
    host.set(takes_to_end=True)
    more = Options(settings=("stages.kind.batch_api.max_wait_s=null",))
    last = run_job(reopen(first["run_id"], str(tmp_path / "lake"), "resume", more))
    assert last["verdict"] == "awaiting_batch"
    sent = len(submitted(host))
    assert outcomes(tmp_path, "kind") == {"succeeded": sent, "over_budget": NUM_FILES - sent}


def test_a_plan_prices_a_stage_as_it_is_sent(host, tmp_path):
    write_world(tmp_path, host.url)
    planned, at_once = (
        estimate(job_in(tmp_path, *settings), sample=None, notify=print)
        for settings in ((), ("stages.*.batch_api=null",))
    )
    sent = {stage["stage"]: stage["sent"] for stage in planned["stages"]}
    assert sent == {"kind": "batch_api", "title": "batch_api", "all": "at once"}
    full = at_once["cost_usd"]["without_cache"]
    [last] = [one for one in planned["stages"] if one["stage"] == "all"]
    of_all = (last["prompt_tokens"] + 10 * last["output_tokens_at_most"]) / 1e6
    assert planned["cost_usd"]["without_cache"] == pytest.approx(
        0.6 * (full - of_all) + of_all, abs=1e-4
    )
    [kind] = [one for one in planned["stages"] if one["stage"] == "kind"]
    assert any("come within 12h" in assumed for assumed in kind["assumed"])


@pytest.mark.parametrize(
    ("settings", "profile", "message"),
    [
        (["stages.kind.batch_api.window=11h"], {}, "from 12h to 7d, not 11h"),
        (["stages.kind.batch_api.window=soon"], {}, "batch_api.window"),
        ([], {"model: fake-model": "model: other"}, "takes fake-model, not other"),
        ([], {"batch_api:": "# batch_api:"}, "engine 'host' has none"),
    ],
)
def test_a_stage_is_refused_when_the_engine_cannot_take_it(
    host, tmp_path, settings, profile, message
):
    write_world(tmp_path, host.url, limits="models: [fake-model]")
    text = (tmp_path / "host.yaml").read_text()
    for before, after in profile.items():
        text = text.replace(before, after)
    (tmp_path / "host.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        run_in(tmp_path, *settings)
    assert host.kept.submitted == []


def test_an_agent_cannot_wait(host, tmp_path):
    pipeline = PIPELINE.replace("{name: kind,", "{name: kind, mode: agent, tools: [search],")
    write_world(tmp_path, host.url, pipeline=pipeline)
    with pytest.raises(ConfigError, match="an agent's turns cannot wait for `batch_api`"):
        run_in(tmp_path)


@pytest.mark.parametrize("mask", ["", ", mask: {}"])
def test_nothing_sensitive_goes_into_a_batch(host, engine, tmp_path, mask):
    policy = f"policy: {{sensitive: ['00.txt'], on_premises: ['{engine.url}']{mask}}}\n"
    write_world(tmp_path, host.url, pipeline=policy + PIPELINE, name="ada@example.org")
    manifest = run_in(tmp_path)
    assert manifest["verdict"] == "complete"
    assert outcomes(tmp_path, "kind") == {"succeeded": NUM_FILES}
    sent = json.dumps(host.kept.bodies)
    assert "ada@example.org 0 says" not in sent
    assert ("ada@example.org 4 says" in sent) == (not mask)
    assert any("ada@example.org 0 says" in json.dumps(call) for call in engine.calls)
    assert sum(map(len, host.kept.submitted)) == 2 * (NUM_FILES - 1)


TWICE = """
name: waits
documents_per_shard: 1
stages:
  - {name: kind, prompt: What is it?, output: {kind: a|b|c, says: line}, batch_api: {}}
"""


def test_what_shards_ask_alike_is_in_one_batch_and_paid_once(host, tmp_path):
    host.set(leave_out=2, bad_batches=2)
    write_world(tmp_path, host.url, pipeline=TWICE)
    for number in range(1, NUM_FILES):
        # The same text in other bytes: documents of their own, whose chunk is one question.
        text = (tmp_path / "in" / "00.txt").read_text()
        (tmp_path / "in" / f"{number:02d}.txt").write_text(text + "\n" * number)
    manifest = run_in(tmp_path)
    assert manifest["verdict"] == "complete"
    assert outcomes(tmp_path, "kind") == {"succeeded": NUM_FILES}
    assert set(submitted(host).values()) == {1}
    # One line, sent again as often as the host left it out.
    assert len({line[:-2] for line in submitted(host)}) == 1
    assert len(submitted(host)) <= 3
    stage = manifest["stages"]["kind"]
    assert stage["prompt_tokens"] + stage["completion_tokens"] == manifest["spent"]["tokens"]
    assert [*(tmp_path / "lake" / "_headrace" / "batches").rglob("*.json*")] == []
    assert host.kept.files == {}
