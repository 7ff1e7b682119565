"""Says what is wrong with a document from a file: the key, and the nearest right one where it was misspelt."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from config.errors import ConfigError

# pydantic's own messages name Python's types and our classes.
_LIST_TYPES = frozenset({"tuple_type", "list_type", "set_type", "frozen_set_type"})
_MAP_TYPES = frozenset({"model_type", "dict_type"})

_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], data: Mapping[str, Any], path: Path) -> _Model:
    """Return the model that the data of a file make.

    Raises:
        ConfigError: They make none; the message has a line per wrong key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        errors = exc.errors()
        lines = [
            _explain(model, error)
            for error in errors
            # A list whose every item is wrong is not empty.
            if not (error["type"] == "too_short" and _has_below(error["loc"], errors))
        ]
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from exc


def _has_below(loc: tuple[int | str, ...], errors: Sequence[ErrorDetails]) -> bool:
    return any(error["loc"] != loc and error["loc"][: len(loc)] == loc for error in errors)


def _explain(model: type[BaseModel], error: ErrorDetails) -> str:
    loc, kind = error["loc"], error["type"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    if kind == "extra_forbidden":
        names = sorted(_field_names(model, loc[:-1]))
        return f"{key}: unknown key; known keys: {', '.join(names)}{nearest(str(loc[-1]), names)}"
    if kind in _LIST_TYPES:
        given = error["input"]
        example = f", such as [{json.dumps(given, ensure_ascii=False)}]"
        return f"{key}: should be a list{example if isinstance(given, str) else ''}"
    if kind in _MAP_TYPES and (names := sorted(_field_names(model, loc))):
        return f"{key or 'document'}: should be keys with values; known keys: {', '.join(names)}"
    return f"{key or 'document'}: {error['msg'].removeprefix('Value error, ')}"


def _field_names(model: type[BaseModel], loc: tuple[int | str, ...]) -> set[str]:
    """Return the field names of the model at `loc` inside `model`."""
    for part in loc:
        # Numbers and names of the user's own are no fields: what is below them is the same model.
        if isinstance(part, int) or part not in model.model_fields:
            continue
        field = model.model_fields.get(part)
        found = [
            kind
            for kind in _types_in(field.annotation if field else None)
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if not found:
            return set()
        model = found[0]
    return set(model.model_fields)


def _types_in(annotation: object) -> list[object]:
    inner = getattr(annotation, "__args__", ())
    return [annotation, *(kind for arg in inner for kind in _types_in(arg))]


def nearest(word: str, words: Sequence[str]) -> str:
    """Return a question that names the word most like this one; empty where none is."""
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
