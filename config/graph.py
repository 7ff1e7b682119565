"""placeholder"""

from __future__ import annotations
from collections.abc import Callable, Mapping
from typing import Any
import jinja2
from jinja2.sandbox import SandboxedEnvironment


def compile_when(text: str) -> Callable[[Mapping[str, Any]], bool]:
    expression = SandboxedEnvironment(undefined=jinja2.StrictUndefined).compile_expression(
        text, undefined_to_none=False
    )
    return lambda upstream: bool(expression(upstream=upstream))


def by_field(stage: Any, stages: Any) -> tuple[str, str]:
    name = stage.by
    if "." in name:
        first, _, field = name.partition(".")
        return first, field
    for other in stages:
        if other.name in stage.needs and name in other.output["properties"]:
            return other.name, name
    raise ValueError(name)
