"""The wheel as a user gets it: built, looked into, and tried in an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("tasks", "memory", "workflows", "agents")
SHIPPED = (*FLOORS, "celeryconfig.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy: setuptools writes beside the sources, where others work at the same time."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    # What must not slip in: a stray module, and the folders that a careless `packages` would take along.
    for name in ("tests", "examples", "benchmarks", "docs"):
        (source / name).mkdir()
        (source / name / "__init__.py").touch()
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", source, cwd=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that holds this wheel.

    Its dependencies are those of the environment that runs the tests, reached by a path file: they are not
    in question, and fetching them again takes a minute. The checkout is not: an editable install works by
    a path file of its own, and Python does not read the path files of a folder that it got from one.
    """
    folder = tmp_path_factory.mktemp("clean") / "an environment"
    venv.create(folder, with_pip=False, symlinks=True)
    binaries = folder / "bin"
    _run(
        sys.executable, "-m", "pip", "--python", binaries / "python",
        "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", wheel,
        cwd=folder,
    )  # fmt: skip
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return binaries


def _run(*command: str | Path, cwd: Path) -> str:
    # Neither the checkout nor a stack of the developer may show through.
    hidden = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in hidden and not name.startswith(("TRELLIS_", "COVERAGE_"))
    }
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if not name.endswith("/")]


def test_the_only_top_level_is_trellis(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in _names(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"trellis"}
    assert len(tops) == 2
    names = {name.split("/")[1] for name in _names(wheel) if name.startswith("trellis/")}
    assert names == {*FLOORS, "celeryconfig.py"}


def test_the_wheel_holds_every_file_of_the_floors(wheel: Path) -> None:
    """Code, SQL, migrations and type markers: what runs in the checkout is what a user gets."""
    source = wheel.parents[1] / "source"
    wanted = {"trellis/celeryconfig.py"}
    for floor in FLOORS:
        for path in (source / floor).rglob("*"):
            if path.suffix in (".py", ".sql") or path.name == "py.typed":
                wanted.add("trellis/" + path.relative_to(source).as_posix())
    assert {name for name in _names(wheel) if name.startswith("trellis/")} == wanted
    assert any(name.endswith(".sql") for name in wanted)
    assert any("/migrations/versions/" in name for name in wanted)
    assert "trellis/workflows/py.typed" in wanted


def test_the_licence_travels_with_it(wheel: Path) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in _names(wheel))


def test_the_command_works_in_a_clean_environment(clean: Path, tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version in _run(clean / "trellis", "--version", cwd=tmp_path)


def test_the_doors_open_in_a_clean_environment(clean: Path, tmp_path: Path) -> None:
    """From an empty folder, and from the installed files, not from the checkout."""
    program = (
        "import trellis.tasks, trellis.memory, trellis.workflows, trellis.agents, trellis.celeryconfig\n"
        "from trellis.workflows import Client, Workflow, action\n"
        "print(trellis.workflows.__file__)"
    )
    file = _run(clean / "python", "-c", program, cwd=tmp_path).strip()
    assert Path(file).is_relative_to(clean.parent)


def test_nothing_of_ours_takes_a_users_names(clean: Path, tmp_path: Path) -> None:
    """Installed, `tasks`, `agents` and the rest stay free for a user's own modules."""
    (tmp_path / "tasks.py").write_text("mine = True\n")
    assert _run(clean / "python", "-c", "import tasks; print(tasks.mine)", cwd=tmp_path).strip() == "True"
    for name in ("memory", "workflows", "agents", "tests"):
        program = f"import importlib.util; print(importlib.util.find_spec({name!r}))"
        assert _run(clean / "python", "-c", program, cwd=tmp_path).strip() == "None"
