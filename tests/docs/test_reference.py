"""The reference is complete and up to date: what a user can meet by name is there, and every link leads somewhere."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import generated
import pytest
from fences import PAGES, ROOT

import trellis.tasks
import trellis.workflows
from trellis.memory.actions import AuditAction
from trellis.tasks.errors import TrellisError
from trellis.tasks.settings import PREFIX, Settings
from trellis.workflows.spec import CallSpec, MapSpec, StepSpec, ThenSpec, UndoSpec, WorkflowSpec
from trellis.workflows.states import RUN_MOVES, STEP_ENDS, STEP_MOVES, RunState, StepState

REFERENCE = ROOT / "docs" / "reference"
SOURCES = [
    *(ROOT / "tasks").glob("*.py"),
    *(ROOT / "memory").rglob("*.py"),
    *(ROOT / "workflows").glob("*.py"),
    *(ROOT / "workflows/sql").glob("*.sql"),
]
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    return (REFERENCE / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.md")), ids=lambda path: path.name)
def test_what_the_code_writes_is_up_to_date(path: Path) -> None:
    """Settings, commands, errors, fields and signatures stand in the pages as they are in the code."""
    text = path.read_text(encoding="utf-8")
    assert generated.current(text) == text, "run: .venv/bin/python tests/docs/generated.py"


def test_every_setting_is_there() -> None:
    text = page("settings")
    assert [name for name in Settings.model_fields if f"`{PREFIX}{name.upper()}`" not in text] == []


def test_every_error_is_there() -> None:
    text = page("errors")
    assert [
        each.__name__ for each in generated.classes(TrellisError) if f"| `{each.__name__}` |" not in text
    ] == []


def test_every_command_and_option_is_there() -> None:
    text = page("cli")
    for title, command in _commands("trellis", commands.application()):
        section = re.split(r"\n###? ", text.partition(f"# {title}\n")[2])[0]
        assert section, title
        assert [
            option
            for each in command.params
            for option in each.opts
            if option[0] == "-" and option not in section
        ] == []


def _commands(name: str, group: Any) -> Iterator[tuple[str, Any]]:
    """A group's commands by their full names, and those of the groups in it."""
    for each, command in getattr(group, "commands", {}).items():
        yield f"{name} {each}", command
        yield from _commands(f"{name} {each}", command)


def test_every_field_of_a_definition_is_there() -> None:
    text = page("definition-file")
    for model in (
        WorkflowSpec,
        StepSpec,
        MapSpec,
        UndoSpec,
        ThenSpec,
        CallSpec,
        trellis.workflows.Retry,
        trellis.workflows.Default,
    ):
        assert [name for name in model.model_fields if f"| `{name}` |" not in text] == []


def test_every_exported_name_is_there() -> None:
    text = page("python-api")
    missing = [name for name in trellis.workflows.__all__ if f"\n### {name}\n" not in text]
    missing += [name for name in trellis.tasks.__all__ if f"`{name}`" not in text]
    assert missing == []


def test_every_public_method_is_there() -> None:
    """What a class has for its users, and does not inherit."""
    shown = {thing: set(methods) for members in generated.GROUPS.values() for thing, methods in members}
    for thing, methods in shown.items():
        if inspect.isclass(thing):
            public = {
                name for name, each in vars(thing).items() if not name.startswith("_") and _is_method(each)
            }
            internal = {*generated.INTERNAL.get(thing.__name__, ()), *generated.twins_of(thing)}
            assert public - methods - internal == set(), thing.__name__


def _is_method(thing: object) -> bool:
    return inspect.isfunction(thing) or isinstance(thing, property | classmethod)


def test_every_event_is_there() -> None:
    """What the journal tells and what the logs say, found in the sources."""
    text = page("events")
    audit = ROOT / "memory" / "actions.py"  # the codes of another book, which explain/audit.md lists
    sources = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES if path != audit)
    kinds = set(re.findall(r"""["']((?:run|step)\.[a-z]+)["']""", sources))
    kinds |= {f"step.{state.value}" for state in STEP_ENDS - {StepState.FAILED}}
    kinds |= {f"run.{state.value}" for state in RunState if state in (RunState.FAILED, RunState.CANCELLED)}
    kinds |= set(re.findall(r"""\blog\.(?:debug|info|warning|error|exception)\(\s*"([a-z.]+)\"""", sources))
    assert sorted(kind for kind in kinds if f"| `{kind}` |" not in text) == []


def test_every_action_of_the_audit_log_is_there() -> None:
    """The table of explain/audit.md and the catalogue have the same codes."""
    text = (ROOT / "docs/explain/audit.md").read_text(encoding="utf-8")
    first_cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    assert sorted(code for cell in first_cells for code in re.findall(r"`(.+?)`", cell)) == sorted(
        AuditAction
    )


def test_every_move_of_a_state_is_there() -> None:
    """The diagrams show the moves of the table, and no others."""
    text = (ROOT / "docs/explain/states.md").read_text(encoding="utf-8")
    step, run = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)
    for diagram, moves in ((step, STEP_MOVES), (run, RUN_MOVES)):
        shown = {
            (source, target) for source, target in re.findall(r"^    (\w+) --> (\w+)", diagram, re.MULTILINE)
        }
        true = {(source.value, target.value) for source, targets in moves.items() for target in targets}
        assert shown == true


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """Files are there, and so are the headings that a link names."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        file, _, heading = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), target
        if heading:
            assert heading in _headings(found), target


def _headings(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_can_be_reached_from_the_readme() -> None:
    """Directly, or from the list of how-to guides."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    guides = (ROOT / "docs/howto/README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w/.-]+)\)", readme))
    linked |= {f"docs/howto/{target}" for target in re.findall(r"\]\(([\w/.-]+)\)", guides)}
    names = [str(path.relative_to(ROOT)) for path in PAGES]
    assert [name for name in names if name != "README.md" and name not in linked] == []


def test_files_that_pages_name_exist() -> None:
    """The walk through the code leads through files that are there."""
    text = (ROOT / "docs/explain/architecture.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"`([\w/]+\.(?:py|sql))`", text)):
        assert any((ROOT / folder / name).exists() for folder in ("", "workflows", "tasks")), name
    block = re.search(r"```text\n(definition .*?)```", text, re.DOTALL)
    assert block is not None
    for line in block[1].splitlines():
        for name in re.split(r"  +", line.partition(" ")[2].strip())[0:12]:
            if re.fullmatch(r"[a-z]+", name):
                assert (ROOT / "workflows" / f"{name}.py").exists(), name


def test_the_readme_names_both_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme
    assert "make test" in readme


def test_settings_that_pages_name_exist() -> None:
    """A variable that nobody reads would be a promise."""
    for path in PAGES:
        named = set(re.findall(r"\bTRELLIS_[A-Z_]+\b", path.read_text(encoding="utf-8")))
        known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
        compose = {"TRELLIS_APP", "TRELLIS_IMAGE"}  # of docker/compose.yaml
        assert named - known - compose == set(), path
