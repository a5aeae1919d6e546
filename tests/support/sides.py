"""The two sides that one suite holds to each other: the engine with its workers, and the in-process runner."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from uuid import UUID

from crashing import CRASHING
from sqlalchemy import select
from stack import Stack, eventually

from trellis.workflows import Client, Run
from trellis.workflows.tables import RunRow, StepRow
from trellis.workflows.testing import Runner

PATIENCE = 60.0


class Side:
    """What a test of the suite drives."""

    name: str
    client: Client
    ledger: str

    def finish(self, workflow: Any, params: dict[str, Any] | None = None, **options: Any) -> Run:
        """Start a run and wait until it is over."""
        return self.client.wait(self.client.start(workflow, params or {}, **options), timeout=PATIENCE)

    @abstractmethod
    def eventually(self, condition: Callable[[], Any]) -> Any:
        """What a condition gives once it is true."""

    @abstractmethod
    def half_way(self) -> AbstractContextManager[None]:
        """What is started in it can be looked at in the midst of it, by `on_the_way`."""

    @abstractmethod
    def on_the_way(self, look: Callable[[], Any]) -> None:
        """Look again and again, while the runs go on, until the look says that it has seen enough."""

    @abstractmethod
    def pass_time(self, seconds: float) -> None:
        """Let time pass."""

    def states(self, run: Run) -> dict[str, str]:
        """The state of every step by name."""
        return {step.name: step.state.value for step in self.client.steps(run)}

    def results(self, run: Run) -> dict[str, Any]:
        """What every step has given, by name: in one look, where there are many."""
        statement = select(StepRow.name, StepRow.result).where(StepRow.run_id == UUID(run.id))
        return dict(map(tuple, self.client.database.read(statement)))

    def state(self, run: Run) -> str:
        """The state of a run: for one look after the other."""
        [(state,)] = map(
            tuple, self.client.database.read(select(RunRow.state).where(RunRow.id == UUID(run.id)))
        )
        return str(state)

    def children(self, run: Run) -> list[str]:
        """The runs that it has started as steps."""
        statement = select(RunRow.id).where(RunRow.parent_run == UUID(run.id))
        return [str(child) for (child,) in map(tuple, self.client.database.read(statement))]

    @abstractmethod
    def crashing(self, name: str) -> tuple[Run, Path]:
        """A run of `crashing.py`, and the folder of its ledgers."""

    def effects(self) -> Counter[str]:
        """How often each step has left its line in this test's ledger."""
        path = Path(self.ledger)
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(line.split()[1] for line in lines)


class Real(Side):
    """Postgres, Redis, a worker and a beat."""

    name = "engine"

    def __init__(self, stack: Stack, ledger: str, begun: dict[str, tuple[Run, Path]]) -> None:
        self.client = stack.client
        self.ledger = ledger
        self._begun = begun

    def crashing(self, name: str) -> tuple[Run, Path]:
        return self._begun[name]

    def eventually(self, condition: Callable[[], Any]) -> Any:
        return eventually(condition, PATIENCE)

    def half_way(self) -> AbstractContextManager[None]:
        return nullcontext()

    def on_the_way(self, look: Callable[[], Any]) -> None:
        self.eventually(look)

    def pass_time(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        eventually(lambda: time.monotonic() >= end, PATIENCE)


class InProcess(Side):
    """The runner. Bodies that take their process down or last for long say so to it instead."""

    name = "in-process"

    def __init__(self, runner: Runner, ledger: str) -> None:
        self.client = self.runner = runner
        self.ledger = ledger

    def crashing(self, name: str) -> tuple[Run, Path]:
        folder = Path(self.ledger).parent
        return self.runner.start(CRASHING[name](folder)), folder

    def eventually(self, condition: Callable[[], Any]) -> Any:
        for _ in range(1000):
            found = condition()
            if found:
                return found
            self.runner.advance(seconds=0.1)
        raise AssertionError(f"never: {condition}")

    def half_way(self) -> AbstractContextManager[None]:
        return self.runner.without_workers()

    def on_the_way(self, look: Callable[[], Any]) -> None:
        self.eventually(lambda: self._works_until(look))

    def _works_until(self, look: Callable[[], Any]) -> bool:
        """Run one step after the other; False where none is left that could run now."""
        while not look():
            if not self.runner.work(1):
                return False
        return True

    def pass_time(self, seconds: float) -> None:
        self.runner.advance(seconds=seconds)
