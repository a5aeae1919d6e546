"""Conditions."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from trellis.tasks.errors import DefinitionError
from trellis.workflows import expressions
from trellis.workflows.references import Reference

PARAMS = {"n": 3, "name": "EWR", "flags": {"deep": [1, 2]}}
STEPS: dict[str, Any] = {
    "raw": {"rows": 5, "length": 2, "keys": "mine", "items": [1, 2, 3], "who": "ann", "none": None},
    "my-step": [{"x": 1}],
    "skipped": None,
    "flag": True,
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("params.n > 2 and steps.raw.rows > 0", True),
        ("params.n == 3", True),
        ("params.n == 3.0", True),
        ("params.name == 'EWR' or false", True),
        ("not steps.flag", False),
        ("steps.flag", True),
        ("steps.raw.items.length == 3", True),
        ("steps.raw.length == 2", True),  # a field comes before what rule-engine itself knows of a value
        ("steps.raw.keys == 'mine'", True),
        ("steps.raw.who.as_upper == 'ANN'", True),
        ("steps.raw.items[0] == 1", True),
        ("steps.raw.items[9] == null", True),
        ('steps["my-step"][0].x == 1', True),
        ("2 in steps.raw.items", True),
        ("'rows' in steps.raw", True),
        ("params.flags.deep[1] == 2", True),
        ("steps.skipped == null", True),
        ("steps.skipped.rows == null", True),
        ("steps.skipped.rows[0].deep > 0", False),
        ("steps.raw.none > 0", False),
        ("steps.raw.none <= 0", False),
        ("steps.raw.absent == null", True),
        ("$any([x > 2 for x in steps.raw.items])", True),
        ("$sum(steps.raw.items) == 6", True),
        ("(steps.skipped ?? 7) == 7", True),
        ("steps.raw.rows - 5", False),
    ],
)
def test_conditions(text: str, holds: bool) -> None:
    assert expressions.evaluate(text, PARAMS, STEPS) is holds


def test_names_and_places_are_known_before_a_run() -> None:
    names = expressions.names('params.n > 1 and steps["my-step"].rows[0] == 2 and 1 in steps.raw')

    assert names.params == {"n"}
    assert names.steps == {"my-step", "raw"}
    assert Reference("steps", "my-step", ("rows", 0)) in names.references


def test_names_inside_functions_and_loops_are_seen() -> None:
    names = expressions.names(
        "$any([x > params.n for x in steps.raw.items if x < steps.top]) or [steps.a][0] == {'k': 1}"
    )

    assert names.params == {"n"}
    assert names.steps == {"raw", "top", "a"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("params.n >", "a syntax error at its end"),
        ("params.n > > 2", "a syntax error near"),
        ("param.n > 2", "does not know 'param'; did you mean 'params'"),
        ("__import__('os')", "does not know '__import__'"),
        ("len(steps.raw)", "does not know 'len'"),
        ("steps.a and open", "does not know 'open'"),
        ("steps == 1", "uses steps as a whole"),
        ("steps[params.n] == 1", "uses steps as a whole"),
        ("params.n =~ '(a+)+$'", "regular expressions can run for ever"),
        ("1 << 1000000000 > 0", "bit shifts"),
        ("9 ** 9 ** 9 > 0", "powers"),
        ("$now > 1", r"\$now, which is not available"),
        ("$random() > 1", "not available"),
        ("$range(1000000000)", "not available"),
        ("$an(steps.raw)", r"did you mean 'any'\?"),
        ("[[x for x in steps.a] for y in steps.b]", "nests loops"),
        ("params.n == 1 " * 200, "longer than"),
        ("params.n > 'x' + ", "syntax error"),
    ],
)
def test_what_is_wrong_or_dangerous_is_refused_when_defined(text: str, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        expressions.names(text)


def test_operators_inside_texts_are_only_text() -> None:
    assert expressions.evaluate("params.name == 'a << b =~ $now' or params.name == 'EWR'", PARAMS, STEPS)


def test_a_condition_that_does_not_fit_its_values_says_so() -> None:
    with pytest.raises(DefinitionError, match="does not fit its values"):
        expressions.evaluate("params.name > 2", PARAMS, STEPS)


def test_conditions_are_parsed_by_many_threads_at_once() -> None:
    """The parser behind them is one object."""
    failures: list[Exception] = []

    def work(seed: int) -> None:
        try:
            for number in range(8):
                text = f"params.n > {seed} and steps.s{number} == {number}"
                assert expressions.names(text).steps == {f"s{number}"}
        except Exception as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # or each thread would be done before the next one begins
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


def test_large_results_are_not_converted_as_a_whole() -> None:
    """Only the fields that a condition asks for cost anything."""

    class Trap(dict[str, Any]):
        def items(self) -> Any:
            raise AssertionError("the whole result was walked")

    assert expressions.evaluate("steps.big.rows > 0", {}, {"big": Trap(rows=1, rest=[0] * 10)})
