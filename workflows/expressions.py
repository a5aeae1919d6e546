"""Conditions: `when="params.n > 2 and steps.raw.rows > 0"`.

The law: a condition is a pure function of the run's params and of results, in the language of
rule-engine, never Python's `eval`. It knows two names, `params` and `steps` (that of a loop also `result` and
`index`, those of the turn that is over); what is absent (a skipped
step, a missing field) is null, and an ordering with null (`null > 0`) is not true. Clocks, random
numbers, regular expressions and whatever could take very long are refused when the workflow is defined.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from ..tasks.errors import DefinitionError
from ..tasks.hints import did_you_mean
from . import rules
from .references import Path, Reference

MAX_LENGTH = 2000
# What rule-engine knows of every text, list or object besides its fields.
ATTRIBUTES = frozenset({
    "as_lower", "as_upper", "ceiling", "date", "day", "encode", "ends_with", "floor", "hour", "is_empty",
    "is_nan", "keys", "length", "minute", "month", "second", "starts_with", "to_ary", "to_epoch", "to_flt",
    "to_int", "to_set", "to_str", "values", "weekday", "year", "zone_name",
})  # fmt: skip
FUNCTIONS = frozenset({"abs", "all", "any", "max", "min", "parse_datetime", "parse_float", "split", "sum"})

_ROOTS = ("params", "steps")
_TURNS = ("result", "index")
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')
_BUILTIN = re.compile(r"\$\s*(\w+)")
_REFUSED = {
    "=~": "regular expressions can run for ever: compare with ==, `in`, or .starts_with(…)",
    "!~": "regular expressions can run for ever: compare with !=, `in`, or .starts_with(…)",
    "<<": "bit shifts can fill the memory",
    ">>": "bit shifts can fill the memory",
    "**": "powers can run for ever",
}


@dataclass(frozen=True, slots=True)
class Names:
    """The params and steps that a condition uses, and the places inside them."""

    params: frozenset[str]
    steps: frozenset[str]
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """A parsed condition."""

    text: str
    names: Names
    rule: Any


class _Record(Mapping[str, Any]):
    """A JSON object whose fields are converted when they are asked for: a result may be large."""

    __slots__ = ("_content",)

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content

    def __getitem__(self, key: str) -> Any:
        return _wrap(self._content[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


def _wrap(value: Any) -> Any:
    if isinstance(value, dict):
        return _Record(value)
    if isinstance(value, list):
        return [_wrap(each) for each in value]
    return value


@cache
def _context_class() -> Any:
    """Fields come before rule-engine's own attributes (`.length`, `.keys`), and what is absent is null."""

    class Context(rules.Context):  # type: ignore[misc]  # rule-engine's types are not strict
        def resolve_attribute(self, thing: Any, object_: Any, name: str) -> Any:
            if object_ is None:
                return None
            if isinstance(object_, _Record) and name in object_:
                return object_[name]
            try:
                return super().resolve_attribute(thing, object_, name)
            except rules.errors.AttributeResolutionError:
                if isinstance(object_, _Record):
                    return None
                raise

    return Context


def _context(turns: bool) -> Any:
    names = (*_ROOTS, *_TURNS) if turns else _ROOTS
    return _context_class()(
        type_resolver=dict.fromkeys(names, rules.types.DataType.UNDEFINED),
        default_timezone="utc",
        default_value=None,
    )


@lru_cache(maxsize=10_000)
def compile(text: str, turns: bool = False) -> Condition:  # noqa: A001  # as re.compile
    """Parse a condition; `turns`: of a loop. Raises DefinitionError."""
    _refuse_dangers(text)
    try:
        rule = rules.Rule(text, context=_context(turns))
    except rules.errors.EngineError as error:
        raise DefinitionError(f"the condition {text!r} is wrong: {_explain(error)}") from error
    except (ArithmeticError, ValueError, RecursionError) as error:
        raise DefinitionError(f"the condition {text!r} is wrong: {error}") from error
    found: dict[Reference, None] = {}
    _visit(rule.statement.expression, text, found, comprehensions=0)
    return Condition(text, Names(_named("params", found), _named("steps", found), tuple(found)), rule)


def _named(kind: str, references: Iterable[Reference]) -> frozenset[str]:
    return frozenset(each.name for each in references if each.kind == kind)


def names(text: str, *, turns: bool = False) -> Names:
    """The params and steps that a condition uses; `turns`: that of a loop. Raises DefinitionError."""
    return compile(text, turns).names


def evaluate(text: str, params: Mapping[str, Any], steps: Mapping[str, Any]) -> bool:
    """Whether a condition holds. Raises DefinitionError where its values do not fit (a text > a number)."""
    return _holds(compile(text), {"params": _Record(params), "steps": _Record(steps)})


def is_over(text: str, params: Mapping[str, Any], steps: Mapping[str, Any], result: Any, index: int) -> bool:
    """Whether a loop ends after a turn. Raises DefinitionError where the values do not fit the condition."""
    known = {"params": _Record(params), "steps": _Record(steps), "result": _wrap(result), "index": index}
    return _holds(compile(text, True), known)


def _holds(condition: Condition, known: Mapping[str, Any]) -> bool:
    text = condition.text
    try:
        return bool(condition.rule.matches(known))
    except (rules.errors.EngineError, ArithmeticError, TypeError, ValueError) as error:
        message = _explain(error) if isinstance(error, rules.errors.EngineError) else str(error)
        raise DefinitionError(f"the condition {text!r} does not fit its values: {message}") from error


def _refuse_dangers(text: str) -> None:
    """Before parsing, since the parser computes constant parts at once."""
    if not text.strip():
        raise DefinitionError("the condition is empty: leave `when` out for a step that always runs")
    if len(text) > MAX_LENGTH:
        raise DefinitionError(f"the condition is longer than {MAX_LENGTH} characters: compute it in a step")
    bare = _STRINGS.sub("''", text)
    for operator, reason in _REFUSED.items():
        if operator in bare:
            raise DefinitionError(f"the condition {text!r} uses {operator}, which is not available: {reason}")
    for name in _BUILTIN.findall(bare):
        if name not in FUNCTIONS:
            raise DefinitionError(
                f"the condition {text!r} uses ${name}, which is not available"
                f"{did_you_mean(name, FUNCTIONS)}; there are "
                + ", ".join(f"${each}" for each in sorted(FUNCTIONS))
            )


def _visit(node: Any, text: str, found: dict[Reference, None], comprehensions: int) -> None:
    """Collect the references, and make nulls harmless."""
    if isinstance(node, rules.ast.SymbolExpression) and node.scope is None and node.name in _ROOTS:
        raise DefinitionError(
            f"the condition {text!r} uses {node.name} as a whole: write {node.name}.NAME, or "
            f'{node.name}["NAME"] with the name as a plain text'
        )
    if isinstance(node, rules.ast.ComprehensionExpression):
        comprehensions += 1
        if comprehensions > 1:
            raise DefinitionError(f"the condition {text!r} nests loops: compute it in a step")
    if isinstance(node, rules.ast.GetItemExpression):
        node.safe = True
    if isinstance(node, rules.ast.ArithmeticComparisonExpression):
        node._evaluator = _without_null(node, node._evaluator)
    reference = _reference(node)
    if reference is not None:
        found[reference] = None
        _make_safe(node)
        return
    for child in _children(node):
        _visit(child, text, found, comprehensions)


def _reference(node: Any) -> Reference | None:
    """`steps.raw.rows[0]` as a reference; None for all that is not a name with constant parts behind it."""
    parts: list[str | int] = []
    while True:
        if isinstance(node, rules.ast.GetAttributeExpression):
            parts.append(node.name)
            node = node.object
        elif isinstance(node, rules.ast.GetItemExpression) and isinstance(
            node.item, rules.ast.StringExpression
        ):
            parts.append(node.item.value)
            node = node.container
        elif isinstance(node, rules.ast.GetItemExpression) and isinstance(
            node.item, rules.ast.FloatExpression
        ):
            parts.append(int(node.item.value))
            node = node.container
        else:
            break
    known = isinstance(node, rules.ast.SymbolExpression) and node.scope is None and node.name in _ROOTS
    if not known or not parts or isinstance(parts[-1], int):
        return None
    path: Path = tuple(reversed(parts[:-1]))
    return Reference(node.name, str(parts[-1]), path)


def _make_safe(node: Any) -> None:
    while not isinstance(node, rules.ast.SymbolExpression):
        if isinstance(node, rules.ast.GetItemExpression):
            node.safe = True
            node = node.container
        else:
            node = node.object


def _children(node: Any) -> Iterator[Any]:
    """The expressions below one, whatever its class calls them."""
    for kind in type(node).__mro__:
        for slot in getattr(kind, "__slots__", ()):
            yield from _expressions(getattr(node, slot, None))
    for value in getattr(node, "__dict__", {}).values():
        yield from _expressions(value)


def _expressions(value: Any) -> Iterator[Any]:
    if isinstance(value, rules.ast.ExpressionBase):
        yield value
    elif isinstance(value, tuple | list | set | frozenset):
        for each in value:
            yield from _expressions(each)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _expressions(key)
            yield from _expressions(each)


def _without_null(node: Any, compare: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def evaluate(thing: Any) -> Any:
        if node.left.evaluate(thing) is None or node.right.evaluate(thing) is None:
            return False
        return compare(thing)

    return evaluate


def _explain(error: Exception) -> str:
    if isinstance(error, rules.errors.SymbolResolutionError):
        name = error.symbol_name
        return (
            f"it does not know {name!r}{did_you_mean(name, ('params', 'steps'))}; "
            "values are written params.NAME and steps.NAME, texts in quotes, functions as $name"
        )
    if isinstance(error, rules.errors.RuleSyntaxError):
        place = "at its end" if error.token is None else f"near {error.token.value!r}"
        return f"a syntax error {place} (and, or, not, ==, !=, <, <=, >, >=, in, texts in quotes)"
    return str(getattr(error, "message", "")) or str(error)
