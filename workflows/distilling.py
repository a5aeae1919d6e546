"""Facts from episodes by a language model, as a durable workflow: off until somebody starts or schedules it.

The law: a turn asks the model, or stores what it said, and is recorded with the place behind it; a crash costs one
turn. Runs of one tenant's agent go one after the other. What a turn does stands in memory/distilling.py, which is
imported when one runs: a worker that has nothing to do with memories loads no numpy.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..tasks.retry import Retry
from ..tasks.settings import current
from .action import action
from .client import Client
from .context import Context
from .definition import Param, Workflow
from .records import Json, Run

NAME = "trellis-distilling"
TURNS = 100_000
CALLS = 1_000  # of the model in one run, where nothing else is said
TRIES = 3  # at a window for whose turns the model gives no usable answer, before it is left out

_BRIEF = Retry(attempts=3, base=0.5)
# An endpoint may be away for a while, or its quota be used up for a minute.
_PATIENT = Retry(attempts=8, base=2.0, max_delay=120.0)


@action(name="trellis.distilling.begin", retries=_BRIEF)
def begin(tenant: str, agent: str, episode: str | None, min_trust: int) -> dict[str, Any]:
    """Look what there is to do."""
    with _work(tenant, agent, episode, min_trust) as work:
        return dict(work.begin())


@action(name="trellis.distilling.turn", retries=_PATIENT)
def turn(
    tenant: str,
    agent: str,
    episode: str | None,
    min_trust: int,
    calls: int,
    skip: bool,
    state: dict[str, Any],
    ctx: Context,
) -> dict[str, Any]:
    """Ask the model about some entries, or store what it said; how far it is then."""
    with _work(tenant, agent, episode, min_trust) as work:
        leave = skip and ctx.attempt >= TRIES
        return dict(work.turn(state, calls=calls, run=ctx.run_id, skip=leave))


@contextmanager
def _work(tenant: str, agent: str, episode: str | None, min_trust: int) -> Iterator[Any]:
    choose = importlib.import_module("..memory.embedders.choose", __package__)
    language = importlib.import_module("..memory.language", __package__)
    memory = importlib.import_module("..memory.distilling", __package__)
    scope = importlib.import_module("..memory.scope", __package__).Scope(tenant, agent)
    settings = current()
    chosen = language.model(settings)
    with memory.Distilling(
        settings, choose.embedder(settings), chosen, scope, only=episode, min_trust=min_trust
    ) as work:
        yield work


distilling = Workflow(
    NAME,
    params={
        "tenant": Param(str, default="default"),
        "agent": Param(str, default=""),
        "episode": Param(str | None, default=None),
        "min_trust": Param(int, default=0),
        "calls": Param(int, default=CALLS),
        "skip": Param(bool, default=False),
    },
    description="Makes facts of an agent's episodes, by a language model.",
    concurrency_key=f"{NAME}:{{params.tenant}}:{{params.agent}}",
)
_of: dict[str, Any] = {name: distilling.params[name] for name in ("tenant", "agent", "episode", "min_trust")}
_begun = distilling.step("begin", begin, **_of)
distilling.loop(
    "distill",
    turn,
    start=_begun,
    until="result.done",
    limit=TURNS,
    calls=distilling.params.calls,
    skip=distilling.params.skip,
    state=distilling.previous,
    **_of,
)


def start(
    client: Client,
    tenant: str = "default",
    agent: str = "",
    *,
    episode: str | None = None,
    min_trust: int = 0,
    calls: int = CALLS,
    skip: bool = False,
) -> Run:
    """Make facts of the episodes of an agent, or of what the agents of a tenant share, as far as that was not done yet.

    Gives back the open run where there is one for this agent. episode: this one alone. min_trust: 0 to 3; what is
    trusted less is left out, and counts as read. calls: of the model at most. skip: leave out entries for which it
    gives no usable answer in three tries, in place of a failure.

    Raises ParameterError, CommunicationError.
    """
    params = {
        "tenant": tenant, "agent": agent, "episode": episode, "min_trust": min_trust, "calls": calls, "skip": skip,
    }  # fmt: skip
    whose = hashlib.sha256(json.dumps([tenant, agent]).encode()).hexdigest()  # names may be longer than a key
    return client.start(distilling, params, singleton=whose)


def progress(result: Json) -> tuple[int, int]:
    """Entries that are read, and all that there were, of what a turn says."""
    state: Any = result
    return state["read"], state["rows"]
