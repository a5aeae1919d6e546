"""The user's Python modules, and files that have to become modules.

The law: the name under which a file is imported is part of its actions' names, so it has to be the one under
which workers import it. It is, in this order: the name given by `--import` or TRELLIS_IMPORTS; one that
workers know tasks of; inside a package its dotted name; else the file's bare name with its folder first on
the path, as `python file.py` and `celery -A file` have it.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from ..tasks.errors import ConfigurationError, DefinitionError
from ..tasks.imports import check_imports

Asking = Callable[[Sequence[str]], str | None]  # which of these modules do workers have tasks of?

_HERE = Path(__file__).parent
# Python's importing and our own code: an error is not there.
_MACHINERY = (
    "<",
    *(f"{each}{os.sep}" for each in (Path(importlib.__file__).parent, _HERE, _HERE.parent / "tasks")),
)
# Python's and other people's code: an error that is raised there has its cause in the line that called it.
_OTHERS = tuple(f"{path}{os.sep}" for name, path in sysconfig.get_paths().items() if "lib" in name)
_TOLD = 3  # lines of the way to an error


def import_all(names: Iterable[str]) -> None:
    """Import modules with actions and workflows, from the current folder as workers do.

    Raises ConfigurationError for one that is not there or does not run, DefinitionError for what it defines.
    """
    wanted = list(names)
    check_imports(wanted)
    for name in wanted:
        _import(name)


def import_file(path: Path, known_to_workers: Asking) -> ModuleType:
    """The module of a Python file, under the name that workers use. Raises as `import_all` does.

    The workers are asked only where a file that defines actions can have more than one name.
    """
    path = path.resolve()
    for module in list(sys.modules.values()):
        if _is_at(module, path) and module.__name__ != "__main__":
            return module
    names = dict(_names(path))
    if not names:
        raise ConfigurationError(
            f"{path.name!r} is no module name, so workers could not import it: use letters, digits and _"
        )
    name = next(iter(names))
    if len(names) > 1 and b"@action" in path.read_bytes():
        name = known_to_workers(list(names)) or name
    sys.path.insert(0, names[name])
    module = _import(name)
    if not _is_at(module, path):
        holder = getattr(module, "__file__", None) or "Python itself"
        raise ConfigurationError(f"the module name {name!r} of {path} is taken by {holder}: rename the file")
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
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ConfigurationError(
            f"the module {name!r} cannot be imported: {_place(error, name)}: {type(error).__name__}: {message}"
        ) from error


def _place(error: BaseException, name: str) -> str:
    """Where in the user's code an import failed."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{_short(error.filename)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_MACHINERY)]
    own = [frame for frame in theirs if not frame.filename.startswith(_OTHERS)]
    shown = [f"{_short(frame.filename)}:{frame.lineno}" for frame in own or theirs[-1:]]
    if isinstance(error, DefinitionError):
        shown = shown[-1:]
    return " > ".join(shown[-_TOLD:]) or name


def _short(file: str) -> str:
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except ValueError:
        return file
