"""Runs are found by tags, state, workflow and age along indexes; one verb for all that are found."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import steps
from stack import Stack

from trellis.tasks.errors import DefinitionError
from trellis.workflows import AsyncClient, Workflow
from trellis.workflows.bulk import FITS
from trellis.workflows.search import Search, least_id, search
from trellis.workflows.states import RunState


def one(name: str = "one", action: Any = steps.noop, **inputs: Any) -> Workflow:
    wf = Workflow(name, register=False)
    wf.step("only", action, **inputs)
    return wf


def test_runs_are_found_by_all_their_tags(stack: Stack) -> None:
    a = stack.client.start(one(), tags=["red", "green", "red"]).id
    b = stack.client.start(one("two"), tags=["red"]).id
    c = stack.client.start(one()).id
    assert stack.client.get(a).tags == ("red", "green")
    listed = lambda **options: [run.id for run in stack.client.list(**options)]  # noqa: E731
    assert listed(tags=["red"]) == [b, a]
    assert listed(tags=["green", "red"]) == [a]
    assert listed(tags=["red"], workflow="two") == [b]
    assert listed(tags=["red"], state="cancelled") == []
    assert listed(tags=["red"], before=b) == [a]
    assert listed() == [c, b, a]
    assert stack.client.submit(steps.noop, tags=["job"]).tags == ("job",)


def test_a_start_under_a_known_key_changes_no_tags(stack: Stack) -> None:
    first = stack.client.start(one(), key="k", tags=["red"])
    again = stack.client.start(one(), key="k", tags=["green"])
    assert (again.id, again.tags) == (first.id, ("red",))
    assert stack.client.list(tags=["green"]) == []


def test_since_is_a_moment_or_an_age(stack: Stack) -> None:
    runs = [stack.client.start(one()).id for _ in range(3)]
    old = str(least_id(timedelta(days=3)))
    stack.rows("UPDATE run SET id = %s WHERE id = %s", old, runs[0])
    assert [run.id for run in stack.client.list(since=timedelta(days=2))] == runs[:0:-1]
    assert [run.id for run in stack.client.list(since=timedelta(days=4))] == [*runs[:0:-1], old]
    assert stack.client.list(since=datetime.now(UTC) + timedelta(minutes=1)) == []
    with pytest.raises(DefinitionError, match="time zone"):
        stack.client.list(since=datetime(2026, 1, 1))


def test_counts_stop_at_their_limit(stack: Stack) -> None:
    for _ in range(5):
        stack.client.start(one(), tags=["red"])
    assert stack.client.count() == 5
    assert stack.client.count(tags=["red"], at_most=3) == 4
    assert stack.client.count("two") == 0


@pytest.mark.parametrize(
    "tags", ["red", [""], ["x" * 201], ["a\x00"], [1], [str(n) for n in range(51)]], ids=repr
)
def test_odd_tags_are_refused_before_anything_is_written(stack: Stack, tags: Any) -> None:
    with pytest.raises(DefinitionError, match=r"tags?\b"):
        stack.client.start(one(), tags=tags)
    assert stack.client.list() == []


def test_every_search_finds_what_fits_and_nothing_else(stack: Stack) -> None:
    """Each combination of conditions, page by page, against a look at every run (test_plans.py: how it is found)."""
    stack.rows("INSERT INTO definition (digest, name, spec) VALUES ('d', 'w', '{}')")
    stack.rows(
        "INSERT INTO run (id, workflow, definition, correlation_id, state, params, steps, missing, tags) "
        "SELECT gen_random_uuid(), 'w' || n %% 3, 'd', '', CASE WHEN n %% 5 = 0 THEN 'failed' ELSE 'succeeded' END, "
        "'{}', 1, 0, array_remove(ARRAY['all', CASE WHEN n %% 2 = 0 THEN 'even' END, "
        "CASE WHEN n %% 7 = 0 THEN 'seventh' END, CASE WHEN n > 200 THEN 'late' END], NULL) "
        "FROM generate_series(1, 210) n"
    )
    stack.rows("INSERT INTO run_tag SELECT unnest(tags), id FROM run")
    runs = stack.rows("SELECT id, workflow, state, tags FROM run ORDER BY id DESC")
    tags = [(), ("all",), ("even",), ("seventh", "even"), ("all", "late", "seventh"), ("even", "none")]
    since, states = runs[150][0], (None, RunState.FAILED, RunState.PAUSED)
    for workflow, state, wanted, least in product((None, "w1"), states, tags, (None, since)):
        fits = [
            str(run)
            for run, its_workflow, its_state, its_tags in runs
            if workflow in (None, its_workflow)
            and state in (None, its_state)
            and set(wanted) <= set(its_tags)
            and (least is None or run >= least)
        ]
        asked = Search(workflow, state, wanted, least)
        queries = stack.client._queries
        pages: list[str] = []
        while page := queries.runs(asked, pages[-1] if pages else None, 41):
            pages += [run.id for run in page]
        assert pages == fits, asked
        assert queries.count(asked, 50) == min(50, len(fits)), asked


def test_an_unknown_state_is_refused(stack: Stack) -> None:
    with pytest.raises(
        DefinitionError, match=r"a run is pending, running, paused, succeeded, failed, cancelled"
    ):
        search(None, "done", (), None)


# --- one verb for many


def test_a_bulk_retry_takes_what_it_can_be_done_to_and_nothing_else(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "there"
    bad = [stack.client.start(one("w", steps.works_if, file=str(file)), tags=["x"]).id for _ in range(3)]
    fine = stack.client.start(one("w"), tags=["x"]).id
    other = stack.client.start(one("other", steps.fails)).id
    for run in (*bad, fine, other):
        stack.drain(run)
    stack.client.cancel(stack.client.start(one("w"), tags=["x"]))
    file.touch()
    counted = stack.client.bulk("retry", "w", tags=["x"], dry_run=True)
    assert counted == (4, 0, [])
    assert {stack.client.get(run).state for run in bad} == {RunState.FAILED}
    assert stack.client.bulk("retry", "w", state="failed", tags=["x"]) == (3, 3, [])
    for run in bad:
        stack.drain(run)
        assert stack.client.get(run).state is RunState.SUCCEEDED
    assert stack.client.get(other).state is RunState.FAILED


def test_bulks_go_over_pages_and_name_who_refuses(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trellis.workflows.bulk._PAGE", 2)
    runs = [stack.client.start(one("w")).id for _ in range(7)]
    assert stack.client.bulk("pause", "w") == (7, 7, [])
    stack.client.pause(workflow="w")
    found_ = stack.client.bulk("resume", "w")
    assert (found_.matched, found_.done, len(found_.refused)) == (7, 0, 7)
    assert "resume the workflow" in found_.refused[0][1]
    stack.client.resume(workflow="w")
    assert stack.client.bulk("cancel", "w", since=timedelta(hours=1)) == (7, 7, [])
    assert stack.client.bulk("rerun", "w").done == 7
    assert stack.client.count("w", state="pending") == 7
    refused = stack.client.bulk("delete", "w")  # their reruns need them
    assert (refused.done, len(refused.refused)) == (0, 7)
    stack.client.bulk("cancel", "w")
    newer = {run.id for run in stack.client.list("w")} - set(runs)
    for run in newer:
        stack.client.delete(run)
    assert stack.client.bulk("delete", "w") == (7, 7, [])
    assert stack.client.list() == []


def test_a_bulk_has_a_verb_a_condition_and_a_state_that_fits(stack: Stack) -> None:
    with pytest.raises(DefinitionError, match=r"'retrie'.*did you mean 'retry'"):
        stack.client.bulk("retrie", "w")
    with pytest.raises(DefinitionError, match="all runs there are"):
        stack.client.bulk("cancel")
    with pytest.raises(DefinitionError, match="failed, cancelled, not succeeded"):
        stack.client.bulk("retry", state="succeeded")
    assert set(FITS) == set(stack.client._deeds)


def test_the_client_for_asyncio_searches_as_well(stack: Stack) -> None:
    async def verbs() -> None:
        async with AsyncClient(stack.settings) as client:
            run = await client.start(one("w"), tags=["red"])
            assert [each.id for each in await client.list(tags=["red"], since=timedelta(hours=1))] == [run.id]
            assert await client.count(tags=["red"], status="pending") == 1
            assert await client.list(tags=["red"], status="failed") == []
            assert (await client.bulk("cancel", "w", status="pending")).done == 1
            again = await client.bulk("rerun", "w", from_step="gone", params={"a": 1}, inputs={"only": {}})
            assert (again.matched, "no step 'gone'" in again.refused[0][1]) == (1, True)
            await client.retain("w", timedelta(days=1))
            await client.retain("w", events=timedelta(hours=1), artifacts=timedelta(hours=2))
            assert await client.retentions() == [
                ("w", timedelta(days=1), timedelta(hours=1), timedelta(hours=2))
            ]
            await client.delete(run)

    asyncio.run(verbs())
