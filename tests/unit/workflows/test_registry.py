"""Names mean one thing in a process."""

from __future__ import annotations

import pytest
from catalogue import actions, anything, nothing

from trellis.tasks.errors import DefinitionError
from trellis.workflows import registry
from trellis.workflows.contract import Contract
from trellis.workflows.definition import Workflow
from trellis.workflows.registry import ActionInfo, Actions


def body() -> None: ...
def other() -> None: ...


def test_the_same_function_may_come_again_another_one_may_not() -> None:
    known = Actions()
    known.add(ActionInfo("a", Contract.of(body, "a")))
    known.add(ActionInfo("a", Contract.of(body, "a"), queue="new"))

    with pytest.raises(DefinitionError, match=r"action 'a' is defined twice, in .*body and in .*other"):
        known.add(ActionInfo("a", Contract.of(other, "a")))

    found = known.get("a")
    assert found is not None
    assert found.queue == "new"
    assert known.names() == ["a"]
    assert "a" in known
    assert len(known) == 1


@pytest.fixture
def name() -> str:
    return "registered-in-test"


@pytest.fixture(autouse=True)
def _clean(name: str) -> object:
    yield
    registry.workflows.discard(name)


def test_a_workflow_is_found_by_its_name(name: str) -> None:
    wf = Workflow(name, catalogue=actions)

    assert registry.workflows.get(name) is wf
    assert name in registry.workflows.names()


def test_the_same_definition_may_come_again(name: str) -> None:
    for _ in range(2):
        Workflow(name, catalogue=actions).step("a", nothing)
    first, second = Workflow(name, catalogue=actions), Workflow(name, catalogue=actions)
    for wf in (first, second):
        wf.step("a", nothing)

    assert first.spec == second.spec


def test_another_definition_under_a_name_is_refused(name: str) -> None:
    first, second = Workflow(name, catalogue=actions), Workflow(name, catalogue=actions)
    first.step("a", nothing)
    second.step("a", anything, x=1)

    assert first.spec.name == name
    with pytest.raises(DefinitionError, match="another workflow of this name"):
        second.spec
    second.step("b", nothing)
    with pytest.raises(DefinitionError, match="another workflow of this name"):
        second.spec


def test_a_broken_definition_does_not_keep_its_name(name: str) -> None:
    """As when a cell of a notebook is mended and run again."""
    Workflow(name, catalogue=actions).step("a", nothing, after="b")
    mended = Workflow(name, catalogue=actions)
    mended.step("a", nothing)

    assert mended.spec.name == name
    assert registry.workflows.get(name) is mended


def test_a_workflow_that_is_not_registered_has_no_say(name: str) -> None:
    Workflow(name, catalogue=actions).step("a", nothing)
    loose = Workflow(name, catalogue=actions, register=False)
    loose.step("z", anything, x=1)

    assert loose.spec.name == name
    assert registry.workflows.get(name) is not loose
