"""What Jinja2 templates and expressions of a pipeline may say, checked before anything is read.

A prompt is a template, `when` an expression. Both see earlier answers as `upstream.<stage>.<field>`;
config.graph asks here which names one uses, and whether they are there.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.parser import Parser
from jinja2.sandbox import SandboxedEnvironment

from connectors.sinks.columns import output_kinds

UPSTREAM = "upstream"

Path = tuple[object, ...]
"""Steps behind `upstream`: names, numbers, or `_UNKNOWN` for what is known at run time only."""

_UNKNOWN = object()

_IN_WHEN = (
    nodes.Const,
    nodes.List,
    nodes.Tuple,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Neg,
    nodes.Pos,
    nodes.Add,
    nodes.Sub,
    nodes.Mul,
    nodes.Div,
    nodes.FloorDiv,
    nodes.Mod,
    nodes.Concat,
    nodes.CondExpr,
    nodes.Filter,
    nodes.Test,
    nodes.Keyword,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Name,
)

_ORDERS = frozenset({"gt", "gteq", "lt", "lteq"})
_COMPARED = ("string", "int64", "double", "decimal", "date", "time")


class FieldsFirst(SandboxedEnvironment):
    """Environment in which `upstream.invoice.items` is the field, not the method of a dict."""

    def getattr(self, obj: Any, attribute: str) -> Any:  # noqa: ANN401  Jinja's own signature
        """Return a mapping's value by name, or the attribute of anything else."""
        if not isinstance(obj, Mapping):
            return super().getattr(obj, attribute)
        return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)


ENVIRONMENT = FieldsFirst(undefined=jinja2.StrictUndefined, autoescape=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a stage's templates may name."""

    outputs: Mapping[str, Mapping[str, Any]]
    """Output schema by stage that is needed."""
    are_lists: bool = False
    """Whether `upstream.<stage>` is a list of answers, as over a document."""
    names: Collection[str] = (UPSTREAM,)
    """Free names that have a value."""
    why_not: str = ""
    """Why `upstream` has none, where it is not among `names`."""


def nearest(word: str, words: Collection[str]) -> str:
    """Return a hint at the word that was probably meant; empty where none is near."""
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def template_problems(text: str, known: Known) -> list[str]:
    """Return what is wrong with a prompt: syntax, names that have no value, fields that are not there."""
    try:
        tree = ENVIRONMENT.parse(text)
        ENVIRONMENT.compile(text)
    except jinja2.TemplateSyntaxError as exc:
        return [f"line {exc.lineno}: {exc.message}"]
    if any(tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends))):
        return ["a prompt is one text; it cannot include, import or extend another template"]
    free = meta.find_undeclared_variables(tree) - set(ENVIRONMENT.globals)
    found = [_no_name(name, known) for name in sorted(free - set(known.names))]
    if UPSTREAM in known.names and UPSTREAM in free:
        found += [problem for path in paths(tree) if (problem := _path_problem(path, known))]
    return list(dict.fromkeys(found))


def _no_name(name: str, known: Known) -> str:
    if name == UPSTREAM and known.why_not:
        return f"`upstream` has no value here: {known.why_not}"
    usable = ["`upstream.<stage>.<field>`" if n == UPSTREAM else f"`{n}`" for n in known.names]
    may = f"it may use {' and '.join(usable)}" if usable else "it may use none here"
    return f"{name!r} is no name that a prompt knows; {may}{nearest(name, known.names)}"


def _path_problem(path: Path, known: Known) -> str | None:
    """Return what is wrong with one use of `upstream` in a prompt."""
    stage, field = (*path, _UNKNOWN, _UNKNOWN)[:2]
    if stage is _UNKNOWN:
        return None
    if stage not in known.outputs:
        return _no_stage(str(stage), known)
    if known.are_lists:
        if not isinstance(field, str):
            return None
        return (
            f"`upstream.{stage}` is a list of answers here, so it has no {field!r}; go through it:"
            f" {{% for answer in upstream.{stage} %}}{{{{ answer.{field} }}}}{{% endfor %}}"
        )
    return None if field is _UNKNOWN else _no_field(str(stage), field, known)


def _no_stage(stage: str, known: Known) -> str:
    return (
        f"`upstream.{stage}`: {stage!r} is not in `needs`; those are"
        f" {', '.join(known.outputs) or 'none'}{nearest(stage, known.outputs)}"
    )


def _no_field(stage: str, field: object, known: Known) -> str | None:
    fields = known.outputs[stage]["properties"]
    if field in fields:
        return None
    return (
        f"`upstream.{stage}.{field}`: stage {stage!r} has no such field; its fields:"
        f" {', '.join(fields)}{nearest(str(field), fields)}"
    )


def paths(tree: nodes.Node) -> Iterator[Path]:
    """Yield every use of `upstream` in a template or expression; `upstream.a.b` is `("a", "b")`."""
    steps: list[object] = []
    subscripts: list[nodes.Node] = []
    node = tree
    while isinstance(node, nodes.Getattr | nodes.Getitem):
        steps.insert(0, node.attr if isinstance(node, nodes.Getattr) else _subscript(node.arg))
        subscripts += [node.arg] if isinstance(node, nodes.Getitem) else []
        node = node.node
    is_upstream = isinstance(node, nodes.Name) and node.name == UPSTREAM and node.ctx == "load"
    if is_upstream:
        yield tuple(steps)
    for child in subscripts if is_upstream else tree.iter_child_nodes():
        yield from paths(child)


def _subscript(arg: nodes.Node) -> object:
    return arg.value if isinstance(arg, nodes.Const) else _UNKNOWN


def parse_expression(text: str) -> nodes.Expr:
    """Return the tree of an expression.

    Raises:
        ValueError: It is none; the message says why.
    """
    try:
        parser = Parser(ENVIRONMENT, text, state="variable")
        tree = parser.parse_expression()
        if not parser.stream.eos:
            raise ValueError(f"{parser.stream.current.value!r} is left over behind the expression")
        # Filters and tests that there are not are found by the compiler.
        ENVIRONMENT.compile_expression(text)
    except jinja2.TemplateSyntaxError as exc:
        raise ValueError(f"is no expression: {exc.message}") from exc
    return tree


def expression_problems(text: str, known: Known) -> list[str]:
    """Return what is wrong with a `when`: syntax, what it may not use, fields that are not there."""
    try:
        tree = parse_expression(text)
    except ValueError as exc:
        return [str(exc)]
    everything: list[nodes.Node] = [tree, *tree.find_all(nodes.Node)]
    if any(not isinstance(node, _IN_WHEN) for node in everything):
        return [
            "it may compare, with and, or, not, in, filters and literals; it cannot call, slice or"
            " build anything else"
        ]
    names = {node.name for node in everything if isinstance(node, nodes.Name)} - {UPSTREAM}
    if names:
        return [f"{min(names)!r} is no name here; {_WHAT}"]
    found = [problem for path in paths(tree) if (problem := _answer_problem(path, known))]
    found = found or [*_orders(everything, known), *_truths(tree, known)]
    return list(dict.fromkeys(found))


_WHAT = "it may use `upstream.<stage>.<field>` and literals, with texts in quotes"


def _answer_problem(path: Path, known: Known) -> str | None:
    stage, field = (*path, None, None)[:2]
    if stage is None or stage is _UNKNOWN or field is _UNKNOWN:
        return f"`upstream` needs a stage and a field behind it; {_WHAT}"
    if stage not in known.outputs:
        return _no_stage(str(stage), known)
    if field is None:
        fields = ", ".join(known.outputs[str(stage)]["properties"])
        return f"`upstream.{stage}` is a whole answer; name a field of it: {fields}"
    return _no_field(str(stage), field, known)


def _kind(node: nodes.Node | None, known: Known) -> tuple[str, str]:
    """Return how a field is stored, and its path; two empty texts for what is not a field."""
    if not isinstance(node, nodes.Getattr | nodes.Getitem):
        return "", ""
    found = next(paths(node), ())
    if len(found) != 2:
        return "", ""
    stage, field = str(found[0]), str(found[1])
    return output_kinds(known.outputs[stage])[field].name, f"upstream.{stage}.{field}"


def _orders(everything: Collection[nodes.Node], known: Known) -> Iterator[str]:
    """Yield comparisons of a text field, such as a decimal, with a number: never what is meant."""
    for compare in everything:
        if not isinstance(compare, nodes.Compare):
            continue
        sides = [compare.expr, *(operand.expr for operand in compare.ops)]
        numbers = [s for s in sides if isinstance(s, nodes.Const) and _is_number(s.value)]
        ordered = any(operand.op in _ORDERS or operand.op == "eq" for operand in compare.ops)
        for kind, path in (_kind(side, known) for side in sides):
            if numbers and ordered and kind.startswith(("decimal", "string")):
                yield (
                    f"`{path}` is a {kind.partition('(')[0]}, which an answer holds as text; to compare"
                    f" it with a number write `{path} | float`"
                )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _truths(node: nodes.Node, known: Known) -> Iterator[str]:
    """Yield fields and literals that stand for true or false, and are neither."""
    if isinstance(node, nodes.And | nodes.Or):
        yield from _truths(node.left, known)
        yield from _truths(node.right, known)
    elif isinstance(node, nodes.Not):
        yield from _truths(node.node, known)
    elif isinstance(node, nodes.Const) and not isinstance(node.value, bool):
        yield f"{node.value!r} is neither true nor false; compare it with something"
    else:
        kind, path = _kind(node, known)
        if kind.startswith(_COMPARED):
            yield (
                f"`{path}` is neither true nor false; compare it, or ask whether it is there:"
                f" `{path} is not none`"
            )
