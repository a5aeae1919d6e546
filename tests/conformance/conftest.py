"""Each test runs twice: on the engine with its workers, and in-process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import steps
from crashing import CRASHING
from sides import InProcess, Real, Side
from stack import QUICK, Stack, stack_of

from trellis.tasks import embedded
from trellis.workflows import Run, Workflow
from trellis.workflows.testing import Runner, WorkerCrash

REDIS_DB = 100  # of the suite's one stack; those of other tests lie below
CRASHES = 1  # that a step survives: each takes the engine two leases to notice


@pytest.fixture(scope="session")
def shared(
    servers: embedded.Servers, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """One stack with a worker and a beat for the whole suite."""
    with redis.Redis.from_url(servers.redis.url(REDIS_DB)) as broker:
        broker.flushdb()
    for stack in stack_of(servers, template, "conformance", REDIS_DB, tmp_path_factory.mktemp("conformance")):
        stack.worker(concurrency=3, TRELLIS_IMPORTS="steps,growing,turning", TRELLIS_MAX_CRASHES=str(CRASHES))
        stack.beat()
        yield stack


@pytest.fixture(scope="session")
def begun(shared: Stack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Run, Path]]:
    """Runs that take long because they wait for leases to run out."""
    folders = {name: tmp_path_factory.mktemp(name) for name in CRASHING}
    return {name: (shared.client.start(CRASHING[name](folder)), folder) for name, folder in folders.items()}


@pytest.fixture(params=["engine", "in-process"])
def side(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Side]:
    """One side and then the other."""
    ledger = str(tmp_path / "ledger.txt")
    if request.param == "engine":
        yield Real(request.getfixturevalue("shared"), ledger, request.getfixturevalue("begun"))
        return
    with Runner(**QUICK, max_crashes=CRASHES) as runner:
        monkeypatch.setattr(steps, "vanish", _crash)
        monkeypatch.setattr(steps, "last", lambda seconds: runner.advance(seconds=seconds))
        yield InProcess(runner, ledger)


def _crash() -> None:
    raise WorkerCrash


@pytest.fixture
def wf(request: pytest.FixtureRequest) -> Workflow:
    """A new workflow, called like its test."""
    return Workflow(request.function.__name__.removeprefix("test_"), register=False)
