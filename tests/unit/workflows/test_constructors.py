"""What is constructed wrongly by hand is a DefinitionError at once, which names the field and what would be right."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from trellis.tasks.errors import DefinitionError
from trellis.workflows import Debounce, Default, Param, Rate, Retry, Singleton, Workflow, action
from trellis.workflows.parsing import spec_of


@action(name="built")
def built(x: int = 0) -> int:
    """A body."""
    return x


def flow(**options: Any) -> Workflow:
    return Workflow("w", register=False, **options)


def step(kind: str = "step", *arguments: Any, **options: Any) -> Callable[[], None]:
    def write() -> None:
        wf = flow()
        getattr(wf, kind)("s", *(arguments or (built,)), **options)
        wf.validate()

    return write


def named(name: str, **options: Any) -> Callable[[], Any]:
    return lambda: action(name=name, **options)(lambda: None)


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: Rate("x", 0), r"Rate: limit=0: input should be greater than or equal to 1"),
    (lambda: Rate("x", 1, per=0), r"Rate: per=0: input should be greater than 0"),
    (lambda: Rate("x", 1, per=float("inf")), r"Rate: per=inf: input should be a finite number"),
    (lambda: Rate("", 1), r"Rate: key='': string should have at least 1 character"),
    (lambda: Rate("x", "many"), r"Rate: limit='many': input should be a valid integer"),
    (lambda: Rate(None, 0), r"Rate: key=None: .*; limit=0: "),
    (lambda: Rate("x", 1, burst=3), r"Rate: there is no field 'burst'; there are: 'key', 'limit', 'per'"),
    (lambda: Retry(0), r"Retry: attempts=0: input should be greater than or equal to 1"),
    (lambda: Retry(2, base=-1), r"Retry: base=-1: input should be greater than or equal to 0"),
    (lambda: Retry(2, base=float("inf")), r"Retry: base=inf: input should be a finite number"),
    (lambda: Retry(2, jitter=2), r"Retry: jitter=2: input should be less than or equal to 1"),
    (lambda: Retry(2, backoff="quick"), r"Retry: backoff='quick': .*'exponential', 'linear' or 'constant'"),
    (lambda: Retry(2, bas=1), r"Retry: there is no field 'bas'; there are: 'attempts', 'backoff', 'base'"),
    (lambda: Default(object()), r"Default: default=<object .*: input was not a valid JSON value"),
    (lambda: Default(), r"Default: default is missing"),
    (lambda: Debounce(5, 1), r"Debounce: its key 5 is not a text"),  # type: ignore[arg-type]
    (lambda: Debounce("k", -1), r"Debounce: wait -1 is not .* from 0 on"),
    (lambda: Debounce("k", 5, max_wait=1), r"Debounce: max_wait 1 is less than wait 5"),
    (lambda: Singleton(""), r"Singleton: its key '' is not a text of 1 to 500"),
    (lambda: Singleton("k", window="1"), r"Singleton: window '1' is not"),  # type: ignore[arg-type]
    (lambda: flow(params={"n": Param(object())}), r"parameter 'n': .* is not a type of JSON values"),
    (lambda: flow(params=5), r"params = 5: give names with types: \{'n': int\}"),
    (lambda: flow(limit=0, concurrency_key="k"), r"limit = 0: input should be greater than or equal to 1"),
    (lambda: flow(max_parallel=0), r"max_parallel = 0: input should be greater than or equal to 1"),
    (lambda: flow(concurrency_key=""), r"concurrency_key = '': string should have at least 1 character"),
    (lambda: flow(deadline=0), r"deadline = 0: input should be greater than 0"),
    (lambda: flow(on_success=5), r"on_success= is a Celery signature such as task\.s\(1\), not 5"),
    (step(rate=5), r"rate = 5: input should be a valid dictionary or instance of Rate"),
    (step(rate={"key": "x", "limit": 0}), r"rate\.limit = 0: input should be greater than or equal to 1"),
    (step(retry=0), r"retry\.attempts = 0: input should be greater than or equal to 1"),
    (step(on_failure="ignore"), r"on_failure = 'ignore': it is 'fail', 'skip' or a Default\(value\)"),
    (step(limit=2), r"limit says how many at once of what: give concurrency_key"),
    (step(priority=10), r"priority = 10: input should be less than or equal to 9"),
    (step(heartbeat=0), r"heartbeat = 0: input should be greater than 0"),
    (step(queue_timeout=-1), r"queue_timeout = -1: input should be greater than 0"),
    (step("map", over=[1], concurrency=0), r"map\.concurrency = 0: input should be greater than or equal"),
    (step("loop", until="index > 1", limit=0), r"loop\.limit = 0: input should be greater than or equal"),
    (step("approve", "m", needed=0), r"'needed' .*greater than or equal to 1, not 0"),
    (step("approve", "m", needed=3, who=["ann"]), r"3 people must approve, and only 1 may"),
    (step("approve", "m", who="ann"), r"'who' .*should be a valid list, not str"),
    (step("approve", "m", expires=-1), r"'expires' .*greater than or equal to 0, not -1"),
    (step("approve", "m", escalate_after=1), r"escalate_after= and escalate_to= go together"),
    (step("wait_for", "go", timeout=-1), r"'timeout' .*greater than or equal to 0, not -1"),
    (step("wait_for", "go", default=1), r"default= without timeout= is never used"),
    (step("sleep", -1), r"'seconds' .*greater than or equal to 0, not -1"),
    (step("child", 5), r"a child run is one of a Workflow, or of the name of one, not of 5"),
    (named("w1", retries="x"), r"retries 'x' is neither a number from 0 on nor a Retry"),
    (named("w2", queue=5), r"queue 5 is not a name of 1 to 200 characters"),
    (named("w3", timeout="x"), r"timeout 'x' is not a number of seconds above 0"),
    (named("w4", timeout=timedelta(1)), r"timeout .* is not a number of seconds above 0"),
    (named("w5", priority="high"), r"priority 'high' is not one of 0 … 9"),
]


@pytest.mark.parametrize(("construct", "message"), WRONG, ids=range(len(WRONG)))
def test_it_is_refused_where_it_is_written(construct: Callable[[], Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        construct()


def test_constructed_right_they_are_plain_values() -> None:
    """By place or by name, copied and pickled, and as data inside a definition."""
    for value in (Rate("k{params.id}", 3, per=60), Retry(3, base=2), Default(None), Default(default=[1])):
        assert pickle.loads(pickle.dumps(value)) == value == type(value).model_validate(value.model_dump())
    assert Rate(key="k", limit=1) == Rate("k", 1, 1.0)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"rate": {"key": "x", "limit": 0}}, r"rate\.limit: .*greater than or equal to 1, not 0"),
        ({"rate": {"key": "x"}}, r"rate\.limit: is missing"),
        ({"rate": {"key": "x", "limit": 1, "burst": 2}}, r"rate\.burst: there is no such field"),
        ({"retry": {"attempts": 0}}, r"retry\.attempts: .*greater than or equal to 1, not 0"),
        ({"on_failure": {"default": 1, "x": 2}}, r"on_failure\.x: there is no such field"),
        ({"concurrency_key": "k", "limit": 0}, r"limit: .*greater than or equal to 1, not 0"),
    ],
    ids=range(6),
)
def test_as_data_the_same_is_told_with_its_place(written: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message) as caught:
        spec_of({"name": "w", "steps": {"s": {"action": "built", **written}}})
    assert caught.value.step == "s"
