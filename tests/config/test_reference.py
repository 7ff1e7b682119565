"""The reference pages say what the models say, and their examples load."""

import re

import pytest
import yaml

from config.load import REPOSITORY, load_pipeline
from config.pipeline import PipelineConfig
from config.reference import PAGES, PIPELINE_EXAMPLE, pipeline_page
from engine.modes.sight import NOTES
from engine.profile import Profile
from engine.wire import WHY


def test_every_note_and_field_has_a_row_when_the_page_is_written():
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGES["docs/modes.md"](), re.MULTILINE)
    assert set({**NOTES, **WHY}.items()) <= set(rows)


@pytest.mark.parametrize("path", PAGES)
def test_page_is_what_the_models_say_when_it_is_written_anew(path):
    written = (REPOSITORY / path).read_text(encoding="utf-8")
    assert written == PAGES[path](), "run `make reference`"


def test_example_of_a_pipeline_loads_when_copied_from_the_page(tmp_path):
    file = tmp_path / "invoices.yaml"
    file.write_text(PIPELINE_EXAMPLE, encoding="utf-8")
    pipeline = load_pipeline(file)
    assert [stage.name for stage in pipeline.stages] == ["invoice", "summary"]
    fields = pipeline.stages[0].output["properties"]
    assert fields["state"] == {"enum": ["paid", "open", "unclear"]}
    assert fields["amount"]["type"] == ["string", "null"]


def test_example_of_a_profile_is_valid_when_copied_from_the_page():
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGES["docs/profile.md"](), re.DOTALL)
    assert Profile.model_validate(yaml.safe_load(text)).name == "our-cluster"


def test_every_key_has_a_row_when_the_page_is_written():
    rows = re.findall(r"^\| `(\w+)` \|", pipeline_page(), re.MULTILINE)
    assert set(PipelineConfig.model_fields) <= set(rows)


def test_settings_that_the_page_shows_are_taken_when_given(tmp_path):
    file = tmp_path / "invoices.yaml"
    file.write_text(PIPELINE_EXAMPLE, encoding="utf-8")
    settings = re.findall(r"--set ([\w.*]+=\w+)", pipeline_page())
    assert len(settings) == 3
    assert load_pipeline(file, settings=settings).stages[0].max_output_tokens == 300
