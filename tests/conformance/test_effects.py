"""Effects that may happen once: what a crash leads to is the same on the engine and in-process."""

from __future__ import annotations

from pathlib import Path

import pytest
import steps
from crashing import DOUBTFUL
from sides import Side

from trellis.tasks.errors import DefinitionError, NotFound, RunFailed, StateError
from trellis.workflows import Retry, RunState, Workflow


def done(ledger: Path) -> int:
    """How often the effect has happened."""
    return len(ledger.read_text().splitlines()) if ledger.exists() else 0


def test_a_lost_worker_leaves_a_doubt_that_its_policy_decides(side: Side) -> None:
    """A person says what happened, it is repeated under its key, or a probe looks; never behind anyone's back."""
    run, folder = side.crashing("doubtful")
    asked = ["asked_done", "asked_fail", "asked_retry"]
    side.eventually(
        lambda: sorted(doubt.step for doubt in side.client.doubts(run) if not doubt.probing) == asked
    )
    assert {doubt.idempotency_key for doubt in side.client.doubts(run)} >= {
        f"{run.id}/{name}" for name in asked
    }
    assert any("in doubt" in reason.text for reason in side.client.why(run))
    with pytest.raises(DefinitionError, match="is resolved by one of done=…, retry=True and fail=…"):
        side.client.resolve(run, "asked_done")
    side.client.resolve(run, "asked_done", done="ann saw it", by="ann")
    with pytest.raises(StateError, match="step 'asked_done' of run .* is not in doubt"):
        side.client.resolve(run, "asked_done", done="bob saw it")
    side.client.resolve(run, "asked_retry", retry=True)
    side.client.resolve(run, "asked_fail", fail="nobody knows")
    with pytest.raises(NotFound, match="there is no step 'nothing'"):
        side.client.resolve(run, "nothing", retry=True)
    assert side.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    with pytest.raises(RunFailed, match="EffectInDoubt: nobody knows"):
        side.client.result(run, "asked_fail")
    results = side.client.result(run)
    results.pop("asked_fail", None)
    assert results == {
        "asked_done": "ann saw it", "asked_retry": "done by attempt 1", "repeated": "done by attempt 2",
        "probed_yes": "found by the probe", "probed_no": "done by attempt 1",
    }  # fmt: skip
    assert {name: done(folder / name) for name in DOUBTFUL} == {
        "asked_done": 1, "asked_retry": 1, "asked_fail": 1, "repeated": 2, "probed_yes": 1, "probed_no": 1,
    }  # fmt: skip
    told = [
        event.kind for event in side.client.events(run) if event.kind in ("step.in_doubt", "step.resolved")
    ]
    assert (told.count("step.in_doubt"), told.count("step.resolved")) == (5, 3)
    assert side.client.doubts(run) == []


def test_a_time_limit_in_the_midst_of_an_effect_leaves_a_doubt(side: Side, wf: Workflow) -> None:
    """Nobody knows how far it came."""
    wf.step("only", steps.charge_ask, ledger=side.ledger, where="hang", timeout=0.3, retry=Retry(3, base=0))
    run = side.client.start(wf)
    side.eventually(lambda: side.client.doubts(run))
    side.client.resolve(run, "only", done="seen")
    assert side.client.result(side.client.wait(run, timeout=60)) == {"only": "seen"}
    assert done(Path(side.ledger)) == 1


def test_an_exception_is_an_answer_and_leaves_no_doubt(side: Side, wf: Workflow) -> None:
    """The retry policy decides, as for any other step."""
    wf.step("only", steps.charge_ask, ledger=side.ledger, where="raise", retry=Retry(2, base=0, jitter=0))
    run = side.finish(wf)
    assert (run.state, done(Path(side.ledger))) == (RunState.FAILED, 2)
    assert "step.in_doubt" not in [event.kind for event in side.client.events(run)]
