"""Which workflow a person means: `flights`, `flow.yaml`, `examples/flights/flights.py`, `flows.py:nightly`.

The law: the form of a target decides. What looks like a file is a file and nothing else; any other word is
the name of a workflow that an imported module defines, then of one that the journal has, then a run's id.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType

from ..tasks.errors import ConfigurationError, DefinitionError, NotFound
from ..tasks.hints import choices, did_you_mean, listed
from ..tasks.settings import Settings
from . import files, launch, modules, registry
from .additions import Addition
from .client import Client
from .definition import Workflow
from .lenient import Lenient
from .queries import Queries
from .spec import WorkflowSpec
from .summaries import Summaries

DEFINITIONS = (".yaml", ".yml", ".json")


def workflow(target: str, client: Client, known_to_workers: modules.Asking) -> Workflow:
    """The workflow to start. Raises ConfigurationError, DefinitionError, NotFound."""
    modules.import_all(client.settings.imports)
    if is_file(target):
        return from_file(target, known_to_workers)
    try:
        return launch.resolve(target, Queries(client.database))
    except NotFound:
        raise _unknown("workflow", target, Summaries(client.database).workflows()) from None


def drawing(
    target: str, settings: Settings, journal: Callable[[Settings], AbstractContextManager[Client]]
) -> tuple[WorkflowSpec, dict[str, str] | None, Sequence[Addition]]:
    """The workflow to draw; of a run also the states of its steps, and what they appended. Needs `journal` for those.

    Raises ConfigurationError, DefinitionError, NotFound.
    """
    modules.import_all(settings.imports)
    if is_file(target):
        return from_file(target, lambda _: None, strict=False).spec, None, ()
    known = registry.workflows.get(target)
    if known is not None:
        return known.spec, None, ()
    if settings.database_url is None:
        raise _unknown("workflow", target, [])
    with journal(settings) as client:
        summaries = Summaries(client.database)
        stored = Queries(client.database).latest_definition(target)
        if stored is not None:
            return WorkflowSpec.model_validate(stored), None, ()
        try:
            run_id = summaries.find(target)
        except NotFound as error:
            if summaries.is_id(target):
                raise
            raise _unknown("workflow or run", target, summaries.workflows()) from error
        return client.definition(run_id), summaries.states(run_id), summaries.additions(run_id)


def is_file(target: str) -> bool:
    """Whether a target means a file."""
    path = _split(target)[0]
    return path.suffix in (".py", *DEFINITIONS) or os.sep in target or (bool(path.suffix) and path.is_file())


def from_file(target: str, known_to_workers: modules.Asking, *, strict: bool = True) -> Workflow:
    """The workflow in a file; `file.py:name` names one of several.

    strict: whether a definition's actions have to be known in this process.

    Raises ConfigurationError, DefinitionError.
    """
    path, name = _split(target)
    if not path.is_file():
        raise ConfigurationError(f"there is no file {str(path)!r}{_near(path)}")
    if path.suffix in DEFINITIONS:
        return files.workflow(path, catalogue=registry.actions if strict else Lenient())
    if path.suffix != ".py":
        raise ConfigurationError(
            f"{str(path)!r} is neither a .py file nor a definition ({listed(DEFINITIONS)})"
        )
    return _pick(modules.import_file(path, known_to_workers), path, name)


def _split(target: str) -> tuple[Path, str]:
    path, colon, name = target.rpartition(":")
    return (Path(path), name) if colon and path.endswith(".py") else (Path(target), "")


def _near(path: Path) -> str:
    """What may have been meant by a file that is not there."""
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        return f": there is no folder {str(folder)!r}"
    names = sorted(each.name for each in folder.iterdir() if each.suffix in (".py", *DEFINITIONS))
    if folder == path:
        return f", it is a folder; its files are {listed(names)}"
    return did_you_mean(path.name, names)


def _pick(module: ModuleType, path: Path, name: str) -> Workflow:
    """The workflow of a module, by its own name or that of its variable."""
    found = {id(each): (at, each) for at, each in vars(module).items() if isinstance(each, Workflow)}
    if not found:
        raise DefinitionError(f"{path} defines no workflow: bind one to a name, `workflow = Workflow(…)`")
    if not name and len(found) == 1:
        return next(iter(found.values()))[1]
    by_name = {each.name: each for _, each in found.values()}
    if not name:
        raise DefinitionError(
            f"{path} defines {len(found)} workflows, {listed(by_name)}: say which, "
            f"e.g. {path}:{next(iter(by_name))}"
        )
    by_name = dict(found.values()) | by_name
    if name not in by_name:
        raise DefinitionError(f"{path} defines no workflow {name!r}{choices(name, by_name, 'there are')}")
    return by_name[name]


def _unknown(kind: str, target: str, in_journal: list[str]) -> NotFound:
    names = sorted({*registry.workflows.names(), *in_journal})
    folder = f"; {target!r} is a folder here: name a file in it" if Path(target).is_dir() else ""
    return NotFound(
        kind,
        target,
        "names are looked up in the modules of --import and TRELLIS_IMPORTS, and in the journal"
        f"{choices(target, names, 'these know')}{folder}",
    )
