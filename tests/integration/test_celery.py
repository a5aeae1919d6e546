"""At home in Celery: plain jobs, a bare sender, canvases, other pools, Flower; with real workers."""

from __future__ import annotations

import json
import socket
import sys
import urllib.request
from typing import Any

import shapes
import steps
from celery import Celery
from forks import ran
from stack import SUPPORT, Stack, alone, eventually

from trellis.tasks.app import sender
from trellis.workflows import AsyncClient, Context, Workflow, action
from trellis.workflows.states import RunState


def test_a_bare_celery_application_starts_a_run(stack: Stack) -> None:
    """Nothing of ours on the sender's side: a name, keyword arguments, Celery's defaults."""
    stack.worker()
    bare = Celery("bare", broker=stack.broker_url)
    definition = {"name": "sent", "params": {"n": {"type": "integer"}}, "steps": {
        "sum": {"action": "add", "inputs": {"a": "${params.n}", "b": 2}}}}  # fmt: skip
    for _ in range(2):
        bare.send_task("trellis.start", kwargs={"workflow": definition, "params": {"n": 40}, "key": "k1"})
    run = eventually(lambda: stack.client.list("sent"))[0]
    assert stack.client.wait(run, timeout=30).state is RunState.SUCCEEDED
    assert stack.client.result(run) == {"sum": 42}
    bare.send_task("trellis.start", kwargs={"workflow": definition, "params": {"n": 1}})
    eventually(lambda: len(stack.client.list("sent")) == 2)  # and with the key twice there was one
    bare.close()


def test_a_plain_job_runs_its_body_and_retries_by_its_policy(stack: Stack) -> None:
    """`.delay()` is a Celery job: no journal, the action's own retries."""
    stack.worker()
    app = sender(stack.broker_url)
    app.send_task("fails_until", kwargs={"ledger": stack.ledger, "attempt": 3}, queue="celery")
    eventually(lambda: len(stack.lines()) == 3)
    assert [line[2] for line in stack.lines()] == ["1", "2", "3"]
    assert stack.client.list() == []


def test_threads_run_steps_and_stop_late_python_bodies(stack: Stack) -> None:
    """`--pool threads`: many steps in one process; a late body gets its exception at the next bytecode."""
    stack.worker(pool="threads", concurrency=8)
    stack.beat()
    wf = Workflow("threaded", register=False)
    wf.map("each", steps.effect, over=list(range(40)), ledger=stack.ledger)
    wf.step("late", steps.naps, ledger=stack.ledger, on_failure="skip")
    run = stack.client.wait(stack.client.start(wf), timeout=30)
    assert run.state is RunState.SUCCEEDED
    [late] = [step for step in stack.client.steps(run) if step.name == "late"]
    assert late.error is not None
    assert late.error["type"] == "StepTimeout"
    assert len(stack.effects()) == 41


def test_the_solo_pool_survives_a_step_that_ran_too_long(stack: Stack) -> None:
    """In a solo worker the process is the worker itself: it is interrupted, never killed."""
    worker = stack.worker(pool="solo", concurrency=1)
    stack.beat()
    wf = Workflow("alone", register=False)
    wf.step("stuck", steps.sleeps, ledger=stack.ledger)
    assert stack.client.wait(stack.client.start(wf), timeout=30).state is RunState.FAILED
    again = Workflow("again", register=False)
    again.step("fine", steps.noop)
    assert stack.client.wait(stack.client.start(again), timeout=30).state is RunState.SUCCEEDED
    assert worker.popen.poll() is None


def test_a_native_canvas_gives_what_the_engine_gives(stack: Stack) -> None:
    """The same definitions, once by Celery alone and once by the journal: the same results at the ends."""
    results = {"TRELLIS_RESULT_BACKEND_URL": stack.servers.redis.url(101)}
    stack.worker(**results)
    carried = {}
    for name in shapes.ALL:
        command = ["python", str(SUPPORT / "shapes.py"), name]
        asked = ran(command, stack.folder, stack.environment(**results))
        assert asked.returncode == 0, asked.stderr
        carried[name] = json.loads(asked.stdout)
    for name, build in shapes.ALL.items():
        run = stack.client.start(build(), {"n": 3})
        stack.client.wait(run, timeout=30)
        expected = stack.client.result(run)
        assert {step: carried[name][step] for step in expected} == expected, name


def test_flower_shows_workers_and_tasks_by_their_actions_names(stack: Stack) -> None:
    """The real Flower, read through its API: the worker, and each bundle with arguments a person can read."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "celery", "-A", "trellis.tasks", "flower"]
    flower = alone(
        [*command, f"--port={port}", "--address=127.0.0.1"],
        stack.environment(FLOWER_UNAUTHENTICATED_API="true"),
        stack.folder / "flower.log",
    )
    stack.processes.append(flower)

    def api(path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=10) as answer:
                return json.load(answer)
        except OSError:
            return None

    eventually(lambda: api("workers") is not None, what=flower.text)
    stack.worker()
    wf = Workflow("shown", register=False)
    wf.step("sum", steps.add, a=1)
    run = stack.client.start(wf)
    stack.client.wait(run, timeout=30)
    task = eventually(lambda: next((t for t in (api("tasks") or {}).values() if t["name"] == "add"), None))
    assert (task["args"], task["kwargs"]) == ("shown: sum", f"run={run.id}")
    assert task["worker"] == "worker@test"
    eventually(lambda: "worker@test" in (api("workers?refresh=1") or {}))  # it asks the workers for a second


def test_the_async_client_waits_without_a_thread(stack: Stack) -> None:
    """Fifty coroutines wait at once, more than the thread pool has threads; all of them are woken."""
    import asyncio

    stack.worker()
    wf = Workflow("awaited", params={"n": int}, register=False)
    wf.step("sum", steps.add, a=wf.params.n)

    async def one(client: AsyncClient, n: int) -> int:
        run = await client.start(wf, {"n": n})
        await client.wait(run, timeout=30)
        result = await client.result(run, "sum")
        assert (await client.progress(run)).done == 1
        return int(result)

    async def everybody() -> list[int]:
        async with AsyncClient(stack.settings) as client:
            found = await asyncio.gather(*(one(client, n) for n in range(50)))
            assert len(await client.list("awaited", limit=100)) == 50
            return list(found)

    assert asyncio.run(everybody()) == list(range(1, 51))


def test_submit_starts_a_durable_run_of_one_action(stack: Stack) -> None:
    """`.submit(…)` is `.delay(…)` with a journal behind it."""
    stack.worker()
    run = stack.client.submit(steps.add, {"a": 20, "b": 22}, key="once")
    assert stack.client.submit(steps.add, {"a": 0}, key="once").id == run.id
    assert stack.client.wait(run, timeout=30).state is RunState.SUCCEEDED
    assert stack.client.result(run, "add") == 42


def test_an_action_called_in_python_is_its_function() -> None:
    """No worker, no broker: a call is a call, with a context of its own."""

    @action(name="greets_for_test")
    def greets(name: str, ctx: Context) -> str:
        return f"{name} {ctx.attempt}"

    assert greets(name="Ada") == "Ada 1"
    assert greets("Ada") == "Ada 1"


def test_logs_of_a_step_carry_its_ids_and_no_secrets(stack: Stack) -> None:
    """Each line is JSON with run, step, attempt and correlation id; passwords are gone."""
    worker = stack.worker()
    wf = Workflow("speaks", register=False)
    wf.step("talk", steps.logs, secret="s3cret-value")
    run = stack.client.start(wf, correlation_id="order-9")
    stack.client.wait(run, timeout=30)
    line = eventually(
        lambda: next((each for each in worker.text().splitlines() if "step.speaks" in each), None)
    )
    said = json.loads(line)
    assert (said["run"], said["step"], said["attempt"], said["correlation_id"]) == (
        run.id,
        "talk",
        1,
        "order-9",
    )
    assert (said["api_key"], said["address"]) == ("***", "postgresql://u:***@host/db")
    assert "s3cret-value" not in worker.text()


def test_a_worker_on_a_wrong_schema_refuses_with_the_command(stack: Stack) -> None:
    """Too old and too new: the process ends, and its last line says what to run."""
    for revision, advice in (("0000", "a newer version of Trellis"), (None, "trellis migrate")):
        stack.rows("DELETE FROM alembic_version")
        if revision is not None:
            stack.rows("INSERT INTO alembic_version VALUES (%s)", revision)
        process = stack.spawn(f"worker{revision}", "worker", "-c", "1")
        eventually(lambda process=process: process.popen.poll() is not None)
        assert process.popen.returncode != 0
        assert advice in process.text()
