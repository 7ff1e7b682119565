"""Writes docs/pipeline.md and docs/profile.md from the models, and the tables of docs/modes.md.

`python -m config.reference` prints them, `--write` puts them into docs/; a test compares them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from config.load import REPOSITORY
from config.pipeline import PipelineConfig
from engine.modes.sight import NOTES
from engine.profile import Profile
from engine.wire import WHY

_WORDS: Mapping[object, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Any: "anything",
}

_AS_WRITTEN: Mapping[tuple[str, str], str] = {
    ("PipelineConfig", "shared"): "texts or file names, by name",
    ("StageConfig", "prompt"): "text, or the name of a `.md`, `.j2` or `.txt` file",
    ("StageConfig", "combine"): "text, or the name of a `.md`, `.j2` or `.txt` file",
    ("StageConfig", "compute"): "text, or the name of a `.sql` file",
    ("PolicyConfig", "sensitive"): "list of globs, or `true`",
    ("MaskConfig", "words"): "list of texts, or the name of a `.txt` file",
    ("BatchApiConfig", "window"): "hours or days, such as `24h`",
    ("BatchLimits", "min_window"): "hours or days, such as `12h`",
    ("BatchLimits", "max_window"): "hours or days, such as `7d`",
    ("ReportConfig", "template"): "`briefing`, or the name of a folder",
    ("StageConfig", "output"): "fields in short, a JSON Schema, or the name of a file with one",
}
"""Types of keys that say more than their models, such as those whose files the loader reads in."""

PIPELINE_EXAMPLE = """\
name: invoices                        # lower-case letters, digits and _
source: s3://lake/invoices            # or a folder; --source overrides it
sink: s3://lake/answers               # or a folder; outside the source
include: ["**/*.pdf", "**/*.xlsx"]
engine: embedded                      # a profile, or the URL of an OpenAI-compatible endpoint
shared:                               # in front of every request, cached by the engine
  house_rules: Quote rather than rephrase. Where the excerpt does not say it, do not guess.
reader:
  max_ocr_pages: 40                   # scans are slow: 2 to 10 s a page
budget:
  tokens: 5000000                     # stops before it is exceeded; can be resumed
stages:
  - name: invoice                     # asked of each chunk: records/stage=invoice/
    over: chunk
    mode: instant
    prompt: |
      Which invoice does this excerpt belong to, and what is its total?
    output:
      vendor: string                  # must be there
      amount: decimal?                # may be null
      due: date?
      state: paid|open|unclear        # one of three
      tags: [string]                  # a list
      evidence: line                  # a line of the document, verbatim, with its place
    max_output_tokens: 200
  - name: summary                     # asked once per document, about what `invoice` quoted
    over: document
    needs: [invoice]
    prompt: |
      {{ upstream.invoice | length }} excerpts were read. Which line sums the document up best?
    output: {summary: line}
    max_output_tokens: 48
failure_limit: 0.05                   # above this share without an answer, exit code 3
report:
  title: Invoices at a glance
"""

_PIPELINE_TOP = f"""\
# Pipeline reference

<!-- Written by `make reference` from config/pipeline.py; edit that file instead. -->

A pipeline is one YAML file: what to read, what to ask, where to put the answers. `headrace init`
writes a commented one to start from. Paths in it are relative to the file. A wrong key is refused
with the file, the key and the nearest right one.

```yaml
{PIPELINE_EXAMPLE}```

Any key can be set for one run: `headrace run FILE --set chunk.max_tokens=2000`. A stage is reached by
its name, all of them by a star: `--set stages.invoice.max_output_tokens=300`, `--set stages.*.mode=instant`.

A text that ends in `.md`, `.j2`, `.sql`, `.txt`, `.json`, `.yaml` or `.yml` and has one line is taken for the
name of a file. A key whose default is none may be left out.
"""

_PROFILE_TOP = """\
# Profile reference

<!-- Written by `make reference` from engine/profile.py; edit that file instead. -->

A profile is one YAML file in `config/profiles/`: the facts of one host and its model. Its name is what
`--engine` and the pipeline's `engine` take. [engines.md](engines.md) tells how to use those that come
along. A key for the host is never in it, only the name of the environment variable that holds it.

```yaml
name: our-cluster
title: Kimi K2.5 on our own GPUs
model: moonshotai/Kimi-K2.5
base_url: http://gpu-1:8000/v1
api_key_env: HEADRACE_ENGINE_KEY
context_tokens: 262144
max_in_flight: 64
capabilities: {images: true, structured_output: true, priority: true}
modes:
  instant:
    sampling: {temperature: 0.6, top_p: 0.95}
    wire: {chat_template_kwargs: {thinking: false}}
```

A key whose default is none may be left out.
"""


def pipeline_page() -> str:
    """Return docs/pipeline.md."""
    return _page(_PIPELINE_TOP, PipelineConfig)


def profile_page() -> str:
    """Return docs/profile.md."""
    return _page(_PROFILE_TOP, Profile)


def modes_page() -> str:
    """Return docs/modes.md with its tables written anew; the rest of it is written by hand."""
    text = (REPOSITORY / "docs" / "modes.md").read_text(encoding="utf-8")
    for name, words in (("NOTES", NOTES), ("WHY", WHY)):
        mark = rf"<!-- {name}: [^\n]*-->\n\n\|[^\n]*\n\|[^\n]*\n"
        before, head, after = re.split(f"({mark})", text, maxsplit=1)
        rest = re.sub(r"\A(?:\|[^\n]*\n)*", "", after)
        table = "".join(f"| `{key}` | {meaning} |\n" for key, meaning in words.items())
        text = before + head + table + rest
    return text


PAGES = {
    "docs/pipeline.md": pipeline_page,
    "docs/profile.md": profile_page,
    "docs/modes.md": modes_page,
}
"""What writes a page, by its path in the repository."""


def _page(top: str, root: type[BaseModel]) -> str:
    sections = [top]
    models = list(_models("", root))
    paths = [path for path, _ in models]
    for path, model in models:
        name = _section(path, model, shared=paths.count(path) > 1)
        heading = f"## {name}" if path else "## At the top"
        text = " ".join((model.__doc__ or "").split())
        sections.append(f"{heading}\n\n{text}\n\n{_table(path, model)}\n")
    return "\n".join(sections)


def _models(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the model and those inside it, each with the path of its keys."""
    yield path, model
    for name, field in model.model_fields.items():
        for inner, mark in _inner_models(field.annotation):
            yield from _models(f"{path}.{name}{mark}".lstrip("."), inner)


def _inner_models(annotation: object, mark: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, mark
        return
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is tuple:
        mark = "[]"
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        mark, arguments = ".NAME", arguments[1:]
    for argument in arguments:
        yield from _inner_models(argument, mark)


def _section(path: str, model: type[BaseModel], *, shared: bool) -> str:
    """Return the name of a model's section; with its kind where others have the same keys' path."""
    return f"{path} of kind {model.model_fields['kind'].default}" if shared else path


def _table(path: str, model: type[BaseModel]) -> str:
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        cells = (f"`{name}`", _type(path, model, name, field), _default(field), _meaning(field))
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _type(path: str, model: type[BaseModel], name: str, field: FieldInfo) -> str:
    written = _AS_WRITTEN.get((model.__name__, name))
    if written is not None:
        return written
    inner = list(_inner_models(field.annotation))
    if inner:
        mark = inner[0][1]
        keys = f"{path}.{name}{mark}".lstrip(".")
        sections = [_section(keys, one, shared=len(inner) > 1) for one, _ in inner]
        kind = {"": "keys", "[]": "list of", ".NAME": "by name:"}[mark]
        links = " or ".join(f"[{section}](#{_anchor(section)})" for section in sections)
        return f"{kind} {links}"
    return _words(field.annotation) + _limits(field.metadata)


def _anchor(heading: str) -> str:
    words = heading.lower().replace(" ", "-")
    return "".join(char for char in words if char.isalnum() or char in "-_")


def _words(annotation: object) -> str:
    """Return a type in words that a reader of YAML knows.

    Raises:
        TypeError: A model has a type of a new kind.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    words = _WORDS.get(annotation)
    if origin is Literal:
        words = " or ".join(f"`{choice}`" for choice in arguments)
    elif origin in {Union, UnionType}:
        words = " or ".join(_words(kind) for kind in arguments if kind is not NoneType)
    elif origin is tuple:
        words = f"list of {_words(arguments[0])}s"
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        words = "keys and values" if arguments[1] is Any else f"{_words(arguments[1])}s by name"
    elif hasattr(annotation, "__metadata__"):
        words = _words(arguments[0])
    if words is None:
        raise TypeError(f"there are no words for {annotation!r}; add them here")
    return words


def _limits(metadata: Sequence[object]) -> str:
    limits = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = [
        f"{sign} {getattr(item, name)}"
        for item in metadata
        for name, sign in limits.items()
        if hasattr(item, name)
    ]
    if any(getattr(item, "pattern", None) for item in metadata):
        found.append("of lower-case letters, digits and _")
    return " " + " and ".join(found) if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if field.default_factory is not None:
        has_own = any(not mark for _, mark in _inner_models(field.annotation))
        return "its own" if has_own else "none"
    if value in (None, "", ()):
        return "none"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def _meaning(field: FieldInfo) -> str:
    text = field.description
    if text is None:
        inner = next(_inner_models(field.annotation), None)
        text = (inner[0].__doc__ or "") if inner else ""
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    """Print the pages, or write them with `--write`."""
    parser = argparse.ArgumentParser(description="Write the reference pages from the models.")
    parser.add_argument("--write", action="store_true", help="write them to docs/")
    write = parser.parse_args().write
    for path, page in PAGES.items():
        if write:
            (REPOSITORY / path).write_text(page(), encoding="utf-8")
        else:
            sys.stdout.write(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
