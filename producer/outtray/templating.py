"""Templating: Jinja2, cut down to what a mail needs and bounded in time and size. The only file that imports it.

A template is written by somebody whom the operator need not trust with the machine. Jinja2's own sandbox keeps it from
Python's insides, but promises no bounds (docs "Sandbox", 3.1, 2026-11: "the sandbox alone is not a solution for perfect
security", resource use is left to the caller). So on top of it: only the tags, filters and tests that are listed here;
no calls but `range` and `loop.cycle`; no attributes but those of a row's own mappings and of `loop`; no value above a
mebibyte, and a thousand rounds of loops in one rendering.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any, cast

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.filters import FILTERS
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.visitor import NodeTransformer
from markupsafe import Markup, escape

from outtray_schema.errors import InvalidMessage, Problem, Refused

MOST_SOURCE = 256 * 1024
"""Characters of one part of a template."""
MOST_VALUE = 1024 * 1024
"""Characters of a value within a rendering, and of what it yields."""
MOST_ROUNDS = 1000
"""Rounds of all loops of one rendering; also the longest `range`."""

_NODES = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem,
    nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.Add,
    nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Test, nodes.Filter, nodes.If, nodes.For,
    nodes.Assign, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.Concat, nodes.Slice, nodes.Call,
)  # fmt: skip
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "e", "escape", "first", "float", "int", "join", "last", "length",
    "lower", "nl2br", "replace", "round", "sort", "striptags", "sum", "title", "trim", "truncate", "unique", "upper",
    "urlencode",
)  # fmt: skip
_TESTS = (
    "boolean", "defined", "divisibleby", "eq", "equalto", "even", "false", "ge", "gt", "in", "le", "lower", "lt", "ne",
    "none", "number", "odd", "sameas", "string", "true", "undefined", "upper",
)  # fmt: skip
_PARTS = ("subject", "text", "html")


class TooMuch(Exception):
    """A rendering came to a bound; the text names it."""


@dataclass(frozen=True, slots=True)
class Source:
    """A template as it was written. At least one of `text` and `html` is there."""

    subject: str | None = field(default=None, repr=False)
    text: str | None = field(default=None, repr=False)
    html: str | None = field(default=None, repr=False)

    def parts(self) -> dict[str, str]:
        """Those that are there, by name."""
        return {name: part for name in _PARTS if (part := getattr(self, name)) is not None}


class Compiled:
    """A template ready to render. Raises `Refused` with every part that is wrong."""

    def __init__(self, source: Source) -> None:
        self._parts: dict[str, Template] = {}
        found: set[str] = set()
        problems: list[Problem] = []
        if source.text is None and source.html is None:
            problems.append(Problem("text", "a template needs text or html"))
        for name, part in source.parts().items():
            try:
                names, self._parts[name] = _compiled(_HTML if name == "html" else _PLAIN, part)
                found |= names
            except TemplateSyntaxError as error:
                problems.append(Problem(name, f"line {error.lineno}: {error.message}"))
        if problems:
            raise Refused(problems)
        self.variables = tuple(sorted(found))
        """The names that it reads."""

    def render(self, row: Mapping[str, Any]) -> dict[str, str]:
        """The parts, filled from a row. An empty value counts as missing. Raises `InvalidMessage` with the variable."""
        values = {name: cleaned for name, value in row.items() if (cleaned := _clean(name, value)) not in ("", None)}
        return {name: _rendered(name, part, values) for name, part in self._parts.items()}


def _rendered(name: str, part: Template, values: Mapping[str, Any]) -> str:
    try:
        pieces, size = [], 0
        for piece in part.generate(values, _tick=_Rounds()):
            pieces.append(piece)
            size += len(piece)
            if size > MOST_VALUE:
                raise TooMuch(f"more than {MOST_VALUE} characters")
    except UndefinedError as error:
        reason = "is missing; fill it in, or write what stands for it: {{ %s|default('…') }}"
        raise InvalidMessage(Problem(error.message or name, reason % error.message)) from None
    except TooMuch as error:
        raise InvalidMessage(Problem(name, f"the template yields {error}")) from None
    except (TemplateError, ArithmeticError, TypeError, ValueError, LookupError, RecursionError) as error:
        # Its text may quote a row's values, which are the caller's own.
        raise InvalidMessage(Problem(name, f"the template cannot be filled in: {error}")) from None
    text = "".join(pieces)
    return " ".join(text.split()) if name == "subject" else text


def _clean(name: str, value: Any) -> Any:
    """A value as a template may see it: texts, numbers, dates, and lists and mappings of them."""
    if isinstance(value, str):
        if len(value) > MOST_VALUE:
            raise InvalidMessage(Problem(name, f"has more than {MOST_VALUE} characters"))
        return value
    if value is None or isinstance(value, (bool, int, float, date, Decimal)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _clean(f"{name}.{key}", each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(f"{name}[{n}]", each) for n, each in enumerate(value)]
    raise InvalidMessage(Problem(name, f"must be text, a number, a date, or a list or mapping of them: {type(value)}"))


# ── the language ────────────────────────────────────────────────────────────────────────────────────────────────────


class _Missing(StrictUndefined):
    """Any use of a missing variable fails with its name, and nothing else, as the message."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        return str(self._undefined_name)


class _Rounds:
    """Counts the rounds of all loops of one rendering."""

    def __init__(self) -> None:
        self._left = MOST_ROUNDS

    def __call__(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooMuch(f"more than {MOST_ROUNDS} rounds of loops")


class _Language(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%"})

    def __init__(self, autoescape: bool) -> None:
        super().__init__(
            undefined=_Missing, autoescape=autoescape, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
        )
        self.globals = {"range": _range}
        own = {"join": _join, "replace": _replace, "nl2br": _nl2br, "_joined": _joined}
        self.filters = {name: FILTERS[name] for name in _FILTERS if name in FILTERS} | own
        self.tests = {name: TESTS[name] for name in (*_TESTS, "==", "!=", "<", "<=", ">", ">=") if name in TESTS}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Of a row's mapping its entry, of `loop` what it tells; nothing else has attributes here."""
        if isinstance(obj, LoopContext):
            return super().getattr(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, StrictUndefined):
            return obj  # the first that is missing is the one to name
        if isinstance(obj, Mapping) and isinstance(argument, str):
            value = obj.get(argument, "")
            return self.undefined(obj=obj, name=argument) if value in ("", None) else value
        if isinstance(obj, (list, tuple, str)) and isinstance(argument, (int, slice)):
            return super().getitem(obj, argument)
        return self.undefined(obj=obj, name=str(argument))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic is for numbers; `+` joins texts as well. `"a" * 10**9` is where a sandbox ends."""
        for side in (left, right):
            if isinstance(side, StrictUndefined):
                str(side)  # fails with its name
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return _bounded(left + right)
        if not (_is_small(left) and _is_small(right)):
            raise TypeError(f"{operator} is for numbers below 10^18")
        return super().call_binop(context, operator, left, right)


def _compiled(language: _Language, part: str) -> tuple[set[str], Template]:
    if len(part) > MOST_SOURCE:
        raise TemplateSyntaxError(f"has more than {MOST_SOURCE} characters", 1)
    try:
        tree = language.parse(part)
    except RecursionError:
        raise TemplateSyntaxError("is nested too deeply", 1) from None
    _check(tree)
    names = meta.find_undeclared_variables(tree) - {"range"}
    try:
        code = language.compile(cast(nodes.Template, _Bounds().visit(tree)))
    except (RecursionError, SyntaxError, MemoryError):  # Python's own compiler has bounds too
        raise TemplateSyntaxError("is nested too deeply", 1) from None
    return names, Template.from_code(language, code, language.make_globals(None))


def _check(tree: nodes.Node) -> None:
    """Refuse what is not listed above, with its line."""
    for node in [tree, *tree.find_all(nodes.Node)]:
        reason = _objection(node)
        if reason is not None:
            raise TemplateSyntaxError(reason, getattr(node, "lineno", 1) or 1)


def _objection(node: nodes.Node) -> str | None:
    if not isinstance(node, _NODES):
        return f"{type(node).__name__.lower()} is not for templates of mails (docs/templates.md)"
    return _unknown_name(node) or _wrong_use(node)


def _unknown_name(node: nodes.Node) -> str | None:
    name = node.name if isinstance(node, nodes.Name) else node.attr if isinstance(node, nodes.Getattr) else ""
    if name.startswith("_") or name in ("self", "super", "caller"):
        return f"{name} is no name of a variable"
    if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
        return f"there is no filter {node.name!r}; there are {', '.join(_FILTERS)}"
    if isinstance(node, nodes.Test) and node.name not in _TESTS:
        return f"there is no test {node.name!r}; there are {', '.join(_TESTS)}"
    return None


def _wrong_use(node: nodes.Node) -> str | None:
    if isinstance(node, nodes.For) and node.recursive:
        return "a loop is not recursive here"
    if isinstance(node, nodes.Call) and not _may_be_called(node.node):
        return "nothing is called here but range(…) and loop.cycle(…); use a filter"
    return None


def _may_be_called(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Name):
        return node.name == "range"
    of_loop = isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name) and node.node.name == "loop"
    return of_loop and cast(nodes.Getattr, node).attr == "cycle"


class _Bounds(NodeTransformer):
    """Counts each round of a loop, and bounds what `~` joins."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        tick = nodes.ExprStmt(nodes.Call(nodes.Name("_tick", "load"), [], [], None, None))
        node.body.insert(0, tick.set_lineno(node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        joined = nodes.Filter(nodes.List(node.nodes), "_joined", [], [], None, None)
        return joined.set_lineno(node.lineno)


# ── what grows, bounded before it does ──────────────────────────────────────────────────────────────────────────────


def _range(*bounds: int) -> range:
    found = range(*bounds)
    if len(found) > MOST_ROUNDS:
        raise TooMuch(f"a range of more than {MOST_ROUNDS}")
    return found


def _is_small(value: Any) -> bool:
    return isinstance(value, (int, float, Decimal)) and -(10**18) < value < 10**18


def _bounded(text: str) -> str:
    if len(text) > MOST_VALUE:
        raise TooMuch(f"a value of more than {MOST_VALUE} characters")
    return text


def _joined(values: Iterable[Any]) -> str:
    return _bounded("".join(map(str, values)))


def _join(values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    items = [str(each.get(attribute, "") if attribute and isinstance(each, Mapping) else each) for each in values]
    between = str(d)
    if sum(map(len, items)) + len(between) * len(items) > MOST_VALUE:
        raise TooMuch(f"a value of more than {MOST_VALUE} characters")
    return between.join(items)


def _replace(value: Any, old: str, new: str) -> str:
    text, old, new = str(value), str(old), str(new)
    if len(text) + (text.count(old) if old else len(text) + 1) * len(new) > MOST_VALUE:
        raise TooMuch(f"a value of more than {MOST_VALUE} characters")
    return re.sub(re.escape(old), lambda _: new, text)


def _nl2br(value: Any) -> Markup:
    """Line breaks as HTML shows them."""
    return Markup("<br>\n").join(escape(line) for line in str(value).splitlines())


_PLAIN = _Language(autoescape=False)
_HTML = _Language(autoescape=True)
