"""What the commands `trellis memory …` do.

The law: a slip in a name is told with the nearest that there is; nothing is deleted by conditions without a question.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ..tasks import spans
from ..tasks.database import connect
from ..tasks.errors import EntryError, NotFound, ParameterError
from ..tasks.hints import closest
from ..tasks.logs import configure
from ..tasks.settings import Settings, load
from ..tasks.terminal import console, hint
from . import exporting, given, shown
from . import stats as figures
from .bulk import Imported, import_jsonl, import_parquet
from .connections import MemoryDatabase
from .embedders import choose
from .embedders.protocol import Embedder
from .episodic import EpisodicMemory
from .fusion import Fusing
from .scope import SHARED, Scope
from .vector import VectorMemory

_KINDS = ("fact", "episode")


class Everything(Fusing):
    """Facts and episodes in one search."""

    kinds = _KINDS


@contextmanager
def opened() -> Iterator[tuple[Settings, MemoryDatabase]]:
    """The memories of the database that the settings name."""
    settings = load()
    level = "warning" if settings.log_level == "info" else settings.log_level
    configure(settings.model_copy(update={"log_level": level}))
    connect(settings.need_database(), connect_timeout=settings.connect_timeout).close()
    database = MemoryDatabase(settings)
    try:
        yield settings, database
    finally:
        database.close()


def store(
    tenant: str,
    agent: str,
    key: str,
    value: str,
    metadata: Sequence[str],
    options: dict[str, Any],
    *,
    data: bool,
    episode: bool,
    as_json: bool,
) -> None:
    """Store a fact, or append to an episode."""
    text = sys.stdin.read() if value == "-" else value
    whole = {
        **options,
        "metadata": given.pairs(metadata),
        "ttl": given.span("ttl", options["ttl"]),
        "at": spans.moment("at", options["at"]),
    }
    with opened() as (settings, database):
        whole_scope, model = Scope(tenant, agent), choose.embedder(settings)
        written: Any = given.data_of("value", text) if data else text
        if episode:
            stored = EpisodicMemory(model, whole_scope, database=database).append(key, written, **whole)
        else:
            stored = VectorMemory(model, whole_scope, database=database).store(key, written, **whole)
    if as_json:
        typer.echo(shown.dumps({"key": stored.key, "id": stored.id, "outcome": stored.outcome}))
        return
    what = f"an entry of {key}" if episode else key
    told = {"same": " (it had this value already)", "linked": " to another key that says the same"}
    typer.echo(f"{what} {stored.outcome}{told.get(stored.outcome, '')}")


def get(tenant: str, agent: str, key: str, *, shared: bool, history: bool, as_json: bool) -> None:
    """Show a key, or all that it has had."""
    with opened() as (settings, database):
        memory = Everything(
            choose.embedder(settings), Scope(tenant, agent), include_shared=shared, database=database
        )
        if history:
            found = memory.history(key)
        else:
            one = memory.retrieve(key)
            found = [] if one is None else [one]
        memory.flush()
        if not found:
            raise _unknown(database, memory.scope, key, shared)
    if as_json:
        documents = [shown.entry_json(each) for each in found]
        typer.echo(shown.dumps(documents if history else documents[0]))
    else:
        console().print(shown.entries(found, validity=True) if history else shown.entry(found[0]))


def search(
    tenant: str,
    agent: str,
    query: str,
    limit: int,
    kind: str | None,
    asked: given.Asked,
    *,
    shared: bool,
    as_json: bool,
) -> None:
    """Show the best hits."""
    kinds: dict[str | None, Any] = {None: Everything, "fact": VectorMemory, "episode": EpisodicMemory}
    with opened() as (settings, database):
        memory = kinds[kind](
            choose.embedder(settings), Scope(tenant, agent), include_shared=shared, database=database
        )
        found = memory.search(query, limit, given.filters(asked))
        memory.flush()
        reason = None if found else _nothing(database, memory.scope, memory.embedder)
    if as_json:
        typer.echo(shown.dumps([shown.hit_json(hit) for hit in found]))
    elif found:
        console().print(shown.hits(found))
    else:
        hint(str(reason))


def recent(
    tenant: str,
    agent: str,
    limit: int,
    within: str | None,
    asked: given.Asked,
    *,
    shared: bool,
    as_json: bool,
) -> None:
    """List the last entries of episodes."""
    with opened() as (settings, database):
        memory = EpisodicMemory(
            choose.embedder(settings), Scope(tenant, agent), include_shared=shared, database=database
        )
        found = memory.recent(limit, within=given.span("within", within), filters=given.filters(asked))
        reason = None if found else _nothing(database, memory.scope, memory.embedder)
    if as_json:
        typer.echo(shown.dumps([shown.entry_json(each) for each in found]))
    elif found:
        console().print(shown.entries(found))
    else:
        hint(str(reason))


def forget(
    tenant: str,
    agent: str,
    key: str | None,
    kind: str | None,
    asked: given.Asked,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete a key, or what the filters name."""
    filters = given.filters(asked)
    if key is not None and (kind is not None or not filters.empty):
        raise EntryError("key", "a key is forgotten whole: leave the other options out")
    if key is None and filters.empty:
        raise EntryError("key", "give a key, or options that say what to forget")
    kinds: dict[str | None, Any] = {None: Everything, "fact": VectorMemory, "episode": EpisodicMemory}
    with opened() as (settings, database):
        memory = kinds[kind](choose.embedder(settings), Scope(tenant, agent), database=database)
        if key is None:
            _ask_first(memory.scope, yes)
        gone = memory.forget(key, filters=None if key is not None else filters)
        if key is not None and not gone:
            raise _unknown(database, memory.scope, key, False)
    if as_json:
        typer.echo(shown.dumps({"forgotten": gone}))
    else:
        typer.echo(f"{gone:,} {'memory' if gone == 1 else 'memories'} forgotten")


def sweep(tenant: str, *, as_json: bool) -> None:
    """Delete what has expired."""
    with opened() as (settings, database):
        gone = Everything(choose.embedder(settings), Scope(tenant), database=database).sweep()
    if as_json:
        typer.echo(shown.dumps({"swept": gone}))
        return
    told = "memory had expired, and is gone" if gone == 1 else "memories had expired, and are gone"
    typer.echo(f"{gone:,} {told}")


def import_file(
    tenant: str,
    agent: str,
    file: Path,
    form: str | None,
    *,
    skip_bad: bool,
    rejects: Path | None,
    again: bool,
    as_json: bool,
) -> None:
    """Import a file, with a bar."""
    load_file = import_parquet if given.form(file, form) == "parquet" else import_jsonl
    if not file.exists():
        raise NotFound("file", str(file), given.nearest(file.name, (each.name for each in _siblings(file))))
    with opened() as (settings, database), _bar(file) as told:
        done = load_file(
            file, choose.embedder(settings), Scope(tenant, agent), skip_bad=skip_bad, rejects=rejects, again=again,
            progress=told, database=database,
        )  # fmt: skip
    if as_json:
        typer.echo(shown.dumps({**asdict(done), "rejects": done.rejects and str(done.rejects)}))
        return
    names = ("added", "replaced", "same", "linked", "expired", "bad")
    counted = ", ".join(f"{getattr(done, name):,} {name}" for name in names if getattr(done, name))
    typer.echo(f"{done.rows:,} rows: {counted or 'nothing'}")
    if done.finished_at is not None:
        moment = done.finished_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        hint(f"imported already, until {moment}: nothing was done now; --again begins anew")
    if done.rejects is not None:
        hint(f"what could not be taken, and why: {done.rejects}", "yellow")


def export_file(
    tenant: str,
    agent: str,
    file: Path | None,
    form: str | None,
    kind: str | None,
    *,
    vectors: bool,
    history: bool,
) -> None:
    """Export to a file, or to stdout."""
    kinds = _KINDS if kind is None else (kind,)
    scope = Scope(tenant, agent)
    chosen: Any = None if file is None else given.form(file, form)
    if file is None and form == "parquet":
        raise ParameterError({"FILE": "parquet goes to a file: name one"})
    with opened() as (_, database):
        if file is None:
            records = exporting.exported(
                scope, kinds=kinds, vectors=vectors, history=history, database=database
            )
            exporting.write_lines(records, sys.stdout)
            return
        count = exporting.export(
            file, scope, form=chosen, kinds=kinds, vectors=vectors, history=history, database=database
        )
    typer.echo(f"{count:,} {'memory' if count == 1 else 'memories'} in {file}")


def stats(tenant: str, agent: str | None, *, as_json: bool) -> None:
    """Show what there is."""
    with opened() as (_, database):
        scope = Scope(tenant)
        found = figures.stats(database, scope.tenant, agent)
    if as_json:
        typer.echo(shown.dumps(asdict(found)))
        return
    out = console()
    if not found.rows:
        hint(f"tenant {tenant!r} has no memories" + ("" if agent is None else f" of agent {agent!r}"))
    for number, part in enumerate(shown.figures(found) if found.rows else []):
        if number == 2:
            out.print()
        out.print(part)
    for each in found.imports:
        share = f"{each.offset / each.size:.0%}" if each.size else "not begun"
        hint(f"the import of {each.name} is at {share}; `trellis memory import` goes on with it", "yellow")
    if any(not size.indexed for size in found.sizes):
        hint("an index of vectors is missing: an import was cut off, and builds it at its end", "yellow")


# --- what was meant


def _unknown(database: MemoryDatabase, scope: Scope, key: str, shared: bool) -> NotFound:
    known = figures.keys(database, scope.tenant, scope.reach(shared))
    if not known:
        return NotFound("memory", key, _none(database, scope))
    return NotFound("memory", key, given.nearest(key, known))


def _nothing(database: MemoryDatabase, scope: Scope, embedder: Embedder) -> str:
    """Why a list is empty."""
    rows = [each for each in figures.stats(database, scope.tenant).rows if each.agent == scope.agent]
    if not rows:
        return _none(database, scope)
    if all(each.model != embedder.model for each in rows):
        models = ", ".join(sorted({each.model for each in rows}))
        return (
            f"nothing found: these memories have vectors of {models}, and TRELLIS_EMBEDDER makes those of "
            f"{embedder.model}; `trellis memory reindex` makes new ones"
        )
    return "nothing found"


def _none(database: MemoryDatabase, scope: Scope) -> str:
    agents = figures.agents(database, scope.tenant)
    who = f"agent {scope.agent!r} of tenant" if scope.agent != SHARED else "what is shared in tenant"
    text = f"{who} {scope.tenant!r} has no memories"
    close = closest(scope.agent, agents)
    if close is not None:
        return f"{text}; did you mean --agent {close}?"
    return (
        f"{text}; agents with some: {', '.join(name or '(shared)' for name in agents[:12])}"
        if agents
        else text
    )


def _siblings(file: Path) -> list[Path]:
    try:
        return list(file.parent.iterdir())
    except OSError:
        return []


# --- the terminal


@contextmanager
def _bar(file: Path) -> Iterator[Callable[[Imported], None]]:
    count = TextColumn("{task.fields[rows]:,} rows")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        count,
        TimeRemainingColumn(),
    )
    where = Console(stderr=True)
    with Progress(*columns, console=where, transient=True, disable=not where.is_terminal) as progress:
        task = progress.add_task(file.name, total=None, rows=0)

        def told(state: Imported) -> None:
            # At the end of the file an index may still have to be built.
            name = f"{file.name}: index" if state.offset == state.size else file.name
            progress.update(task, total=state.size, completed=state.offset, rows=state.rows, description=name)

        yield told


def _ask_first(scope: Scope, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ParameterError(
            {"--yes": "nobody can be asked here: say --yes to forget all that the options name"}
        )
    whose = f"agent {scope.agent!r}" if scope.agent else "all agents"
    typer.confirm(
        f"Forget what these options name, of {whose} of tenant {scope.tenant!r}?", abort=True, err=True
    )
