"""`headrace decide`: one clear verdict, with its reasons, whatever is asked for."""

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from config.answers import Answers, load_answers
from config.errors import ConfigError
from flows.decision.verdict import as_lines, decide

HEADRACE = str(Path(sys.executable).with_name("headrace"))

CREW = {"operators": 2, "on_call": True, "within_s": 600}
MONTH = {"prompt_tokens": 2_000_000_000, "output_tokens": 50_000_000}
RENT = {"gpus": "8xH200", "gpu_hour_usd": 3.5}


def decided(**answers):
    return decide(Answers(**answers))


def checks(found, way, topic):
    (of,) = [one for one in found["ways"] if one["way"] == way]
    return [one for one in of["checklist"] if one["topic"] == topic]


def test_host_is_the_verdict_when_nothing_is_sensitive_and_the_price_is_in_the_budget():
    found = decided(work=("images",), sensitive="none", budget_usd=2000, **MONTH, within_s=86_400)
    assert (found["verdict"], found["choice"], found["rung"]) == ("go", "moonshot", "pilot")
    (priced,) = checks(found, "moonshot", "budget")
    # 2,000 x 0.60 + 50 x 3.00; the batch API takes 0.6 of it.
    assert "1,350 USD" in priced["reason"]
    assert "810 USD through its batch API" in priced["reason"]


def test_budget_speaks_against_a_host_when_it_is_too_small():
    found = decided(work=("images",), sensitive="none", budget_usd=500, **MONTH, within_s=600)
    assert checks(found, "moonshot", "budget")[0]["holds"] is False
    assert found["choice"] != "moonshot"


def test_sensitive_documents_stay_at_home_when_only_some_are():
    found = decided(
        work=("summaries",), sensitive="some", budget_usd=30_000, **MONTH, **CREW, **RENT
    )
    assert found["rung"] == "hybrid"
    assert found["choice"] == "kimi-k2.5 and moonshot"
    assert "headrace plan ladder_hybrid" in found["next"][-1]


def test_own_cluster_is_the_verdict_when_all_documents_are_sensitive():
    found = decided(
        work=("summaries",), sensitive="all", budget_usd=30_000, **MONTH, **CREW, **RENT
    )
    assert (found["verdict"], found["choice"]) == ("go", "kimi-k2.5")
    assert found["rung"] == "autonomous"
    assert checks(found, "moonshot", "compliance")[0]["holds"] is False
    agentic = decided(work=("swarm",), sensitive="all", budget_usd=30_000, **MONTH, **CREW, **RENT)
    assert agentic["rung"] == "agentic"


def test_four_h200_do_not_do_and_the_reason_is_one_sentence():
    found = decided(gpus="4xH200", hosting="self_hosted", model="kimi-k2.5")
    assert found["verdict"] == "no"
    assert "4xH200 do not hold Kimi K2.5 in INT4" in found["sentence"]
    assert found["next"] == [
        "headrace engine plan kimi-k2.5 --gpus 8xH200 shows whether twice as many do"
    ]


CONTRADICTIONS = [
    (
        {"certifications": ("SOC 2",), "hosting": "self_hosted"},
        "a certificate belongs to whoever runs the machines",
    ),
    (
        {"certifications": ("ISO 27001",), "model": "kimi-k2.5", "hosting": "api"},
        "the data sheets of moonshot and clarifai have no such certificate",
    ),
    ({"sensitive": "all", "hosting": "api"}, "nothing may leave, and everything would"),
    ({"gpus": "none", "hosting": "self_hosted"}, "self-hosted, and no GPUs"),
    ({"model": "kimi-k2.5", "context_tokens": 400_000}, "400,000 tokens at once: it takes 262,144"),
    (
        {"model": "kimi-k2.5", "context_tokens": 400_000, "hosts": ("moonshot", "moonshot-k3")},
        "Kimi K2.5, and 400,000 tokens at once: it takes 262,144",
    ),
]


@pytest.mark.parametrize(("answers", "sentence"), CONTRADICTIONS)
def test_contradicting_requirements_get_one_verdict_and_what_to_give_up(answers, sentence):
    found = decided(**answers)
    assert found["verdict"] == "contradiction"
    assert sentence in found["sentence"]
    assert found["choice"] is None
    assert all(found["next"])


def test_engines_that_see_too_little_at_once_are_none():
    found = decided(work=("reasoning",), sensitive="none", context_tokens=400_000)
    assert found["choice"] == "proprietary"
    held = {way["way"]: way["holds"] for way in found["ways"]}
    assert [held[name] for name in ("moonshot", "clarifai", "kimi-k2.5")] == [False] * 3
    (told,) = checks(found, "moonshot", "model")
    assert told["reason"].endswith("400,000 tokens at once, moonshot takes 262,144")


def test_engines_of_longer_context_are_found_when_they_are_named():
    found = decided(
        sensitive="none", context_tokens=400_000, engine="kimi-k3", hosts=("moonshot-k3",)
    )
    assert checks(found, "moonshot-k3", "model")[0]["holds"] is True
    assert checks(found, "kimi-k3", "model")[0]["holds"] is True


@pytest.mark.parametrize(
    "named", [{"engine": "kimi-k3"}, {"hosts": ("moonshot-k3",)}], ids=["engine", "host"]
)
def test_named_engine_comes_before_an_unknown_one_when_it_sees_enough(named):
    found = decided(work=("reasoning",), sensitive="none", context_tokens=400_000, **named)
    (name,) = [named["engine"]] if "engine" in named else named["hosts"]
    assert (found["choice"], found["model"]["choice"]) == (name, "named engine")
    assert found["model"]["reason"].endswith(f"of the engines named, {name} takes 1,048,576")


@pytest.mark.parametrize(("context", "enough"), [(32_768, True), (32_769, False)])
def test_small_model_is_refused_when_a_question_must_see_more_than_it_takes(context, enough):
    found = decided(model="small", sensitive="all", gpus="1xL20", context_tokens=context, **CREW)
    assert found["verdict"] == ("go" if enough else "no")
    assert checks(found, "small", "model")[0]["holds"] is enough


@pytest.mark.parametrize(
    ("given", "said", "options"),
    [
        ({"prompt_tokens": 10**9}, "output tokens", "--output-tokens"),
        ({"output_tokens": 10**9}, "prompt tokens", "--prompt-tokens"),
        ({}, "prompt and output tokens", "--prompt-tokens, --output-tokens"),
    ],
)
def test_budget_asks_for_the_tokens_that_are_missing_only(given, said, options):
    (priced,) = checks(decided(budget_usd=5, **given), "moonshot", "budget")
    assert priced["reason"] == f"{said} a month were not said"
    assert priced["todo"].endswith(f": {options}")


def test_prices_are_asked_of_the_host_when_its_profile_has_none():
    (priced,) = checks(decided(), "clarifai", "budget")
    assert priced["todo"].startswith("ask Clarifai for its prices")


def test_certified_and_self_hosted_is_none_when_ones_own_operations_are_certified():
    found = decided(
        certifications=("SOC 2",),
        own_certifications=("SOC2 Type II",),
        hosting="self_hosted",
        sensitive="all",
        work=("summaries",),
        budget_usd=30_000,
        **CREW,
        **RENT,
    )
    assert found["verdict"] == "go"


def test_certified_host_is_the_verdict_when_one_is_asked_for():
    found = decided(certifications=("SOC 2",), work=("summaries",), sensitive="none")
    assert found["choice"] == "clarifai"
    against = decided(certifications=("SOC 2",), hosting="self_hosted")
    assert against["next"][0].endswith("or take a certified host: clarifai")


def test_certified_without_more_is_a_host_that_is_not_known_yet():
    found = decided(certifications=("ISO 27001",), work=("summaries",), sensitive="none")
    assert found["choice"] == "proprietary"
    assert found["verdict"] == "open"
    assert any("ask for ISO 27001" in one for one in found["next"])


def test_certified_host_is_for_the_rest_only_when_some_documents_must_stay():
    found = decided(sensitive="some", certifications=["SOC 2"], gpus="8xH200")
    assert found["choice"] == "clarifai"
    assert "for what is not sensitive only" in found["sentence"]


def test_own_operations_come_first_when_nothing_may_leave():
    found = decided(sensitive="all", certifications=["SOC 2"])
    assert found["verdict"] == "no"
    assert "yours have none" in found["sentence"]
    assert found["next"][0].startswith("have your own operations certified")


@pytest.mark.parametrize("gpus", ["8xXYZ", "8xH200+2xA100-80"])
def test_gpus_that_cannot_be_are_refused(gpus):
    with pytest.raises(ValueError, match="XYZ|mixes"):
        decided(gpus=gpus)


def test_small_model_is_the_choice_when_the_work_is_plain():
    found = decided(work=("extraction",), gpus="1xH100", **CREW)
    assert found["model"]["choice"] == "small"
    assert found["choice"] == "small"


def test_gpus_are_too_few_when_a_month_is_too_short():
    found = decided(**RENT, prompt_tokens=10**12, output_tokens=10**10, budget_usd=10**9)
    (cost,) = checks(found, "kimi-k2.5", "budget")
    assert cost["holds"] is False
    assert "hours of the 730 that a month has" in cost["reason"]


def test_what_is_not_said_is_open_and_named():
    found = decided()
    assert found["verdict"] == "open"
    assert found["missing"]
    lines = as_lines(found)
    assert lines[0].startswith("verdict  open")
    assert any("--within SECONDS" in line for line in lines)


def test_answers_come_from_a_file_with_options_on_top(tmp_path):
    file = tmp_path / "answers.yaml"
    file.write_text("work: [agents]\nbudget_usd: 10\noperators: 3\n", encoding="utf-8")
    answers = load_answers(file, {"budget_usd": 20.0, "gpus": None})
    assert (answers.work, answers.budget_usd, answers.operators) == (("agents",), 20.0, 3)
    file.write_text("operator: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown key.*did you mean 'operators'"):
        load_answers(file, {})


def test_sentences_hang_below_their_labels_on_a_terminal_and_are_whole_in_a_pipe():
    command = [HEADRACE, "decide", "--work", "agents", "--sensitive", "all", "--gpus", "4xH200"]
    piped = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    assert max(map(len, piped.splitlines())) > 120
    lead, follow = pty.openpty()
    env = os.environ | {"COLUMNS": "60", "TERM": "xterm"}
    shown = b""
    with subprocess.Popen(command, stdout=follow, stderr=follow, env=env):
        os.close(follow)
        with suppress(OSError):
            while data := os.read(lead, 65_536):
                shown += data
    os.close(lead)
    lines = shown.decode().replace("\r", "").splitlines()
    assert max(map(len, lines)) <= 60
    verdict = next(number for number, line in enumerate(lines) if line.startswith("verdict  "))
    assert lines[verdict + 1].startswith(" " * 9)
    assert " ".join(shown.decode().split()) == " ".join(piped.split())


def test_options_are_named_as_the_keys_of_certificates():
    told = subprocess.run(
        [HEADRACE, "decide", "--certification", "SOC 2", "--own-certification", "SOC 2 Type 2", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    answers = json.loads(told.stdout)["answers"]
    assert answers["certifications"] == ["SOC 2"]
    assert answers["own_certifications"] == ["SOC 2 Type 2"]


def test_command_prints_one_object_or_says_what_is_wrong():
    def run(*options):
        return subprocess.run(
            [HEADRACE, "decide", *options], capture_output=True, text=True, check=False
        )

    told = run("--gpus", "none", "--hosting", "self_hosted", "--json")
    assert told.returncode == 1, told.stderr
    assert json.loads(told.stdout)["verdict"] == "contradiction"
    refused = run("--sensitive", "all", "--gpus", "none")
    assert (refused.returncode, refused.stdout.startswith("verdict  no")) == (1, True)
    undecided = run()
    assert (undecided.returncode, undecided.stdout.startswith("verdict  open")) == (0, True)
    wrong = run("--work", "dancing")
    assert wrong.returncode == 2
    assert "work[0]" in wrong.stderr
    assert run("--host", "moonshott").returncode == 2
