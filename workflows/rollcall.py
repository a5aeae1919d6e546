"""Do the workers know what a run needs?

The law: a question to the workers never decides over a run, which the journal has accepted anyway. It only
gives a person who would wait for ever a reason, and it never takes longer than `PATIENCE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from ..tasks.hints import listed
from .natives import NATIVES

PATIENCE = 1.0  # seconds of silence after which nobody else is expected to answer

_NO_BROKER = (KombuError, RedisError, OSError)

Need = tuple[str, str]  # an action and the queue it is sent to


class _Enough(Exception):
    """What was asked is known; the other answers need not come."""


def module_known(celery: Celery, modules: Sequence[str]) -> str | None:
    """The first of these modules that a worker has tasks of; None where nobody says so."""

    def of(tasks: set[str]) -> str | None:
        return next((each for each in modules if any(task.startswith(f"{each}.") for task in tasks)), None)

    try:
        return of(_known(celery, lambda tasks: of(tasks) is not None) or set())
    except _NO_BROKER:
        return None


def missing(celery: Celery, needs: Iterable[Need]) -> str | None:
    """Why steps that need this may wait for ever, and what to do; None where some worker can do all of it."""
    return next(iter(lacking(celery, needs)), None)


def lacking(celery: Celery, needs: Iterable[Need]) -> dict[str, set[Need]]:
    """What no worker can do, by why that is and what to do; nothing of what some worker can do."""
    wanted = set(needs)
    actions = {action for action, _ in wanted}
    found: dict[str, set[Need]] = {}
    try:
        tasks = _known(celery, lambda names: actions <= names)
        if tasks is None:
            return {"no worker answers: start one with `trellis worker`; `trellis doctor` tells more": wanted}
        unknown = actions - tasks - NATIVES.keys()
        if unknown:
            found[_unknown(sorted(unknown))] = {need for need in wanted if need[0] in unknown}
        queues = {queue for action, queue in wanted if action not in unknown}
        deaf = sorted(queues - _consumed(celery, queues)) if queues else []
    except _NO_BROKER as error:
        reason = f"the broker does not answer ({error}): the run is in the journal and begins when it does"
        return {reason: wanted}
    if deaf:
        reason = (
            f"no worker listens to {listed(deaf)}: start one with `trellis worker --queues {','.join(deaf)}`"
        )
        found[reason] = {need for need in wanted if need[0] not in unknown and need[1] in deaf}
    return found


def _unknown(actions: list[str]) -> str:
    module = actions[0].rpartition(".")[0] or "MODULE"
    return (
        f"no worker knows {'action' if len(actions) == 1 else 'actions'} {listed(actions)}: start one with "
        f"`trellis worker --import {module}`. An action is named after its module, so workers have to import "
        "that under the same name"
    )


def _known(celery: Celery, enough: Callable[[set[str]], bool]) -> set[str] | None:
    found: set[str] = set()
    answered = False

    def hear(reply: Mapping[str, Any]) -> None:
        nonlocal answered
        answered = True
        for names in reply.values():
            found.update(name.partition(" [")[0] for name in names if isinstance(name, str))
        if enough(found):
            raise _Enough

    _ask(celery, "registered", hear)
    return found if answered else None


def _consumed(celery: Celery, enough: set[str]) -> set[str]:
    """The queues that workers listen to."""
    found: set[str] = set()

    def hear(reply: Mapping[str, Any]) -> None:
        for queues in reply.values():
            found.update(str(queue["name"]) for queue in queues if isinstance(queue, dict))
        if enough <= found:
            raise _Enough

    _ask(celery, "active_queues", hear)
    return found


def _ask(celery: Celery, question: str, hear: Callable[[Mapping[str, Any]], None]) -> None:
    with suppress(_Enough):
        celery.control.broadcast(question, reply=True, timeout=PATIENCE, callback=hear)
