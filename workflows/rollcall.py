"""Do the workers know what a run needs?

The law: a question to the workers never decides over a run, which the journal has accepted anyway. It only
gives a person who would wait for ever a reason, and it never takes longer than `PATIENCE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from .hints import listed
from .plan import EXPAND, GATHER

PATIENCE = 1.0  # seconds of silence after which nobody else is expected to answer

Need = tuple[str, str]  # an action and the queue it is sent to


class _Enough(Exception):
    """What was asked is known; the other answers need not come."""


def known(celery: Celery, enough: Callable[[set[str]], bool] = lambda _: False) -> set[str] | None:
    """The names of the tasks that workers have; None where no worker answers, or the broker does not.

    Stops listening as soon as `enough` is true of the names so far.
    """
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


def missing(celery: Celery, needs: Iterable[Need]) -> str | None:
    """Why steps that need this may wait for ever, and what to do; None where some worker can do all of it."""
    wanted = {(action, queue) for action, queue in needs}
    actions = {action for action, _ in wanted}
    tasks = known(celery, lambda names: actions <= names)
    if tasks is None:
        return "no worker answers: start one (`trellis worker`, or `trellis up`); `trellis doctor` tells more"
    unknown = sorted(actions - tasks - {EXPAND, GATHER})
    if unknown:
        module = unknown[0].rpartition(".")[0] or "MODULE"
        return (
            f"no worker knows {'action' if len(unknown) == 1 else 'actions'} {listed(unknown)}: start one that "
            f"imports the module, `trellis worker --import {module}`; an action's name begins with the name under "
            "which its module is imported, so both sides have to import it alike"
        )
    queues = {queue for _, queue in wanted}
    idle = sorted(queues - _consumed(celery, queues))
    if idle:
        return f"no worker listens to {listed(idle)}: start one, `trellis worker --queues {','.join(idle)}`"
    return None


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
    try:
        celery.control.broadcast(question, reply=True, timeout=PATIENCE, callback=hear)
    except _Enough:
        pass
    except (KombuError, RedisError, OSError):
        pass  # no answer is an answer
