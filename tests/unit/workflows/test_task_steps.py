"""Tasks of other applications in definitions: one form, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import yaml
from celery import Celery
from steps import add

from trellis.tasks.errors import DefinitionError
from trellis.workflows import Workflow, action, files


def flow() -> Workflow:
    return Workflow("foreign", register=False, params={"list": list[int]})


@action(name="task_steps.asks")
def asks(task: str | None, args: list[int]) -> None:
    """Has inputs that are called like the options of a task."""


def test_the_task_itself_is_as_good_as_its_name() -> None:
    """A Celery task of an application that this process has imported."""
    by_name, itself = flow(), flow()
    by_name.step("a", task="add", queue="x")
    itself.step("a", task=add, queue="x")
    assert by_name.digest() == itself.digest()


def test_an_action_may_have_inputs_of_these_names() -> None:
    wf = flow()
    wf.step("a", asks, task=None, args=[1])
    assert wf.spec.steps["a"].inputs == {"task": None, "args": [1]}


def test_arguments_may_be_references_as_a_whole() -> None:
    wf = flow()
    first = wf.step("first", task="x", queue="q", args=wf.params.list)
    wf.step("second", task="x", queue="q", kwargs=first["options"])
    assert wf.spec.steps["first"].inputs["args"] == "${params.list}"


def test_the_queue_is_the_tasks_and_not_that_of_the_engines_step() -> None:
    """Else the other application's worker would be sent a step that it does not know, and throw it away."""
    wf = flow()
    wf.step("a", task="x", queue="media")
    wf.step("b", "trellis.task", queue="media", inputs={"task": "x"})
    for step in wf.spec.steps.values():
        assert step.queue is None
        assert step.inputs["queue"] == "media"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "a step needs an action, or task= with the name of a Celery task"),
        ({"task": 3}, "a step needs an action, or task= with the name of a Celery task"),
        ({"task": ""}, "a step needs an action, or task= with the name of a Celery task"),
        (
            {"task": "x", "width": 3},
            "'width' is no option: task 'x' takes its arguments as args=[…] and kwargs={…}",
        ),
        ({"task": "x", "inputs": {"a": 3}}, "'a' is no option: task 'x' takes its arguments as"),
        ({"task": "x", "args": "abc"}, "args= is a list, or a reference to one, not 'abc'"),
        ({"task": "x", "kwargs": [1]}, r"kwargs= is a mapping, or a reference to one, not \[1\]"),
        ({"task": "x", "args": [object()]}, "type object, which has no JSON form"),
    ],
)
def test_what_a_task_step_does_not_take_is_refused_at_once(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(
        DefinitionError, match=f"workflow 'foreign', step 'a': .*{problem.replace('[…]', '.*')}"
    ):
        flow().step("a", **options)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("task: x, action: y", "step 'a': has both an action and a task: remove one of them"),
        ("task: x, inputs: {a: 1}", "step 'a': a `task` takes `args` and `kwargs`, not `inputs`"),
        ("task: 3", "step 'a': `task` is the name of a Celery task, not 3"),
        ("action: x, args: [1]", "step 'a': args and kwargs are those of a `task`: an action takes `inputs`"),
    ],
)
def test_a_file_is_refused_with_its_line(fields: str, problem: str) -> None:
    text = f"name: foreign\nsteps:\n  a: {{{fields}}}\n"
    with pytest.raises(DefinitionError) as caught:
        files.loads(text, name="f.yaml")
    assert str(caught.value) == f"f.yaml:3: {problem}"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), files.schema())


def test_arguments_of_the_wrong_kind_are_refused_when_the_definition_is_checked() -> None:
    spec = files.loads("name: foreign\nsteps:\n  a: {task: x, args: {b: 1}}\n")
    with pytest.raises(DefinitionError, match="step 'a': input 'args' of action 'trellis.task'"):
        Workflow.from_spec(spec).validate()


def test_a_canvas_has_no_such_step() -> None:
    wf = flow()
    wf.step("a", task="x", queue="q")
    with pytest.raises(DefinitionError, match="step 'a': trellis.task needs the engine"):
        wf.canvas(list=[])


MEDIA = Celery("media", broker="memory://", set_as_current=False)


def test_signatures_of_a_workflow_are_part_of_its_definition() -> None:
    """In a file they read the same."""
    tell = MEDIA.signature("media.tell", args=("Ann",)).set(queue="media", priority=2)
    wf = Workflow(
        "told", register=False, on_success=tell, on_failure=[MEDIA.signature("media.cry", immutable=True)]
    )
    wf.step("a", add, a=1)
    text = (
        "name: told\nsteps:\n  a: {action: add, inputs: {a: 1}}\nthen:\n"
        "  success: {task: media.tell, args: [Ann], queue: media, priority: 7}\n"
        "  failure:\n  - {task: media.cry, queue: celery, immutable: true}\n"
    )
    assert files.loads(text).digest() == wf.digest()
    assert files.loads(files.dump(wf.spec)).digest() == wf.digest()
    assert Workflow.from_spec(wf.spec).digest() == wf.digest()
    with pytest.raises(DefinitionError, match="then needs the engine"):
        wf.canvas()


@pytest.mark.parametrize(
    ("signature", "problem"),
    [
        (lambda: 3, r"workflow 'told': on_success= is a Celery signature such as task.s\(1\), not 3"),
        (lambda: MEDIA.signature("a").set(countdown=3), "on_success= has the option 'countdown'"),
        (
            lambda: MEDIA.signature("a") | MEDIA.signature("b"),
            "takes signatures of tasks, no chain: give it to Client",
        ),
    ],
)
def test_what_a_definition_cannot_send_is_refused(signature: Callable[[], Any], problem: str) -> None:
    with pytest.raises(DefinitionError, match=problem):
        Workflow("told", register=False, on_success=signature())


def test_a_mistyped_field_of_a_task_that_is_sent_is_named() -> None:
    text = "name: told\nsteps:\n  a: {action: add}\nthen:\n  success: {task: x, que: y}\n"
    with pytest.raises(
        DefinitionError, match=r"f.yaml:5: then.success.*que: there is no such field; did you mean"
    ):
        files.loads(text, name="f.yaml")


def test_importing_trellis_leaves_the_programs_own_application_the_current_one() -> None:
    """Else its shared tasks would go to our broker."""
    program = """
import celery
app = celery.Celery("own", broker="memory://")
import trellis.workflows
assert celery.current_app.main == "own", celery.current_app.main
"""
    subprocess.run([sys.executable, "-c", program], check=True)
