"""What the repository's shape promises: the root is the package `trellis`, and nothing else slips in."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from trellis.tasks.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("tasks", "memory", "workflows", "agents")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _packages_on_disk() -> set[str]:
    """Every folder below the floors that holds Python or SQL, under the name it is imported by."""
    folders = {
        path.parent.relative_to(ROOT)
        for floor in FLOORS
        for pattern in ("*.py", "*.sql")
        for path in (ROOT / floor).rglob(pattern)
    }
    return {".".join(("trellis", *folder.parts)) for folder in folders}


def test_every_folder_with_code_is_listed() -> None:
    """A folder that is not in `packages` works in the checkout and is missing in the wheel."""
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert listed - {"trellis"} == _packages_on_disk()


def test_the_root_holds_one_module() -> None:
    """setuptools would ship any other `.py` of the root as `trellis.<name>`."""
    assert [path.name for path in ROOT.glob("*.py")] == ["celeryconfig.py"]
    assert not (ROOT / "__init__.py").exists(), "trellis is a namespace: its floors are its doors"


@pytest.mark.parametrize("floor", FLOORS)
def test_every_floor_is_typed(floor: str) -> None:
    """A namespace package needs a `py.typed` in each of its portions."""
    assert (ROOT / floor / "py.typed").is_file()


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_refuses_its_bare_name(floor: str) -> None:
    """With the root on sys.path `import tasks` finds ours: it must say so, not shadow a user's own."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {floor}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert f"trellis.{floor}" in last, "the message names the import to write instead"


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_described(name: str) -> None:
    """The description is what a person reads who got `TRELLIS_…` wrong."""
    description = Settings.model_fields[name].description
    assert description, f"{PREFIX}{name.upper()} has no description"
    assert description.rstrip().endswith("."), "a sentence"


def test_the_command_is_the_ground_floors() -> None:
    """`trellis` starts in tasks; the floors above join it by entry points."""
    scripts = {entry.name: entry.value for entry in metadata.entry_points(group="console_scripts")}
    assert scripts["trellis"] == PROJECT["project"]["scripts"]["trellis"]
    assert scripts["trellis"].startswith("trellis.tasks.")


def test_the_licence_is_the_declared_one() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
