"""An existing canvas as a workflow gives what Celery gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stack import Stack

from trellis.tasks.errors import DefinitionError
from trellis.workflows import Workflow, action, registry
from trellis.workflows.states import RunState

Canvas = Callable[[Any], Any]


def _say(*words: Any) -> str:
    """What it was called with, so that every difference shows in the end."""
    return f"({' '.join(map(str, words))})"


@action(name="canvas.say")
def say(first: Any = None, second: Any = None, third: Any = None) -> Any:
    """The same as an action: by name, for that is how steps are called."""
    return _say(*(each for each in (first, second, third) if each is not None))


@pytest.fixture(scope="module")
def plain() -> Iterator[Any]:
    """The task of a Celery application that runs its canvases itself."""
    app = Celery("plain", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_always_eager = True
    yield app.task(_say, name="plain.say")
    app.close()


def engines(stack: Stack, canvas: Any) -> Any:
    """What the engine gives: one value, or the list of a group's."""
    wf = Workflow.from_canvas("imported", canvas, register=False)
    run = stack.client.start(wf)
    stack.drain(run.id)
    assert stack.client.get(run).state is RunState.SUCCEEDED, stack.client.get(run).error
    found = list(stack.client.result(run).values())
    return found if isinstance(canvas, group) or len(found) > 1 else found[0]


SHAPES: dict[str, Canvas] = {
    "task": lambda t: t.s(1),
    "chain": lambda t: chain(t.s(1), t.s(2), t.s(3)),
    "pipes": lambda t: t.s(1) | t.s(2) | t.s(3),
    "immutable": lambda t: chain(t.s(1), t.si(2), t.s(3)),
    "group": lambda t: group(t.s(1), t.s(2)),
    "groups in groups": lambda t: group(group(t.s(1), t.s(2)), t.s(3)),
    "chord": lambda t: chord([t.s(1), t.s(2)], t.s(3)),
    "chord of one": lambda t: chord([t.s(1)], t.s(3)),
    "chord, immutable body": lambda t: chord([t.s(1), t.s(2)], t.si(3)),
    "chain with a group": lambda t: chain(t.s(1), group(t.s(2), t.s(3)), t.s(4)),
    "chain with a group of one": lambda t: chain(t.s(1), group(t.s(2)), t.s(4)),
    "chain that ends in a group": lambda t: chain(t.s(1), group(t.s(2), t.si(3))),
    "group of chains": lambda t: chord([chain(t.s(1), t.s(2)), chain(t.s(3), t.s(4))], t.s(5)),
    "group after group": lambda t: chain(group(t.s(1), t.s(2)), group(t.s(3), t.s(4)), t.s(5)),
    "chord in a header": lambda t: chord([chord([t.s(1), t.s(2)], t.s(3)), t.s(4)], t.s(5)),
    "chain in a body": lambda t: chord([t.s(1), t.s(2)], chain(t.s(3), t.s(4))),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_engine_gives_what_celery_gives(shape: str, stack: Stack, plain: Any) -> None:
    canvas = SHAPES[shape]
    assert engines(stack, canvas(say)) == canvas(plain).apply_async().get()


leaf = st.tuples(st.sampled_from(["s", "si"]), st.integers(1, 9))
tree = st.recursive(
    leaf,
    lambda inner: st.tuples(
        st.sampled_from(["chain", "group", "chord"]), st.lists(inner, min_size=2, max_size=3)
    ),
    max_leaves=7,
)


def _built(shape: Any, task: Any) -> Any:
    kind, content = shape
    if kind in ("s", "si"):
        return getattr(task, kind)(content)
    parts = [_built(each, task) for each in content]
    if kind == "chord":
        return chord(parts[:-1], parts[-1])
    return (chain if kind == "chain" else group)(parts)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=tree)
def test_any_canvas_gives_what_celery_gives(shape: Any, stack: Stack, plain: Any) -> None:
    assert engines(stack, _built(shape, say)) == _built(shape, plain).apply_async().get()


def test_tasks_that_are_no_actions_become_foreign_steps_on_their_applications_queue() -> None:
    media = Celery("media", broker="memory://", set_as_current=False)
    media.conf.task_default_queue = "media"
    media.conf.task_routes = {"media.heavy": {"queue": "gpu"}}
    light = media.task(_say, name="media.light")
    heavy = media.task(_say, name="media.heavy")
    wf = Workflow.from_canvas(
        "mixed",
        chain(light.s(1, a=2), heavy.s(3).set(priority=2, soft_time_limit=60), say.s(4)),
        register=False,
    )
    first, second, third = wf.spec.steps.values()
    assert first.inputs == {"task": "media.light", "args": [1], "kwargs": {"a": 2}, "queue": "media"}
    assert second.inputs == {
        "task": "media.heavy", "args": ["${steps.light}", 3], "kwargs": {}, "queue": "gpu", "priority": 7,
    }  # fmt: skip
    assert second.timeout == 60
    assert (third.action, third.inputs) == ("canvas.say", {"first": "${steps.heavy}", "second": 4})
    media.close()


def test_the_name_leads_to_it_like_any_workflow() -> None:
    wf = Workflow.from_canvas("canvas-registered", say.s(1))
    assert registry.workflows.get("canvas-registered") is wf
    registry.workflows.discard("canvas-registered")


@pytest.mark.parametrize(
    ("canvas", "problem"),
    [
        (lambda: 3, r"canvas: is 3: a canvas is made of signatures such as task.s\(1\)"),
        (
            lambda: chain(say.s(1), say.s(2).set(countdown=3)),
            r"canvas\[1\]: its option countdown has no like here",
        ),
        (
            lambda: group(say.s(1), say.s(2).on_error(say.s())),
            r"canvas\[1\]: its option link_error has no like here",
        ),
        (
            lambda: chain(say.s(1), say.chunks([(1,)], 1)),
            r"canvas\[1\]: celery.chunks cannot be imported: write it as",
        ),
        (
            lambda: chord([say.s(1), say.map([1])], say.s()),
            r"canvas.header\[1\]: celery.map cannot be imported",
        ),
        (
            lambda: chain(say.s(1), say.s(2, 3, 4)),
            r"canvas\[1\]: 4 arguments, with the result .* for the 3 inputs",
        ),
        (
            lambda: chain(say.s(1), say.s(first=2)),
            r"canvas\[1\]: input 'first' of action 'canvas.say' is given by",
        ),
        (lambda: group(), "canvas: it has no members"),
        (lambda: say.s(third={1}) | say.s(fourth=1), r"there is no input|'fourth' is neither an input"),
        (lambda: group(say.s(n) for n in range(2)), None),
    ],
)
def test_what_cannot_be_said_is_refused_with_its_place(
    canvas: Callable[[], Any], problem: str | None
) -> None:
    if problem is None:  # a generator is as good as a list
        assert len(Workflow.from_canvas("lazy", canvas(), register=False)) == 2
        return
    with pytest.raises(DefinitionError, match=problem):
        Workflow.from_canvas("refused", canvas(), register=False).validate()
