"""Which workflow a person means: `flights`, `flow.yaml`, `examples/flights/flights.py`, `flows.py:nightly`.

The law: the name under which a file is imported is part of its actions' names, so it has to be the one under
which workers import it. It is, in this order: the name given by `--import` or TRELLIS_IMPORTS; one that
workers know actions by; inside a package its dotted name; else the file's bare name with its folder first on
the path, as `python file.py` and `celery -A file` have it.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ..tasks.errors import ConfigurationError, DefinitionError
from ..tasks.imports import check_imports
from . import files, registry
from .contract import Contract
from .definition import Workflow
from .hints import choices, did_you_mean, listed
from .registry import ActionInfo

DEFINITIONS = (".yaml", ".yml", ".json")

_HERE = Path(__file__).parent
_MACHINERY = (
    "<",
    str(Path(importlib.__file__).parent),
    f"{_HERE}{os.sep}",
    f"{_HERE.parent / 'tasks'}{os.sep}",
)


def import_all(modules: Iterable[str]) -> None:
    """Import modules with actions and workflows, from the current folder as workers do.

    Raises ConfigurationError for one that is not there or does not run.
    """
    wanted = list(modules)
    check_imports(wanted)
    for name in wanted:
        _import(name)


def is_file(target: str) -> bool:
    """Whether a target means a file, by its form."""
    path = _split(target)[0]
    return path.suffix in (".py", *DEFINITIONS) or os.sep in target or (bool(path.suffix) and path.is_file())


def from_file(target: str, known_to_workers: Callable[[], Iterable[str]], *, strict: bool = True) -> Workflow:
    """The workflow in a file; `file.py:name` names one of several.

    known_to_workers: the names of the tasks that workers have; asked where a file could be imported under
        more than one name.
    strict: whether a definition's actions have to be known here.

    Raises ConfigurationError, DefinitionError.
    """
    path, name = _split(target)
    if not path.is_file():
        raise ConfigurationError(f"there is no file {str(path)!r}{near(path)}")
    if path.suffix in DEFINITIONS:
        return files.workflow(path, catalogue=registry.actions if strict else _Lenient())
    if path.suffix != ".py":
        raise ConfigurationError(
            f"{str(path)!r} is neither a .py file nor a definition ({listed(DEFINITIONS)})"
        )
    return _pick(_module(path.resolve(), known_to_workers), path, name)


class _Lenient:
    """The actions of this process, and any other that takes and gives anything."""

    def get(self, name: str) -> ActionInfo | None:
        return registry.actions.get(name) or ActionInfo(name, Contract.of(_anything, name))

    def names(self) -> list[str]:
        return registry.actions.names()


def _anything(**_: Any) -> Any:
    return None


def _split(target: str) -> tuple[Path, str]:
    path, colon, name = target.rpartition(":")
    return (Path(path), name) if colon and path.endswith(".py") else (Path(target), "")


def near(path: Path) -> str:
    """What a person may have meant by a file that is not there."""
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        return f": there is no folder {str(folder)!r}"
    names = sorted(each.name for each in folder.iterdir() if each.suffix in (".py", *DEFINITIONS))
    if folder == path:
        return f", it is a folder; its files are {listed(names)}"
    return did_you_mean(path.name, names)


def _pick(module: ModuleType, path: Path, name: str) -> Workflow:
    """The workflow of a module, by its own name or that of its variable."""
    found = {
        id(each): (variable, each) for variable, each in vars(module).items() if isinstance(each, Workflow)
    }
    if not found:
        raise DefinitionError(f"{path} defines no workflow: bind one to a name, `workflow = Workflow(…)`")
    if not name and len(found) == 1:
        return next(iter(found.values()))[1]
    by_name = {each.name: each for _, each in found.values()}
    if not name:
        first = next(iter(by_name))
        raise DefinitionError(
            f"{path} defines {len(found)} workflows, {listed(by_name)}: say which, e.g. {path}:{first}"
        )
    by_name = {variable: each for variable, each in found.values()} | by_name
    if name not in by_name:
        raise DefinitionError(f"{path} defines no workflow {name!r}{choices(name, by_name, 'there are')}")
    return by_name[name]


# --- Python files as modules


def _module(path: Path, known_to_workers: Callable[[], Iterable[str]]) -> ModuleType:
    for module in list(sys.modules.values()):
        if _is_at(module, path) and module.__name__ != "__main__":
            return module
    names = dict(_names(path))
    if not names:
        raise ConfigurationError(
            f"{path.name!r} is no module name, so workers could not import it: use letters, digits and _"
        )
    name = next(iter(names))
    if len(names) > 1:
        known = list(known_to_workers())
        name = next((each for each in names if any(task.startswith(f"{each}.") for task in known)), name)
    sys.path.insert(0, names[name])
    module = _import(name)
    if not _is_at(module, path):
        raise ConfigurationError(
            f"the module name {name!r} of {path} is taken by {getattr(module, '__file__', None) or 'Python itself'}: "
            "rename the file"
        )
    return module


def _names(path: Path) -> Iterator[tuple[str, str]]:
    """The names under which a file can be imported, each with the folder that has to be on the path."""
    root = path.parent
    while (root / "__init__.py").exists():
        root = root.parent
    here = Path.cwd()
    folders = [path.parent, *([here] if path.is_relative_to(here) else [])]
    if root != path.parent:
        folders.insert(0, root)
    for folder in folders:
        parts = path.relative_to(folder).with_suffix("").parts
        if all(part.isidentifier() for part in parts):
            yield ".".join(parts), str(folder)


def _is_at(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and file.endswith(path.name) and Path(file).resolve() == path


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except DefinitionError as error:
        raise DefinitionError(f"{_place(error, name)}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"the module {name!r} cannot be imported: {_place(error, name)}: {type(error).__name__}: {error}"
        ) from error


def _place(error: BaseException, name: str) -> str:
    """Where in the user's code an import failed: the last line outside of Python's and our own machinery."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{_short(error.filename)}:{error.lineno}"
    lines = [
        f"{_short(frame.filename)}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_MACHINERY)
    ]
    return lines[-1] if lines else name


def _short(file: str) -> str:
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except ValueError:
        return file
