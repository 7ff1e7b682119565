import json
import re

import pytest

from config.errors import ConfigError
from config.graph import by_field, compile_when
from config.load import load_pipeline

KIND = {"name": "kind", "prompt": "What is it?", "output": "{kind: invoice|letter, sure: boolean?}"}
INVOICE = {
    "name": "invoice",
    "needs": "[kind]",
    "prompt": "Which one?",
    "output": "{vendor: string, amount: decimal, items: [string], claim: cited, score: number?}",
}
CORPUS = {"name": "all", "over": "corpus", "needs": "[invoice]", "output": "{vendor: string}"}
GROUP = CORPUS | {"over": "group", "prompt": "What?"}


def write(tmp_path, *stages):
    """Write a pipeline whose stages are given as keys and YAML."""
    lines = ["name: demo", "source: in", "sink: out", "stages:"]
    for stage in stages:
        keys = [f"{key}: {value}" for key, value in stage.items()]
        lines += [f"  - {keys[0]}", *(f"    {key}" for key in keys[1:])]
    file = tmp_path / "p.yaml"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def refusal(tmp_path, *stages):
    with pytest.raises(ConfigError) as caught:
        load_pipeline(write(tmp_path, *stages))
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_all_problems_are_told_at_once_when_there_are_several(tmp_path):
    lines = refusal(
        tmp_path,
        KIND | {"prompt": "'{{ chunk }}'"},
        INVOICE | {"when": "upstream.kind.kin == 'a'"},
        CORPUS | {"compute": "SELECT vendor FROM nowhere"},
    ).split("\n")
    assert [line.split(": stage '")[0] for line in lines] == [
        "p.yaml: stages[0].prompt",
        "p.yaml: stages[1].when",
        "p.yaml: stages[2].compute",
    ]


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ("[knid]", "stage 'invoice': needs 'knid', .* before it: kind; did you mean 'kind'"),
        ("[invoice]", "needs itself"),
        ("[kind, kind]", "needs 'kind' twice"),
        ("[last]", "needs 'last', which is not a stage before it; put 'last' in front"),
    ],
)
def test_needs_are_refused_when_they_are_not_stages_before(tmp_path, needs, message):
    said = refusal(tmp_path, KIND, INVOICE | {"needs": needs}, KIND | {"name": "last"})
    assert said.startswith("p.yaml: stages[1].needs: stage 'invoice': ")
    assert re.search(message, said)


def test_cycle_is_named_when_stages_need_each_other(tmp_path):
    said = refusal(
        tmp_path,
        KIND | {"name": "a", "needs": "[c]"},
        KIND | {"name": "b", "needs": "[a]"},
        KIND | {"name": "c", "needs": "[b]"},
    )
    assert said.startswith("p.yaml: stages[0].needs: stage 'a': a needs c needs b needs a: ")
    assert "\n" not in said


def test_stage_is_refused_when_what_it_needs_comes_later(tmp_path):
    late = KIND | {"name": "late", "over": "document", "needs": "[kind]"}
    said = refusal(tmp_path, KIND, late, INVOICE | {"needs": "[late]"})
    assert "stages[2].needs: stage 'invoice': is over chunk and cannot need 'late'" in said


def test_name_is_refused_when_two_stages_have_it(tmp_path):
    assert "stages[1].name: stage 'kind': is defined twice" in refusal(tmp_path, KIND, KIND)


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("upstream.kind.kind ==", "is no expression: "),
        ("upstream.kind.kind == 'a' }} b", "is left over behind|is no expression"),
        (
            "upstream.kin.kind == 'a'",
            "'kin' is not in `needs`; those are kind; did you mean 'kind'",
        ),
        ("upstream.kind.kin == 'a'", "no such field; its fields: kind, sure; did you mean 'kind'"),
        ("upstream['kind']['kin'] == 'a'", "no such field; its fields: kind, sure"),
        (
            "upstream.kind == 'a'",
            "`upstream.kind` is a whole answer; name a field of it: kind, sure",
        ),
        ("upstream == 'a'", "`upstream` needs a stage and a field behind it"),
        ("kind == 'invoice'", "'kind' is no name here; it may use `upstream.<stage>.<field>`"),
        ("upstream.kind.kind == invoice", "'invoice' is no name here"),
        ("upstream.kind.kind.upper() == 'A'", "it cannot call"),
        ("upstream.kind.kind | uper == 'A'", "No filter named 'uper'"),
        ("upstream.kind.kind", "is neither true nor false; compare it"),
        ("upstream.kind.sure and 'yes'", "'yes' is neither true nor false"),
    ],
)
def test_when_is_refused_when_it_says_what_it_cannot(tmp_path, when, message):
    said = refusal(tmp_path, KIND, INVOICE | {"when": '"' + when + '"'})
    assert said.startswith("p.yaml: stages[1].when: stage 'invoice': ")
    assert any(part in said for part in message.split("|"))


def test_when_is_refused_when_it_compares_a_decimal_with_a_number(tmp_path):
    last = KIND | {"name": "last", "needs": "[invoice]", "when": "upstream.invoice.amount > 1000"}
    assert "write `upstream.invoice.amount | float`" in refusal(tmp_path, KIND, INVOICE, last)
    load_pipeline(
        write(tmp_path, KIND, INVOICE, last | {"when": "upstream.invoice.amount | float > 1000"})
    )


@pytest.mark.parametrize(
    ("when", "answer", "holds"),
    [
        ("upstream.kind.kind == 'invoice'", {"kind": "invoice"}, True),
        ("upstream['kind'].kind in ['a', 'b']", {"kind": "b"}, True),
        ("upstream.kind.sure", {"sure": None}, False),
        ("upstream.kind.sure is none", {"sure": None}, True),
        ("upstream.kind.sure == none", {}, True),
        ("upstream.kind.score > 3", {"score": None}, False),
        ("not upstream.kind.score > 3", {"score": None}, False),
        ("upstream.kind.score > 3 or upstream.kind.kind == 'a'", {"score": 4, "kind": "b"}, True),
        ("upstream.kind.items | length > 1", {"items": ["a", "b"]}, True),
        ("upstream.kind.items", {"items": []}, False),
        ("upstream.kind.party.name == 'x'", {"party": {"name": "x"}}, True),
        ("upstream.kind.party.name == 'x'", {"party": None}, False),
    ],
)
def test_when_is_told_when_answers_are_there(when, answer, holds):
    assert compile_when(when)({"kind": answer}) is holds


def test_when_says_why_when_values_cannot_be_compared():
    with pytest.raises(ValueError, match="when 'upstream.a.b > 3' cannot be told"):
        compile_when("upstream.a.b > 3")({"a": {"b": "x"}})


def test_when_reaches_nothing_when_it_asks_for_pythons_own():
    for text in ("upstream.a.b.__class__ is defined", "upstream.a.__class__ is not none"):
        assert compile_when(text)({"a": {"b": "x"}}) is False


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("One {% if %}", "line 1: Expected an expression"),
        ("{{ upstream.kind.kin }}", "no such field; its fields: kind, sure; did you mean 'kind'?"),
        ("{{ upstream['kind']['kin'] }}", "no such field"),
        ("{{ upstream.topic.kind }}", "'topic' is not in `needs`; those are kind"),
        ("{{ document }}", "'document' is no name that a prompt knows; it may use `upstream."),
        ("{{ group }}", "'group' is no name that a prompt knows"),
        ("{{ upstrem.kind }}", "did you mean 'upstream'?"),
        ("{% include 'x' %}", "cannot include"),
    ],
)
def test_prompt_is_refused_when_it_names_what_is_not_there(tmp_path, prompt, message):
    said = refusal(tmp_path, KIND, INVOICE | {"prompt": f'"{prompt}"'})
    assert said.startswith("p.yaml: stages[1].prompt: stage 'invoice': ")
    assert message in said


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ upstream.kind.kind }} {{ upstream['kind']['sure'] }}",
        "{% for name, value in upstream.kind | items %}{{ name }}{{ loop.index }}{% endfor %}",
        "{{ upstream | tojson }}{{ range(3) | list }}",
        "{% set x = upstream.kind %}{{ x.kind }}",
    ],
)
def test_prompt_is_taken_when_its_names_are_there(tmp_path, prompt):
    load_pipeline(write(tmp_path, KIND, INVOICE | {"prompt": f'"{prompt}"'}))


def test_upstream_is_a_list_when_the_stage_is_over_documents(tmp_path):
    stage = KIND | {"name": "doc", "over": "document", "needs": "[kind]"}
    said = refusal(tmp_path, KIND, stage | {"prompt": "'{{ upstream.kind.kind }}'"})
    assert "stages[1].prompt: stage 'doc': `upstream.kind` is a list of answers here" in said
    assert "'topic' is not in `needs`" in refusal(
        tmp_path, KIND, stage | {"prompt": "'{{ upstream.topic | length }}'"}
    )
    for prompt in (
        "{% for a in upstream.kind %}{{ a.kind }}{% endfor %}",
        "{{ upstream.kind | map(attribute='kind') | join(', ') }} {{ upstream.kind[0].kind }}",
    ):
        load_pipeline(write(tmp_path, KIND, stage | {"prompt": f'"{prompt}"'}))


def test_upstream_is_refused_when_answers_are_shown_as_lines(tmp_path):
    group = GROUP | {"by": "vendor"}
    load_pipeline(write(tmp_path, KIND, INVOICE, group | {"prompt": "'Who is {{ group }}?'"}))
    corpus = group | {"over": "corpus"}
    del corpus["by"]
    for stage in (group, corpus):
        said = refusal(tmp_path, KIND, INVOICE, stage | {"prompt": "'{{ upstream.invoice }}'"})
        assert "the answers stand in front of the question as lines" in said
        said = refusal(tmp_path, KIND, INVOICE, stage | {"combine": "'{{ upstream.invoice }}'"})
        assert "stages[2].combine: stage 'all': `upstream` has no value here" in said
    said = refusal(tmp_path, KIND, INVOICE, corpus | {"prompt": "'{{ group }}'"})
    assert "'group' is no name that a prompt knows; it may use none here" in said


def test_upstream_is_refused_when_there_are_no_needs(tmp_path):
    said = refusal(tmp_path, KIND | {"prompt": "'{{ upstream.x.y }}'"})
    assert "`upstream` has no value here: the stage has no `needs`" in said


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("vendr", "is no field of its needs; fields: .*did you mean 'vendor'"),
        ("invoice.gone", "is no field of its needs"),
        ("items", "is of type list"),
        ("claim", "is of type cited"),
        ("score", "is of type number"),
    ],
)
def test_by_is_refused_when_it_makes_no_groups(tmp_path, by, message):
    said = refusal(tmp_path, KIND, INVOICE, GROUP | {"by": by})
    assert said.startswith("p.yaml: stages[2].by: stage 'all': by ")
    assert re.search(message, said)


def test_by_names_its_stage_when_several_have_the_field(tmp_path):
    other = INVOICE | {"name": "bill"}
    group = GROUP | {"needs": "[invoice, bill]", "by": "vendor"}
    said = refusal(tmp_path, KIND, INVOICE, other, group)
    assert "a field of several needs; write invoice.vendor or bill.vendor" in said
    for by, found in (
        ("bill.vendor", ("bill", "vendor")),
        ("invoice.amount", ("invoice", "amount")),
    ):
        stages = load_pipeline(write(tmp_path, KIND, INVOICE, other, group | {"by": by})).stages
        assert by_field(stages[3], {stage.name: stage for stage in stages}) == found


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELEC vendor FROM invoice", "is no query"),
        ("DROP TABLE invoice", "is no query"),
        ("SELECT vendor FROM", "sql parser error"),
        ("SELECT vendor FROM nowhere", "'nowhere' was not found; its tables: invoice"),
        ("SELECT vender AS vendor FROM invoice", 'unable to find column "vender"'),
        ("SELECT amount FROM invoice", "vendor missing; amount not in `output`"),
        ("SELECT vendor, 1 AS n FROM invoice", "n not in `output`"),
        ("SELECT vendor AS vendr FROM invoice", "did you mean 'vendor'?"),
        ("SELECT vendor FROM read_csv('/etc/passwd')", "read_csv would read outside the corpus"),
        ('SELECT vendor FROM "read_csv" /* x */ (1)', "read_csv would read outside the corpus"),
    ],
)
def test_sql_is_refused_when_it_gives_other_columns(tmp_path, sql, message):
    said = refusal(tmp_path, KIND, INVOICE, CORPUS | {"compute": json.dumps(sql)})
    assert said.startswith("p.yaml: stages[2].compute: stage 'all': ")
    assert message in said


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT vendor, ARRAY_AGG(row_key) AS row_keys FROM invoice GROUP BY vendor",
        "SELECT vendor, row_key FROM invoice",
        "WITH best AS (SELECT * FROM invoice WHERE amount > 3) SELECT vendor FROM best",
    ],
)
def test_sql_is_taken_when_its_columns_are_the_fields(tmp_path, sql):
    load_pipeline(write(tmp_path, KIND, INVOICE, CORPUS | {"compute": sql}))


def test_sql_is_read_from_its_file_when_it_is_named(tmp_path):
    (tmp_path / "q.sql").write_text("SELECT vendor, 1 AS n FROM invoice", encoding="utf-8")
    said = refusal(tmp_path, KIND, INVOICE, CORPUS | {"compute": "q.sql"})
    assert "stages[2].compute: stage 'all': " in said
    assert "n not in `output`" in said


def test_columns_of_tables_are_not_asked_for_when_nothing_is_read_yet(tmp_path):
    stage = CORPUS | {"tables": '{suppliers: "lists/a.xlsx#2026"}'}
    join = "SELECT s.vendor FROM invoice i JOIN suppliers s ON i.vendor = s.name"
    load_pipeline(write(tmp_path, KIND, INVOICE, stage | {"compute": join}))
    for sql in (f"{join} WHERE", join.replace("suppliers", "supplers")):
        said = refusal(tmp_path, KIND, INVOICE, stage | {"compute": sql})
        assert "stages[2].compute: stage 'all': " in said


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ("{invoice: a.csv}", "has the name of a stage in `needs`; rename the table"),
        ("{a: /etc/passwd.csv}", "expected a path below the source"),
        ("{a: x/../../b.csv}", "expected a path below the source"),
        ("{a: 's3://other/b.csv'}", "expected a path below the source"),
        ("{a: '#Sheet'}", "expected a path below the source"),
    ],
)
def test_table_is_refused_when_it_is_not_of_the_corpus(tmp_path, tables, message):
    stage = CORPUS | {"compute": "SELECT vendor FROM invoice", "tables": tables}
    said = refusal(tmp_path, KIND, INVOICE, stage)
    name = tables[1:].partition(":")[0]
    assert said.startswith(f"p.yaml: stages[2].tables.{name}: stage 'all': table {name!r} ")
    assert message in said
