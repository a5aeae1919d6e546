"""The tick's message: it depends on no clock, and a heap of them is as cheap as one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from trellis.tasks.app import app
from trellis.workflows import worker


def test_no_tick_is_thrown_away_because_two_clocks_disagree() -> None:
    """`expires` is an absolute time, which beat writes and the worker compares with its own (found by the suite)."""
    assert "trellis.tick" in app.conf.beat_schedule
    assert not [
        name for name, entry in app.conf.beat_schedule.items() if "expires" in entry.get("options", {})
    ]


def test_ticks_that_piled_up_are_worked_off_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process passes over what comes sooner than beat sends it."""
    done: list[float] = []
    at = SimpleNamespace(now=100.0)
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: at.now))
    monkeypatch.setattr(worker, "engine", lambda: None)
    monkeypatch.setattr(worker, "current", lambda: SimpleNamespace(tick_seconds=1.0))
    monkeypatch.setattr(worker.recovery, "tick", lambda _: done.append(at.now) or {"published": 0})
    monkeypatch.setattr(worker._Ticks, "last", float("-inf"))
    for _ in range(1000):
        worker.tick()
    for at.now in (101.0, 101.9, 102.9):
        worker.tick()
    assert done == [100.0, 101.0, 101.9, 102.9]
