import pyarrow as pa
import pytest

from config.errors import ConfigError
from config.load import load_pipeline
from config.shorthand import parse_fields
from connectors.sinks.columns import arrow_type
from connectors.sinks.parquet import record_schema

FIELDS = (
    "vendor: string, amount: decimal?, due: date, tags: [string], kind: letter|bill?, says: line"
)


def test_fields_become_typed_columns_when_written_in_short():
    schema = parse_fields(FIELDS, "--fields")
    columns = {name: arrow_type(spec) for name, spec in schema["properties"].items()}
    assert columns == {
        "vendor": pa.string(),
        "amount": pa.decimal128(38, 9),
        "due": pa.date32(),
        "tags": pa.list_(pa.string()),
        "kind": pa.string(),
        "says": pa.string(),
    }
    assert schema["required"] == list(columns)
    assert schema["properties"]["kind"]["enum"] == ["letter", "bill", None]
    assert schema["properties"]["amount"]["type"] == ["string", "null"]


def test_nested_fields_become_structs_when_written_in_short():
    schema = parse_fields(
        "parties: [{name: string, role: buyer|seller}], total: {net: number}", "x"
    )
    kinds = {field.name: field.type for field in record_schema(schema)}
    assert kinds["parties"] == pa.list_(pa.struct([("name", pa.string()), ("role", pa.string())]))
    assert kinds["total"] == pa.struct([("net", pa.float64())])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vendor: sting", r"--fields\.vendor: unknown type 'sting'; .*did you mean 'string'\?"),
        ("vendor", "is no list of fields|unknown"),
        ("", "is no list of fields"),
        ("1st: string", "field name '1st' must be letters"),
        ("tags: [string, date]", "a list has one type"),
        ("a: string, a: date", "is no list of fields"),
        ("who: string,, what: string", "is no list of fields"),
    ],
)
def test_message_says_what_to_write_when_a_field_is_wrong(text, message):
    if text == "vendor":
        assert parse_fields(text, "--fields")["properties"]["vendor"]["type"] == "string"
        return
    with pytest.raises(ConfigError, match=message):
        parse_fields(text, "--fields")


def write(tmp_path, output):
    file = tmp_path / "p.yaml"
    file.write_text(
        f"name: p\nstages:\n  - name: a\n    prompt: What?\n    output: {output}\n",
        encoding="utf-8",
    )
    return file


def test_output_may_be_short_or_a_schema_or_a_file_when_a_pipeline_is_loaded(tmp_path):
    short = load_pipeline(write(tmp_path, "{party: string, due: date?, agreed: yes|no}"))
    assert list(short.stages[0].output["properties"]) == ["party", "due", "agreed"]
    schema = load_pipeline(write(tmp_path, "{type: object, properties: {type: {type: string}}}"))
    assert list(schema.stages[0].output["properties"]) == ["type"]
    (tmp_path / "s.yaml").write_text("party: string\ndue: date?\n", encoding="utf-8")
    file = load_pipeline(write(tmp_path, "s.yaml"))
    assert list(file.stages[0].output["properties"]) == ["party", "due"]


def test_settings_reach_stages_by_name_when_given(tmp_path):
    file = write(tmp_path, "{party: string}")
    settings = ["chunk.max_tokens=500", "stages.a.max_output_tokens=99", 'include=["**/*.pdf"]']
    config = load_pipeline(file, {"stages.*.mode": "instant"}, settings)
    assert config.chunk.max_tokens == 500
    assert config.stages[0].max_output_tokens == 99
    assert config.include == ("**/*.pdf",)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("chunk.max_tokens", "expected key=value"),
        ("chunk.max_token=5", r"chunk\.max_token: unknown key; .*did you mean 'max_tokens'"),
        ("stages.b.prompt=x", r"there is no 'stages\.b'; stages are named"),
        ("chunk.max_tokens=five", r"chunk\.max_tokens: Input should be a valid integer"),
        ("include=[a", "the value is not YAML"),
    ],
)
def test_message_names_the_key_when_a_setting_is_wrong(tmp_path, setting, message):
    with pytest.raises(ConfigError, match=message):
        load_pipeline(write(tmp_path, "{party: string}"), settings=[setting])
