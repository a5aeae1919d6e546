"""Making the vectors of all memories anew, as a durable workflow.

The law: a turn copies some rows and is recorded with the place behind them, so a crash costs one turn, and the turn
that is done again finds its rows there. What a turn does stands in memory/reembedding.py, which is imported when one
runs: a worker that has nothing to do with memories loads no numpy.
"""

from __future__ import annotations

import importlib
from typing import Any

from ..tasks.retry import Retry
from ..tasks.settings import Settings, current
from .action import action
from .client import Client
from .definition import Param, Workflow
from .records import Json, Run

NAME = "trellis-reembedding"
TURNS = 100_000

# Postgres or an endpoint may be away for a while. Before anything is done, the person is there: a model that is wrong
# does not get right by waiting.
_PATIENT = Retry(attempts=8, base=1.0, max_delay=60.0)
_BRIEF = Retry(attempts=3, base=0.5)


@action(name="trellis.reembedding.begin", retries=_BRIEF)
def begin(model: str) -> dict[str, Any]:
    """Open the new generation; what there is to do."""
    work = _work(current(), model)
    try:
        return dict(work.begin())
    finally:
        work.close()


@action(name="trellis.reembedding.turn", retries=_PATIENT)
def turn(model: str, keep: bool, state: dict[str, Any]) -> dict[str, Any]:
    """Copy some rows, or let the old generation go; how far it is then."""
    work = _work(current(), model)
    try:
        return dict(work.turn(state, keep=keep))
    finally:
        work.close()


def _work(settings: Settings, model: str) -> Any:
    choose = importlib.import_module("..memory.embedders.choose", __package__)
    memory = importlib.import_module("..memory.reembedding", __package__)
    chosen = settings.model_copy(update={"embedder": model})
    return memory.Reembedding(chosen, choose.embedder(chosen))


reembedding = Workflow(
    NAME,
    params={"model": str, "keep": Param(bool, default=False)},
    description="Makes the vectors of all memories anew, by another model.",
)
_begun = reembedding.step("begin", begin, model=reembedding.params.model)
reembedding.loop(
    "copy",
    turn,
    start=_begun,
    until="result.done",
    limit=TURNS,
    model=reembedding.params.model,
    keep=reembedding.params.keep,
    state=reembedding.previous,
)


def start(client: Client, model: str, *, keep: bool = False) -> Run:
    """Start it, or give back the run that is open: two would make the same vectors. Raises ConfigurationError."""
    return client.start(reembedding, {"model": model, "keep": keep}, singleton=NAME)


def progress(result: Json) -> tuple[int, int]:
    """Rows that are copied, and all, of what a turn says."""
    state: Any = result
    return state["copied"], state["rows"]
