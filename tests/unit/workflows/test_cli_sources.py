"""What a target means, and under which name a Python file becomes a module."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from trellis.tasks.errors import ConfigurationError, DefinitionError
from trellis.workflows import modules, registry, sources

FLOW = """
from trellis.workflows import Workflow, action

@action
def one() -> int:
    return 1

wf = Workflow({name!r})
wf.step("one", one)
"""
TWO = """
from trellis.workflows import Workflow
first, second = (Workflow(name, register=False) for name in ("night", "day"))
"""
YAML = "name: y\nsteps:\n  a: {action: nowhere.at.all}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; afterwards the process knows no more modules, actions and workflows than before."""
    before, path = set(sys.modules), list(sys.path)
    actions, workflows = set(registry.actions.names()), set(registry.workflows.names())
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    for name in set(registry.actions.names()) - actions:
        registry.actions.discard(name)
    for name in set(registry.workflows.names()) - workflows:
        registry.workflows.discard(name)


def write(path: str, text: str) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def nobody(names: Sequence[str]) -> str | None:
    return None


def action_of(target: str, asking: modules.Asking = nobody) -> str:
    return sources.from_file(target, asking).spec.steps["one"].action


# --- the name of a module


def test_a_file_is_imported_as_python_would_run_it() -> None:
    """Bare name, its folder first on the path, so that its siblings are found."""
    write("flows/helper_a.py", "NAME = 'bare'\n")
    write("flows/flow_a.py", "from helper_a import NAME\n" + FLOW.replace("{name!r}", "NAME"))
    assert action_of("flows/flow_a.py") == "flow_a.one"


def test_a_file_of_a_package_has_its_dotted_name() -> None:
    """Relative imports work, as for the worker that imports the package."""
    write("pkg_b/__init__.py", "")
    write("pkg_b/sub/__init__.py", "")
    write("pkg_b/helper.py", "NAME = 'b'\n")
    write("pkg_b/sub/flow.py", "from ..helper import NAME\n" + FLOW.replace("{name!r}", "NAME"))
    assert action_of("pkg_b/sub/flow.py") == "pkg_b.sub.flow.one"


def test_a_module_that_is_imported_already_is_taken_as_it_is() -> None:
    """`--import flows_c.flow` gives the file its name."""
    write("flows_c/flow.py", FLOW.format(name="c"))
    modules.import_all(["flows_c.flow"])
    assert action_of("flows_c/flow.py") == "flows_c.flow.one"


def test_the_name_that_workers_know_is_taken() -> None:
    write("flows_d/flow_d.py", FLOW.format(name="d"))
    asked: list[Sequence[str]] = []

    def workers(names: Sequence[str]) -> str | None:
        asked.append(names)
        return "flows_d.flow_d"

    assert action_of("flows_d/flow_d.py", workers) == "flows_d.flow_d.one"
    assert asked == [["flow_d", "flows_d.flow_d"]]


def test_workers_are_not_asked_where_nothing_depends_on_it() -> None:
    """A file with one name only, and one that defines no action."""

    def refuse(names: Sequence[str]) -> str | None:
        raise AssertionError(names)

    write("flow_e.py", FLOW.format(name="e"))
    assert action_of("flow_e.py", refuse) == "flow_e.one"
    write("flows/flow_f.py", "from trellis.workflows import Workflow\nwf = Workflow('f', register=False)\n")
    assert sources.from_file("flows/flow_f.py", refuse).name == "f"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my-flow.py", "'my-flow.py' is no module name"),
        ("json.py", "the module name 'json' of"),
    ],
)
def test_a_name_that_cannot_be_imported_is_refused(path: str, message: str) -> None:
    write(path, FLOW.format(name="x"))
    with pytest.raises(ConfigurationError, match=message):
        sources.from_file(path, nobody)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x = 1\ny = nothing\n",
            "'broken' cannot be imported: broken.py:2: NameError: name 'nothing' is not",
        ),
        ("x = (\n", "'broken' cannot be imported: broken.py:1: SyntaxError: '\\(' was never closed$"),
        ("import sys\nsys.exit(3)\n", "'broken' cannot be imported: broken.py:2: SystemExit: 3"),
        ("import no_such_thing\n", "broken.py:1: ModuleNotFoundError"),
        (
            "import json\ndef read():\n    return json.loads('{')\nread()\n",
            "'broken' cannot be imported: broken.py:4 > broken.py:3: JSONDecodeError: Expecting",
        ),
    ],
)
def test_an_import_that_fails_tells_the_line(text: str, message: str) -> None:
    write("broken.py", text)
    with pytest.raises(ConfigurationError, match=message):
        sources.from_file("broken.py", nobody)


def test_a_wrong_definition_tells_the_line() -> None:
    write("wrong.py", FLOW.format(name="wrong") + "wf.step('two', one, nothing=1)\n")
    with pytest.raises(DefinitionError, match=r"^wrong\.py:10: workflow 'wrong', step 'two'"):
        sources.from_file("wrong.py", nobody)


# --- the workflow in a file


def test_one_of_several_is_named_by_its_name_or_its_variable() -> None:
    write("two.py", TWO)
    assert sources.from_file("two.py:day", nobody).name == "day"
    assert sources.from_file("two.py:second", nobody).name == "day"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("two.py", "two.py defines 2 workflows, 'night', 'day': say which, e.g. two.py:night"),
        ("two.py:nigt", "two.py defines no workflow 'nigt'; did you mean 'night'?"),
        ("none.py", "none.py defines no workflow"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(target: str, message: str) -> None:
    write("two.py", TWO)
    write("none.py", "")
    with pytest.raises(DefinitionError) as refused:
        sources.from_file(target, nobody)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tow.py", "there is no file 'tow.py'; did you mean 'two.py'?"),
        ("nowhere/two.py", "there is no file 'nowhere/two.py': there is no folder 'nowhere'"),
        ("flows/", "there is no file 'flows', it is a folder; its files are 'flow.yaml'"),
        ("notes.txt", "'notes.txt' is neither a .py file nor a definition"),
    ],
)
def test_a_file_that_is_not_there_is_told_with_its_neighbours(target: str, message: str) -> None:
    write("two.py", TWO)
    write("notes.txt", "")
    write("flows/flow.yaml", YAML)
    with pytest.raises(ConfigurationError) as refused:
        sources.from_file(target, nobody)
    assert message in str(refused.value)


def test_the_form_of_a_target_decides() -> None:
    """A folder that has the name of a workflow hides nothing."""
    write("flights/flow.yaml", YAML)
    files = ["flow.yaml", "a.json", "x.py", "x.py:name", "flights/flow", "./flights"]
    assert [sources.is_file(each) for each in files] == [True] * len(files)
    assert not any(sources.is_file(each) for each in ("flights", "flights.daily", "01a1f837-a172"))


def test_a_definition_is_drawn_without_its_actions_and_not_started_without_them() -> None:
    write("flow.yaml", YAML)
    assert list(sources.from_file("flow.yaml", nobody, strict=False).spec.steps) == ["a"]
    with pytest.raises(DefinitionError, match=r"flow\.yaml:3: .*there is no action 'nowhere\.at\.all'"):
        sources.from_file("flow.yaml", nobody)


def test_a_drawing_still_needs_its_steps() -> None:
    write("flow.yaml", YAML.replace("nowhere.at.all", "x.y, after: [b]"))
    with pytest.raises(DefinitionError, match="a step 'b' that does not exist"):
        sources.from_file("flow.yaml", nobody, strict=False)
