"""Where documents go by a pipeline's policy, what is masked on the way, and what is refused."""

import json
from dataclasses import replace

import polars as pl
import pytest

from config.errors import ConfigError
from flows.estimate import estimate
from flows.run.core import run_job
from flows.run.job import Options, make_job
from flows.run.resume import with_pipeline
from flows.trial import Trial, try_document
from tests.fakes.engine_server import FakeEngine, Fault
from tests.fakes.token_server import TokenServer

PIPELINE = """\
name: routed
stages:
  - name: kind
    prompt: What is it about?
    output: {kind: "a|b|c", words: string?}
"""

AWAY = """\
name: away
base_url: %s
hosted_by: Somebody
capabilities: {images: true, structured_output: true}
modes:
  instant: {sampling: {temperature: 0}}
data_sheet: {certifications: [%s]}
"""

SECRET = "The salary of Ada Lind is 70,000, ada.lind@example.org knows."
PUBLIC = "The harbour opens at six; write to office@harbour.example or ask Ada Lind."


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    for name in ("a.txt", "b.txt"):
        (folder / "HR").mkdir(parents=True, exist_ok=True)
        (folder / "HR" / name).write_text(f"{name} {SECRET}\n", encoding="utf-8")
        (folder / name).write_text(f"{name} {PUBLIC}\n", encoding="utf-8")
    return folder


class Hosts:
    """An engine of somebody's, and one of one's own."""

    def __init__(self, tmp_path, away, own, certifications=""):
        self.tmp_path, self.own = tmp_path, own
        self.away_file = tmp_path / "away.yaml"
        self.away_file.write_text(AWAY % (away.url, certifications), encoding="utf-8")
        self.away = away

    def run(self, source, policy, keys="", **options):
        return run_job(self.job(source, policy, keys, **options))

    def job(self, source, policy, keys="", **options):
        file = self.tmp_path / "routed.yaml"
        policy = json.dumps({"on_premises": [self.own.url], **policy})
        file.write_text(f"policy: {policy}\n{PIPELINE}{keys}", encoding="utf-8")
        asked = Options(
            source=str(source),
            sink=str(self.tmp_path / "sink"),
            **{"engine": str(self.away_file), **options},
        )
        return make_job(file, asked)

    def records(self, stage="kind"):
        return pl.read_parquet(f"{self.tmp_path}/sink/records/stage={stage}/*.parquet")


def answers_with(text):
    """Return a script whose answers repeat what `text` gives of the prompt."""

    def script(_, body):
        prompt = body["messages"][-1]["content"]
        return Fault(content=json.dumps({"kind": "a", "words": text(prompt)}))

    return script


@pytest.fixture
def hosts(tmp_path):
    with FakeEngine() as away, FakeEngine() as own:
        yield Hosts(tmp_path, away, own)


def said(engine):
    return json.dumps(engine.calls)


def test_sensitive_documents_go_to_own_engines_and_each_route_is_recorded(hosts, source):
    manifest = hosts.run(source, {"sensitive": ["hr/**"]})
    assert manifest["verdict"] == "complete"
    assert "salary" not in said(hosts.away)
    assert "harbour opens" in said(hosts.away)
    assert said(hosts.own).count("salary") == 2
    assert "harbour opens" not in said(hosts.own)
    rows = {row["path"]: row for row in hosts.records().to_dicts()}
    assert {path: row["policy_route"] for path, row in rows.items()} == {
        "a.txt": "open",
        "b.txt": "open",
        "HR/a.txt": "sensitive",
        "HR/b.txt": "sensitive",
    }
    assert rows["HR/a.txt"]["profile"] == hosts.own.url
    assert rows["HR/a.txt"]["served_by"] == hosts.own.url.removeprefix("http://").removesuffix(
        "/v1"
    )
    opened, sensitive = manifest["routes"]
    assert (opened["route"], opened["documents"]) == ("open", 2)
    assert (sensitive["route"], sensitive["documents"]) == ("sensitive", 2)
    assert sensitive["why"] == f"policy.on_premises names {hosts.own.url}"
    assert [one["requests"] for one in sensitive["answered_by"]] == [2]
    usage = pl.read_parquet(f"{hosts.tmp_path}/sink/runs/*/usage/*.parquet")
    assert sorted(usage["policy_route"]) == ["open", "open", "sensitive", "sensitive"]


def test_nothing_is_asked_again_when_a_routed_run_is_repeated(hosts, source):
    hosts.run(source, {"sensitive": ["hr/**"]})
    manifest = hosts.run(source, {"sensitive": ["hr/**"]})
    assert manifest["documents"]["unchanged"] == 4
    assert len(hosts.away.calls) == len(hosts.own.calls) == 2


def test_documents_go_to_own_engines_from_then_on_when_they_become_sensitive(hosts, source):
    hosts.run(source, {})
    assert len(hosts.away.calls) == 4
    manifest = hosts.run(source, {"sensitive": ["hr/**"]})
    assert manifest["verdict"] == "complete"
    assert len(hosts.away.calls) == 4
    # A shard goes where its most sensitive document may: the four are in one.
    assert set(hosts.records()["policy_route"]) == {"sensitive"}


def test_copy_of_an_open_document_is_asked_about_at_home_when_it_is_sensitive(hosts, source):
    (source / "HR" / "copy.txt").write_bytes((source / "a.txt").read_bytes())
    hosts.run(source, {"sensitive": ["hr/**"]})
    rows = {row["path"]: row for row in hosts.records().to_dicts()}
    assert rows["HR/copy.txt"]["profile"] == hosts.own.url
    assert rows["HR/copy.txt"]["request_key"] != rows["a.txt"]["request_key"]


def test_what_rests_on_all_documents_goes_where_sensitive_ones_go(hosts, source):
    keys = """\
  - name: all
    over: corpus
    needs: [kind]
    prompt: Sum it up.
    output: {text: string}
"""
    manifest = hosts.run(source, {"sensitive": ["hr/**"]}, keys)
    assert manifest["verdict"] == "complete"
    assert "Sum it up" not in said(hosts.away)
    assert hosts.records("all")["policy_route"].to_list() == ["sensitive"]


def test_sensitive_answers_are_kept_out_of_the_shared_cache(hosts, source):
    hosts.run(source, {"sensitive": ["hr/**"]}, cache=str(hosts.tmp_path / "cache"))
    kept = [*(hosts.tmp_path / "cache" / "documents").rglob("*.jsonl")]
    assert len(kept) == 2
    held = {file.stem for file in kept}
    rows = hosts.records().to_dicts()
    assert held == {row["document_key"] for row in rows if row["policy_route"] == "open"}


REFUSED = [
    ({"sensitive": True}, "", "would be sent documents that policy.sensitive marks"),
    ({"sensitive": ["hr/**"], "on_premises": []}, "", "have nowhere to go"),
    ({"sensitive": ["hr/**"], "on_premises": ["moonshot"]}, "", "hosted by Moonshot AI"),
    (
        {"sensitive": ["hr/**"], "on_premises": ["https://api.moonshot.ai/v1"]},
        "",
        "hosted by Moonshot AI",
    ),
    ({"sensitive": ["hr/**"]}, "    adapter: legal\n", "adapter 'legal' is not in engine"),
    ({"certifications": ["SOC 2", "ISO 27001"]}, "", "asks for ISO 27001"),
    ({"mask": {}}, "    require: images\n", "with policy.mask no image is sent"),
    ({"mask": {"patterns": {"x": "("}}}, "", "is no regular expression"),
    ({"mask": {"patterns": {"x": "a*"}}}, "", "matches the empty text"),
]


@pytest.mark.parametrize(("policy", "keys", "message"), REFUSED)
def test_run_is_refused_before_the_first_call_when_it_would_break_its_policy(
    tmp_path, source, policy, keys, message
):
    with FakeEngine() as away, FakeEngine() as own:
        hosts = Hosts(tmp_path, away, own, certifications="SOC 2 Type II")
        with pytest.raises(ConfigError, match=message):
            hosts.run(source, policy, keys)
        assert away.calls == own.calls == []


def test_fallback_elsewhere_is_refused_when_all_documents_are_sensitive(hosts, source):
    fallback = f"fallback: [{json.dumps(str(hosts.away_file))}]\n"
    with pytest.raises(ConfigError, match=r"fallback\[0\].*would be sent documents"):
        hosts.run(source, {"sensitive": True}, fallback, engine=hosts.own.url)
    assert hosts.own.calls == []
    manifest = hosts.run(source, {"sensitive": True}, engine=hosts.own.url)
    assert [one["route"] for one in manifest["routes"]] == ["sensitive"]
    assert len(hosts.own.calls) == 4


def test_fallback_stays_at_home_when_the_own_engine_fails(tmp_path, source):
    with (
        FakeEngine() as away,
        FakeEngine(script=lambda *_: Fault(status=422)) as broken,
        FakeEngine() as second,
    ):
        hosts = Hosts(tmp_path, away, broken)
        policy = {"sensitive": ["hr/**"], "on_premises": [broken.url, second.url]}
        hosts.run(source, policy)
        assert "salary" not in said(away)
        rows = [row for row in hosts.records().to_dicts() if row["policy_route"] == "sensitive"]
        assert {row["profile"] for row in rows} == {second.url}
        assert all("answered 422" in row["fallback"] for row in rows)


def test_values_leave_as_placeholders_and_come_back_where_asked(tmp_path, source):
    def last_words(prompt):
        return prompt.split("write to ")[1].split(" or ask")[0]

    mask = {"words": ["Ada Lind"]}
    for restore in (False, True):
        folder = tmp_path / str(restore)
        folder.mkdir()
        with FakeEngine(script=answers_with(last_words)) as away, FakeEngine() as own:
            hosts = Hosts(folder, away, own)
            policy = {"sensitive": ["hr/**"], "mask": {**mask, "restore": restore}}
            manifest = hosts.run(source, policy)
            assert manifest["routes"][0]["route"] == "masked"
            assert "office@harbour.example" not in said(away)
            assert "Ada Lind" not in said(away)
            assert "Ada Lind" in said(own)
            rows = [row for row in hosts.records().to_dicts() if row["policy_route"] == "masked"]
        words = {row["words"] for row in rows}
        # The same value has the same placeholder in both documents.
        assert len(words) == 1
        assert (words == {"office@harbour.example"}) == restore
        if not restore:
            assert words.pop().startswith("EMAIL_")


def test_citations_are_the_lines_of_the_source_when_text_was_masked(tmp_path, source):
    keys = """\
  - name: cites
    prompt: Who is to be asked?
    output: {who: line, claim: cited}
"""

    def script(_, body):
        asked = body["messages"][-1]["content"]
        if "Who is" not in asked:
            return None
        line = next(one for one in asked.splitlines() if one.startswith("[L"))
        label, quote = line[1:].split("] ", 1)
        claim = {"lines": [label], "quote": quote, "text": quote}
        return Fault(content=json.dumps({"who": label, "claim": claim}))

    with FakeEngine(script=script) as away, FakeEngine() as own:
        hosts = Hosts(tmp_path, away, own)
        hosts.run(source, {"mask": {"words": ["Ada Lind"]}, "on_premises": []}, keys)
        assert "Ada Lind" not in said(away)
    for row in hosts.records("cites").to_dicts():
        if not row["path"].startswith("HR"):
            assert {one["quote"] for one in row["citations"]} == {f"{row['path']} {PUBLIC}"}
            assert [one["verdict"] for one in row["claims"]] == ["verified"]
            assert "Ada Lind" not in row["who"] + row["claim"]


def test_placeholders_stay_the_same_when_a_run_is_repeated(hosts, source):
    policy = {"mask": {"words": ["Ada Lind"]}, "on_premises": []}
    hosts.run(source, policy)
    manifest = hosts.run(source, policy)
    assert manifest["documents"]["unchanged"] == 4
    assert len(hosts.away.calls) == 4


class CountingHost(TokenServer):
    """A host that counts tokens and lists its model, and answers nothing."""

    def __init__(self):
        super().__init__(estimate=False)
        listed = json.dumps({"data": [{"id": "m", "max_model_len": 8192}]}).encode()
        self._server.RequestHandlerClass.do_GET = lambda handler: handler._send(200, listed)

    @property
    def url(self):
        return self.base_url


def test_host_counts_no_sensitive_and_no_unmasked_text_when_a_run_is_planned(tmp_path, source):
    keys = """\
  - name: all
    over: corpus
    needs: [kind]
    prompt: Sum it up.
    output: {text: string}
"""
    with CountingHost() as away, FakeEngine() as own:
        hosts = Hosts(tmp_path, away, own)
        with hosts.away_file.open("a", encoding="utf-8") as file:
            file.write("tokenizer: {tokenize: true}\n")
        job = hosts.job(source, {"sensitive": ["hr/**"], "mask": {"words": ["Ada Lind"]}}, keys)
        planned = estimate(job, sample=None, notify=lambda _: None)
        tried = Trial(pipeline=job.pipeline, document="HR/a.txt")
        shown = try_document(tried, dry_run=True, notify=lambda _: None)
        open_one = Trial(pipeline=job.pipeline, document="a.txt")
        masked = try_document(open_one, dry_run=True, notify=lambda _: None)
        counted = json.dumps(away.calls)
    assert "harbour opens" in counted
    assert [word for word in ("salary", "Ada Lind", "office@") if word in counted] == []
    assert (planned["route"], planned["documents"][0]["count"]) == ("masked", 2)
    assert [stage["stage"] for stage in planned["stages"]] == ["kind"]
    sensitive = planned["sensitive"]
    assert (sensitive["route"], sensitive["documents"][0]["count"]) == ("sensitive", 2)
    assert [stage["stage"] for stage in sensitive["stages"]] == ["kind", "all"]
    assert (shown["route"], shown["engine"]) == ("sensitive", own.url)
    assert "Ada Lind" in shown["requests"][0]["messages"][1]["content"]
    assert "WORD_" in masked["requests"][0]["messages"][1]["content"]


def test_document_tried_by_its_file_goes_where_its_path_below_the_source_may(
    hosts, source, monkeypatch
):
    job = hosts.job(source, {"sensitive": ["hr/**"]})
    pipeline = job.pipeline.model_copy(update={"source": str(source)})
    monkeypatch.chdir(source / "HR")
    for document in (str(source / "HR" / "a.txt"), "a.txt"):
        tried = Trial(pipeline=pipeline, document=document)
        shown = try_document(tried, dry_run=False, notify=lambda _: None)
        assert shown["requests"][0]["outcome"] == "succeeded"
    assert "salary" not in said(hosts.away)
    elsewhere = hosts.tmp_path / "letter.txt"
    elsewhere.write_text(SECRET, encoding="utf-8")
    tried = Trial(pipeline=pipeline, document=str(elsewhere))
    with pytest.raises(ConfigError, match="does not lie below the pipeline's source"):
        try_document(tried, dry_run=False, notify=lambda _: None)


def test_changed_policy_is_not_passed_over_when_a_run_goes_on(hosts, source):
    job = hosts.job(source, {"sensitive": []})
    hosts.job(source, {"sensitive": ["hr/**"]})
    file = str(hosts.tmp_path / "routed.yaml")
    with pytest.raises(ConfigError, match="has changed since .*: policy.sensitive"):
        with_pipeline(job, file, accept_changes=False)
    changed = with_pipeline(job, file, accept_changes=True)
    assert changed.pipeline.policy.sensitive == ("hr/**",)


SERVER = """\
mcp:
  - {kind: stdio, name: web, command: [python3, -c, pass], allow: [fetch]}
"""
AGENT = "    mode: agent\n    tools: [read, web__fetch]\n"


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"sensitive": ["hr/**"]}, "would carry what sensitive documents say to the MCP server"),
        ({"mask": {}}, "tools show a model what documents say, unmasked"),
    ],
)
def test_tools_that_carry_text_away_are_refused(hosts, source, policy, message):
    with pytest.raises(ConfigError, match=message):
        hosts.run(source, policy, AGENT + SERVER)
    assert hosts.away.calls == hosts.own.calls == []


def test_other_engine_is_refused_when_a_sensitive_run_is_retried(tmp_path, source):
    with FakeEngine() as away, FakeEngine(script=lambda *_: Fault(content="no")) as own:
        hosts = Hosts(tmp_path, away, own)
        first = hosts.run(source, {"sensitive": True}, engine=own.url)
        job = hosts.job(source, {"sensitive": True}, engine=str(hosts.away_file))
        again = replace(job, run_id=first["run_id"], start="retry")
        with pytest.raises(ConfigError, match="would be sent documents"):
            run_job(again)
        assert away.calls == []


def test_kept_answers_come_back_with_their_values_when_rows_are_made_again(tmp_path, source):
    def last_words(prompt):
        return prompt.split("write to ")[-1].split(" or ask")[0]

    keys = """\
  - name: more
    prompt: And what else?
    output: {kind: "a|b|c", words: string?}
"""
    policy = {"sensitive": ["hr/**"], "mask": {"words": ["Ada Lind"], "restore": True}}
    with FakeEngine(script=answers_with(last_words)) as away, FakeEngine() as own:
        hosts = Hosts(tmp_path, away, own)
        hosts.run(source, policy)
        hosts.run(source, policy, keys)
        assert len(away.calls) == 4
        for stage in ("kind", "more"):
            rows = [r for r in hosts.records(stage).to_dicts() if r["policy_route"] == "masked"]
            assert {row["words"] for row in rows} == {"office@harbour.example"}
        # Without values the rows are made again from the same answers.
        policy["mask"]["restore"] = False
        hosts.run(source, policy, keys)
        assert len(away.calls) == 4
        rows = [r for r in hosts.records("more").to_dicts() if r["policy_route"] == "masked"]
        assert all(row["words"].startswith("EMAIL_") for row in rows)
