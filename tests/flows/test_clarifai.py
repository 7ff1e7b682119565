"""Files of a deployment on Clarifai, and its endpoint by the clarifai profile."""

import json
import re

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from config.load import REPOSITORY, load_profile, read_yaml
from config.yaml_text import dump_yaml
from flows.cli import app
from tests.fakes.clarifai import MODEL_URL, TOKEN, FakeClarifai

FILES = {
    "compute_cluster.yaml",
    "nodepool.yaml",
    "deployment.yaml",
    "clarifai-kimi-k2-5.yaml",
    "model/config.yaml",
    "model/requirements.txt",
    "model/1/model.py",
    "model/1/server.json",
}


PIPELINE = """\
name: colours
source: papers
sink: out
engine: fake.yaml
stages:
  - name: colour
    over: chunk
    prompt: Which colour?
    output: {answer: string}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def emit(*arguments):
    return call("engine", "plan", "clarifai", "--emit", "deploy", *arguments)


def good(*arguments):
    result = emit(*arguments)
    assert result.exit_code == 0, result.output
    return result


def files_in(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_files_carry_the_planned_limits_when_emitted(here):
    result = good("--user-id", "me", "--model-version", "v1", "--context", 131_072, "--json")
    shown = json.loads(result.stdout)
    assert shown["fits"]
    assert shown["emitted"]["to_fill_in"] == []
    deploy = here / "deploy"
    assert files_in(deploy) == FILES
    config = read_yaml(deploy / "model/config.yaml")
    limits = {"num_accelerators": 8, "accelerator_memory": "140Gi"}
    assert limits.items() <= config["inference_compute_info"].items()
    assert config["checkpoints"]["repo_id"] == "moonshotai/Kimi-K2.5"
    flags = json.loads((deploy / "model/1/server.json").read_text())["flags"]
    assert {"--tensor-parallel-size=8", "--max-model-len=131072"} <= set(flags)
    assert "--tool-call-parser=kimi_k2" in flags
    assert not [flag for flag in flags if flag.startswith(("--host", "--port"))]
    pool = read_yaml(deploy / "nodepool.yaml")["nodepool"]
    assert pool["instance_types"][0]["id"] == "p5en.48xlarge"
    assert limits.items() <= pool["instance_types"][0]["compute_info"].items()
    worker = read_yaml(deploy / "deployment.yaml")["deployment"]["worker"]["model"]
    assert worker == {
        "id": "kimi-k2-5", "model_version": {"id": "v1"}, "user_id": "me", "app_id": "main",
    }  # fmt: skip


def test_profile_of_the_deployment_names_its_url_when_emitted(here):
    good("--user-id", "me", "--context", 131_072)
    profile = load_profile("deploy/clarifai-kimi-k2-5.yaml")
    assert (profile.model, profile.context_tokens) == (MODEL_URL, 131_072)
    assert profile.deploy is None
    assert profile.modes["instant"].wire == {"chat_template_kwargs": {"thinking": False}}


@pytest.mark.parametrize(
    ("given", "bounds"),
    [
        ((), (1, 1)),
        (("--concurrency", 5), (1, 3)),
        (("--concurrency", 5, "--min-replicas", 0, "--max-replicas", 4), (0, 4)),
        (("--min-replicas", 2), (2, 2)),
    ],
)
def test_replicas_follow_from_the_concurrency_when_none_are_given(here, given, bounds):
    # One replica holds 2 requests of 262,144 tokens.
    good(*given)
    scale = read_yaml(here / "deploy/deployment.yaml")["deployment"]["autoscale_config"]
    pool = read_yaml(here / "deploy/nodepool.yaml")["nodepool"]
    assert (scale["min_replicas"], scale["max_replicas"]) == bounds
    assert (pool["min_instances"], pool["max_instances"]) == bounds


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--user-id", "a/b c"), "--user-id 'a/b c' cannot stand in the model's address"),
        (("--user-id", ""), "--user-id '' cannot stand"),
        (("--concurrency", 5, "--max-replicas", 2), "not the 5 asked for.*needs --max-replicas 3"),
        (("--min-replicas", 3, "--max-replicas", 2), "2 is below --min-replicas 3"),
        (("--gpus", "16xH200"), "16 GPUs are 2 machines"),
        (("--gpus", "16xH200", "--replicas", 2), "--replicas shares the GPUs of one machine"),
        (("--gpus", "8xH20", "--context", 32_768), "--gpu H20 --min-gpus 8` lists Clarifai's"),
        (("--gpus", "8xH200", "--cloud", "gcp"), "instance of cloud 'gcp' has 8xH200 is not known"),
        (("--precision", "ud-q2_k_xl"), "is for llama.cpp, not vLLM"),
    ],
)
def test_nothing_is_written_when_the_set_up_cannot_be(here, given, said):
    result = emit(*given)
    assert result.exit_code == 2, result.output
    assert_said(result, said)
    assert not (here / "deploy").exists()


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_verdict_is_no_and_nothing_is_written_when_the_plan_does_not_fit(here, form):
    result = emit("--gpus", "4xH200", *form)
    assert result.exit_code == 1, result.output
    assert_said(result, "no files are written")
    assert_said(result, "4xH200 do not hold Kimi K2.5 in INT4.*--gpus 8xH200")
    assert not (here / "deploy").exists()


def assert_said(result, pattern):
    assert re.search(pattern, " ".join(result.output.split())), result.output


def test_any_instance_is_taken_when_it_is_named(here):
    good("--gpus", "8xH20", "--context", 32_768, "--instance", "hn8", "--cloud", "vultr")
    assert read_yaml(here / "deploy/model/config.yaml")["compute"]["instance"] == "hn8"


def test_files_with_other_content_are_kept_when_not_told_to_overwrite(here):
    good()
    changed = here / "deploy/nodepool.yaml"
    changed.write_text("mine: true\n")
    refused = emit("--user-id", "me")
    assert refused.exit_code == 2
    assert_said(refused, "nodepool.yaml.*there with other content; --overwrite replaces them")
    assert changed.read_text() == "mine: true\n"
    changed.unlink()
    again = good()
    assert again.stdout.count("wrote ") == 1
    assert "wrote deploy/nodepool.yaml" in again.stdout
    assert "wrote deploy/deployment.yaml" in good("--user-id", "me", "--overwrite").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("kimi-k2.5", "--gpus", "8xH200", "--emit", "deploy"), "'kimi-k2.5' names none"),
        (("clarifai", "--instance", "p5"), "are about the files of --emit"),
    ],
)
def test_emitting_is_refused_when_it_is_not_about_clarifai(here, arguments, said):
    result = call("engine", "plan", *arguments)
    assert result.exit_code == 2
    assert_said(result, said)


def test_hosted_model_is_planned_for_its_own_gpus_when_nothing_is_emitted(here):
    result = call("engine", "plan", "clarifai", "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert (shown["gpus"], shown["served"]) == ("8xH200", None)


@pytest.fixture
def asked(here, monkeypatch, request):
    """A paper to ask about, and the shipped profile at a fake host, which may drop a field."""
    (here / "papers").mkdir()
    (here / "papers" / "a.txt").write_text("The house is red.\n")
    monkeypatch.setenv("CLARIFAI_PAT", TOKEN)
    with FakeClarifai(served={MODEL_URL}, drops=getattr(request, "param", "")) as host:
        shipped = read_yaml(REPOSITORY / "config/profiles/clarifai.yaml")
        del shipped["tokenizer"]
        here.joinpath("fake.yaml").write_text(
            dump_yaml({**shipped, "name": "fake", "base_url": host.url, "model": MODEL_URL})
        )
        here.joinpath("colours.yaml").write_text(PIPELINE)
        yield host


def ask(mode):
    return call("run", "colours.yaml", "--mode", mode)


@pytest.mark.parametrize(("mode", "switch"), [("instant", {"thinking": False}), ("thinking", None)])
def test_mode_is_switched_and_model_named_by_its_url_when_asked(asked, here, mode, switch):
    result = ask(mode)
    assert result.exit_code == 0, result.output
    (part,) = here.glob("out/records/stage=colour/*.parquet")
    (row,) = pq.ParquetFile(part).read().to_pylist()
    assert (row["answer"], row["mode_observed"]) == ("red", mode)
    (sent,) = asked.calls
    assert sent["model"] == MODEL_URL
    assert sent.get("chat_template_kwargs") == switch
    assert asked.headers[0]["Authorization"] == f"Bearer {TOKEN}"
    kept = [file for file in here.rglob("*") if file.is_file()]
    assert kept
    assert not [file for file in kept if TOKEN.encode() in file.read_bytes()]
    assert TOKEN not in result.output


@pytest.mark.parametrize("token", ["", "pat-wrong-1234"])
def test_one_message_names_the_key_when_it_is_wrong_or_missing(asked, monkeypatch, token):
    monkeypatch.setenv("CLARIFAI_PAT", token)
    result = ask("instant")
    assert result.exit_code in {1, 2}
    assert result.output.count("error:") == 1
    assert_said(result, "check the API key in CLARIFAI_PAT" if token else "CLARIFAI_PAT")
    assert not asked.calls
    assert "pat-wrong" not in result.output


def test_model_is_named_when_nobody_serves_it(asked):
    asked.served.clear()
    result = ask("instant")
    assert result.exit_code == 1
    assert_said(result, f"404: Model does not exist: {MODEL_URL}; check URL and model")


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (TOKEN, f"that it has {MODEL_URL} is not confirmed"),
        ("pat-wrong-1234", "check the API key.*export CLARIFAI_PAT=..."),
    ],
)
def test_doctor_checks_the_address_and_the_key_when_it_has_the_profile(
    asked, monkeypatch, token, said
):
    monkeypatch.setenv("CLARIFAI_PAT", token)
    result = call("doctor", "--engine", "fake.yaml")
    assert_said(result, said)
    assert token not in result.output


@pytest.mark.parametrize(
    ("asked", "status"), [("", "ok"), ("chat_template_kwargs", "fail")], indirect=["asked"]
)
def test_switch_that_the_gateway_drops_is_found_when_the_engine_is_checked(asked, status):
    result = call("engine", "check", "fake.yaml", "--context", 4096, "--concurrency", 1, "--json")
    (mode,) = [
        one for one in json.loads(result.stdout)["findings"] if one["check"] == "mode instant"
    ]
    assert mode["status"] == status, mode
