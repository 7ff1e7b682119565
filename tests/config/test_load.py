from pathlib import Path

import pytest

from config.errors import ConfigError
from config.load import (
    REPOSITORY,
    known_profiles,
    load_pipeline,
    load_profile,
    load_surroundings,
)
from engine.wire import WHY
from flows.run.prepare import check_fit

PIPELINE = """
name: invoices
source: in
sink: out
stages:
  - name: digest
    prompt: What is it?
    output: {type: object, properties: {title: {type: string}}}
"""


def write(tmp_path, text):
    file = tmp_path / "p.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "config" / "pipelines").glob("*.yaml")), ids=str
)
def test_every_pipeline_loads_when_shipped(file):
    assert load_pipeline(file).stages


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "config" / "profiles").glob("*.yaml")), ids=str
)
def test_every_profile_loads_under_its_file_name_when_shipped(file):
    assert load_profile(file.stem).name == file.stem


@pytest.mark.parametrize("name", known_profiles())
def test_reason_is_known_for_every_field_when_a_shipped_profile_sends_it(name):
    profile = load_profile(name)
    sent = {key for mode in profile.modes.values() for key in (*mode.sampling, *mode.wire)}
    assert sent <= set(WHY)


def test_stage_is_refused_when_the_model_cannot_stop_thinking(tmp_path):
    stage = load_pipeline(write(tmp_path, PIPELINE)).stages[0]
    with pytest.raises(ConfigError, match="instant"):
        check_fit(stage, load_profile("kimi-k3"))


def test_overrides_win_when_they_are_given(tmp_path):
    config = load_pipeline(write(tmp_path, PIPELINE), {"source": "s3://lake/in", "sink": None})
    assert (config.source, config.sink) == ("s3://lake/in", str(tmp_path / "out"))


def test_files_are_read_relative_to_the_pipeline_when_named(tmp_path):
    (tmp_path / "q.md").write_text("Which one?\nSay.", encoding="utf-8")
    (tmp_path / "s.json").write_text('{"type": "object", "properties": {"a": {"type": "string"}}}')
    text = PIPELINE.replace("What is it?", "q.md").replace(
        "{type: object, properties: {title: {type: string}}}", "s.json"
    )
    stage = load_pipeline(write(tmp_path, text)).stages[0]
    assert stage.prompt == "Which one?\nSay."
    assert list(stage.output["properties"]) == ["a"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("source:", "sorce:"), r"p\.yaml: sorce: unknown key; .*did you mean 'source'\?"),
        (
            ("prompt:", "promt:"),
            r"p\.yaml: stages\[0\]\.promt: unknown key; .*did you mean 'prompt'\?",
        ),
        (("What is it?", "gone.md"), r"stages\[0\]\.prompt: file 'gone\.md' cannot be read"),
        (("title:", "uri:"), "output field 'uri' is a column of every record; rename it"),
        (("type: object", "type: nonsense"), "output is not a JSON Schema"),
        (("name: digest", "name: Digest 1"), r"stages\[0\]\.name: String should match pattern"),
        (
            ("    prompt", "    needs: [topic]\n    prompt"),
            "needs 'topic', which is not a stage before it",
        ),
        (
            ("    prompt", "    over: document\n    prompt"),
            "over document needs at least one stage",
        ),
        (
            ("    prompt", "    mode: swarms\n    prompt"),
            r"stages\[0\]\.mode: Input should be 'instant'",
        ),
        (
            ("stages:", 'include: "*.txt"\nstages:'),
            r'include: should be a list, such as \["\*\.txt"\]$',
        ),
        (
            ("stages:", "budget: 5\nstages:"),
            "budget: should be keys with values; known keys: gpu_s",
        ),
        (("stages:", "stages: ["), "is not YAML"),
        (("name: invoices", "- 1"), "is not YAML|expected keys and values"),
    ],
)
def test_message_names_file_and_key_when_the_pipeline_is_wrong(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        load_pipeline(write(tmp_path, PIPELINE.replace(*change, 1)))


def test_message_has_one_line_when_the_only_stage_is_wrong(tmp_path):
    text = "name: one\nstages:\n  - {name: a, prompt: x, output: {b: string}, modee: instant}\n"
    with pytest.raises(ConfigError, match=r"stages\[0\].modee: unknown key") as caught:
        load_pipeline(write(tmp_path, text))
    assert len(str(caught.value).splitlines()) == 1


def test_message_names_the_profiles_when_the_engine_is_unknown():
    with pytest.raises(
        ConfigError, match="'embeded' is no profile; profiles: .*did you mean 'embedded'"
    ):
        load_profile("embeded")


def test_url_is_an_engine_when_it_is_given():
    assert load_profile("http://127.0.0.1:9/v1").base_url == "http://127.0.0.1:9/v1"


@pytest.mark.parametrize("scheme", ["https://", "HTTP://", ""])
def test_password_is_refused_and_not_shown_when_it_is_in_the_url(tmp_path, scheme):
    url = f"{scheme}me:sk-canary@host/v1"
    with pytest.raises(ConfigError, match="--engine: the URL of 'host' holds") as caught:
        load_profile(url)
    assert "canary" not in str(caught.value)
    for keys, where in (
        (f"engine: '{url}'", "engine"),
        (f"fallback: ['{url}']", "fallback\\[0\\]"),
    ):
        with pytest.raises(ConfigError, match=rf"p\.yaml: {where}: the URL of 'host'") as caught:
            load_pipeline(write(tmp_path, f"{PIPELINE}{keys}\n"))
        assert "canary" not in str(caught.value)
    with pytest.raises(ConfigError, match="the URL of 'host'") as caught:
        load_pipeline(write(tmp_path, PIPELINE), {"engine": url})
    assert "canary" not in str(caught.value)


def test_path_of_a_profile_is_absolute_when_the_command_line_gives_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, PIPELINE)
    assert load_pipeline(file, {"engine": "ours.yaml"}).engine == str(tmp_path / "ours.yaml")
    assert load_pipeline(file, settings=["engine=o.yaml"]).engine == str(tmp_path / "o.yaml")
    home = load_pipeline(write(tmp_path, f"{PIPELINE}engine: ~/o.yaml\n"))
    assert home.engine == str(Path.home() / "o.yaml")


PROFILE = "name: ours\nbase_url: http://gpu/v1\nmodes: {instant: {}}\n"


def test_profile_is_found_beside_the_pipeline_when_it_names_the_file(tmp_path):
    (tmp_path / "ours.yaml").write_text(PROFILE, encoding="utf-8")
    text = PIPELINE + "engine: ours.yaml\nfallback: [ours.yaml, moonshot, 'http://h/x.yaml']\n"
    pipeline = load_pipeline(write(tmp_path, text))
    assert load_profile(pipeline.engine).base_url == "http://gpu/v1"
    assert pipeline.fallback == (str(tmp_path / "ours.yaml"), "moonshot", "http://h/x.yaml")


def test_profile_is_known_by_name_when_its_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "ours.yaml").write_text(PROFILE, encoding="utf-8")
    monkeypatch.setenv("HEADRACE_PROFILES", str(tmp_path))
    assert load_profile("ours").base_url == "http://gpu/v1"


def test_profile_is_refused_when_its_name_is_not_the_files(tmp_path):
    (tmp_path / "theirs.yaml").write_text(PROFILE, encoding="utf-8")
    with pytest.raises(ConfigError, match="name: 'ours'; expected the file's own, 'theirs'"):
        load_profile(str(tmp_path / "theirs.yaml"))


def test_surroundings_follow_the_environment_when_it_says_something():
    plain = load_surroundings({"HOME": "/home/u"})
    assert plain.cache == Path("/home/u/.cache/headrace")
    assert plain.prefect_api_url is None
    told = load_surroundings({"HEADRACE_CACHE": "/c", "PREFECT_API_URL": "http://p/api"})
    assert (told.cache, told.prefect_api_url) == (Path("/c"), "http://p/api")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "[names.txt]",
            "'names.txt' in a list is the name of a file.* without a list: `words: names.txt`",
        ),
        (
            "[Ada Lind, staff/names.CSV]",
            "'staff/names.CSV' in a list .* without a list: `words: names.txt`",
        ),
        ("names.csv", "'names.csv' is neither a list nor the name of a .txt file"),
        ("names", "'names' is neither a list nor the name of a .txt file"),
        ("'Emil Varga, Lena Okafor'", "'Emil Varga, Lena Okafor' is neither .* write `words: "),
    ],
)
def test_words_to_mask_are_refused_when_they_are_no_list_and_no_text_file(tmp_path, words, says):
    (tmp_path / "names.txt").write_text("Ada Lind\n", encoding="utf-8")
    file = tmp_path / "p.yaml"
    head = "name: p\nstages: [{name: kind, prompt: What?, output: {kind: string}}]\n"
    file.write_text(f"{head}policy: {{mask: {{words: {words}}}}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"p.yaml: policy.mask.words: {says}"):
        load_pipeline(file)


def test_words_to_mask_come_from_a_file_and_all_documents_may_be_sensitive(tmp_path):
    (tmp_path / "names.txt").write_text("Ada Lind\n\n  Emil Varga \n", encoding="utf-8")
    file = tmp_path / "p.yaml"
    head = "name: p\nstages: [{name: kind, prompt: What?, output: {kind: string}}]\n"
    policy = "policy: {sensitive: true, on_premises: [own.yaml], mask: {words: names.txt}}\n"
    file.write_text(head + policy, encoding="utf-8")
    found = load_pipeline(file).policy
    assert found.mask.words == ("Ada Lind", "Emil Varga")
    assert found.is_all_sensitive
    assert found.on_premises == (str(tmp_path / "own.yaml"),)
    file.write_text(head + "policy: {on_premises: ['http://u:pw@host/v1']}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"on_premises\[0\].*holds a user name") as caught:
        load_pipeline(file)
    assert "pw" not in str(caught.value)
