"""Effects that may happen once only: announced before they begin, and never repeated behind anyone's back.

The law: between the announcement (the attempt is written as the step's `intent`, durably, under its lease) and the
recorded outcome nobody can know whether the effect has happened. A step that loses its worker there is *in doubt*:
it does not simply run again, its policy decides. A body that ends by itself, with a result or an exception, leaves
no doubt; one that is stopped from outside (a crash, its time limit, a shutdown) does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..tasks.errors import EffectInDoubt, HeartbeatTimeout, StepTimeout
from ..tasks.logs import get_logger
from ..tasks.settings import Settings
from . import wire
from .execution import failed
from .growing import not_ours
from .journal import Journal, ask, ready_of
from .records import Claimed, Expired, Json, Outcome, Parked, Ready
from .registry import ActionInfo
from .states import StepState

ASK, RETRY, PROBE = "ask", "retry", "probe"
POLICIES = (ASK, RETRY)  # or a function, which is a probe
Body = Callable[[Claimed, ActionInfo, Mapping[str, Json], bool], Outcome | None]

# Errors of a body that was stopped from outside.
STOPPED = (StepTimeout.__name__, HeartbeatTimeout.__name__)
DOUBT = "doubt"  # what a step in doubt waits for


log = get_logger("trellis.effects")


@dataclass(frozen=True, slots=True)
class Happened:
    """What a probe answers where the effect has happened, with what the body would have returned."""

    result: Any = None


def policy(options: Mapping[str, Json] | None) -> str | None:
    """What becomes of a step in doubt; None where its effects may be repeated."""
    found: str | None = (options or {}).get("in_doubt")
    return found


def aside(
    idx: int,
    lease: str,
    options: Mapping[str, Json] | None,
    wait: Mapping[str, Json] | None,
    *,
    attempt: int,
    worker: str,
    max_crashes: int,
) -> Parked | None:
    """How a step in doubt waits: for a person, or for a worker that runs its probe. None: it runs again at once.

    A probe that takes its workers down with it is given up after as many as any other step, and a person is asked.
    """
    how = policy(options)
    doubts = int((wait or {}).get("doubts") or 0) + 1
    note: dict[str, Json] = {"doubt": attempt, "worker": worker, "doubts": doubts}
    if how == PROBE and doubts <= max_crashes + 1:
        return Parked(idx, lease, DOUBT, {**note, "probe": True}, delay=0.0)
    return Parked(idx, lease, DOUBT, note) if how in (ASK, PROBE) else None


def expired(late: Expired, settings: Settings) -> Parked | None:
    """How a step waits whose lease has run out in the midst of an effect; None for any other."""
    if late.intent is None or late.intent != late.attempt:
        return None
    return aside(
        late.idx, late.lease, late.options, late.wait, attempt=late.attempt, worker=late.worker,
        max_crashes=settings.max_crashes,
    )  # fmt: skip


def resolved(step: Claimed, info: ActionInfo) -> Outcome | None:
    """The outcome that a person has given to a step in doubt; None where nobody has, or said that it runs again."""
    answer = (step.wait or {}).get("resolved")
    if not isinstance(answer, Mapping) or "retry" in answer:
        return None
    if "fail" in answer:
        last = step._replace(failures=10**6)  # no attempt is left
        return failed(last, EffectInDoubt(str(answer["fail"])), 0.0)._replace(ran=0.0)
    try:
        data = info.contract.dump(answer.get("done"))
    except Exception as error:
        return failed(step, error, 0.0)._replace(ran=0.0)
    return Outcome(step.idx, step.lease, StepState.SUCCEEDED, data)


def noted(step: Claimed) -> bool:
    """Whether something is known of an earlier attempt's doubt, which must not be lost on the way to the body."""
    return not {"doubt", "resolved"}.isdisjoint(step.wait or ())


def must_probe(step: Claimed) -> bool:
    """Whether a probe has to say first whether the effect has happened."""
    wait = step.wait or {}
    return bool(wait.get("probe")) and "doubt" in wait


def answer(outcome: Outcome) -> Outcome | None:
    """What a probe found out, as the outcome of the step; None where the effect has not happened."""
    if outcome.state is not StepState.SUCCEEDED or outcome.result is None:
        return outcome  # the probe failed: the retry policy decides when to ask it again
    found = wire.loads(outcome.result)
    if found is None:
        return None
    result = found.get("result") if isinstance(found, dict) else found
    return outcome._replace(result=wire.dumps(result).encode())


def run(
    journal: Journal, run_id: str, step: Claimed, info: ActionInfo, inputs: Mapping[str, Json], body: Body
) -> Outcome | None:
    """A step whose effect may happen once only: what is known of it first, then the announcement, then the body.

    None: it was put aside, or recorded on the way. Raises StateError where it is no longer ours.
    """
    outcome = resolved(step, info)
    if outcome is not None:
        return outcome
    if must_probe(step):
        if info.probe is None:  # this worker has another version of the action: a person has to look
            put_aside(journal, run_id, Parked(step.idx, step.lease, DOUBT, dict(step.wait or {})))
            return None
        found = body(step, replace(info, contract=info.probe), inputs, False)
        outcome = None if found is None else answer(found)
        if found is None or outcome is not None:
            return outcome
    if not journal.intend(run_id, step):
        raise not_ours(run_id, step)
    return body(step, info, inputs, True)


def stopped(journal: Journal, run_id: str, step: Claimed, worker: str, max_crashes: int) -> bool:
    """Put a step aside whose body was stopped in the midst of its effect; False where it may simply run again."""
    parked = aside(
        step.idx,
        step.lease,
        step.options,
        step.wait,
        attempt=step.attempt,
        worker=worker,
        max_crashes=max_crashes,
    )
    if parked is None:
        return False
    put_aside(journal, run_id, parked)
    return True


def put_aside(journal: Journal, run_id: str, parked: Parked) -> bool:
    """Park a step in doubt and tell it; False where it is no longer ours."""

    def once() -> bool:
        with journal.database.transaction() as connection:
            note = {**parked._asdict(), "wait": wire.dumps(parked.wait)}
            if not ask(connection, "park", run=run_id, **note):
                return False
            journal.tell(connection, run_id, "step.in_doubt", parked.idx, parked.wait)
            return True

    ours = journal.database.again(once)
    if ours:
        log.warning("step.in_doubt", run=run_id, idx=parked.idx, probe=parked.delay is not None)
    return ours


def resolve(
    journal: Journal, run_id: str, idx: int, said: dict[str, Json], by: str, *, sent: bool
) -> list[Ready]:
    """Say what became of the effect of a step in doubt; the step to announce, none where it is not in doubt."""

    def once() -> list[Ready]:
        with journal.database.transaction() as connection:
            rows = ask(connection, "resolve", run=run_id, idx=idx, answer=wire.dumps(said), sent=sent)
            if rows:
                journal.tell(connection, run_id, "step.resolved", idx, {**said, "by": by})
            return [ready_of(*row) for row in rows]

    return journal.database.again(once)
