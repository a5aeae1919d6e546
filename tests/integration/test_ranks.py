"""Longest path first: a message of ranked steps is a right to the most urgent one, and losing count harms nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import steps
from stack import Stack

from trellis.workflows import Workflow, recovery
from trellis.workflows.bundle import Bundle
from trellis.workflows.journal import SQL
from trellis.workflows.launch import prepare
from trellis.workflows.records import Claimed, Ready
from trellis.workflows.states import RunState

KNOWN = ["effect", "noop"]


def accepted(stack: Stack, *expected: float, priorities: Sequence[int] = ()) -> str:
    """A run of independent steps s0, s1, … that are expected to take so long; nobody is told of it."""
    wf = Workflow("urgent", register=False)
    for at, expect in enumerate(expected):
        priority = priorities[at] if priorities else None
        wf.step(f"s{at}", steps.effect, ledger=stack.ledger, expect=expect, priority=priority)
    return stack.client.start(wf).id


def order(stack: Stack) -> list[str]:
    return [line[1] for line in stack.lines()]


def claim(
    stack: Stack, run: str, room: int = 1, known: Sequence[str] = KNOWN, queue: str = ""
) -> list[Claimed]:
    queue = queue or stack.settings.default_queue
    return stack.engine.journal.claim_ranked(run, queue, known, "w", room=room, seconds=0.05)[0]


def right(stack: Stack, run: str, idx: Sequence[int] = (0,)) -> None:
    """What a worker does with a message of ranked steps."""
    stack.engine.run_bundle("effect", run, idx, stack.settings.default_queue)


class Published:
    """Stands in for the dispatcher and keeps what is announced."""

    def __init__(self) -> None:
        self.steps: list[Ready] = []

    def publish(self, run: str, workflow: str, ready: Sequence[Ready]) -> int:
        self.steps += ready
        return len(self.steps)

    def pass_on(self, run: str, workflow: str, like: Ready, idx: Sequence[int]) -> int:
        return self.publish(run, workflow, [like._replace(idx=each) for each in idx])

    def waiting(self, queue: str) -> int:
        return 0


@pytest.fixture
def one_a_message(stack: Stack) -> Stack:
    """An engine that does not go on by itself."""
    stack.engine.settings = stack.with_settings(ahead_ms=0.0)
    return stack


def test_a_message_takes_the_longest_path_whatever_step_it_names(one_a_message: Stack) -> None:
    """Four messages that name the same step run all four, the longest first."""
    stack = one_a_message
    run = accepted(stack, 1.0, 4.0, 2.0, 3.0)
    for _ in range(4):
        right(stack, run)
    assert order(stack) == ["s1", "s3", "s2", "s0"]
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_the_users_priority_comes_before_the_rank(one_a_message: Stack) -> None:
    """However short a step is, if it is called urgent it goes first."""
    stack = one_a_message
    run = accepted(stack, 1.0, 4.0, 2.0, priorities=[9, 5, 5])
    for _ in range(3):
        right(stack, run)
    assert order(stack) == ["s0", "s1", "s2"]


def branching(stack: Stack) -> str:
    """A run in which the end of `first` frees `then`, while `other` is more urgent than that."""
    wf = Workflow("branching", register=False)
    first = wf.step("first", steps.effect, ledger=stack.ledger, expect=5)
    wf.step("then", steps.effect, ledger=stack.ledger, expect=1, after=[first])
    wf.step("other", steps.effect, ledger=stack.ledger, expect=3)
    return stack.client.start(wf).id


def test_a_worker_goes_on_with_the_most_urgent_step_in_place_of_what_it_frees(stack: Stack) -> None:
    """It announces one step less than it frees and takes one more: there stay as many rights as ready steps."""
    stack.engine.settings = stack.with_settings(ahead_ms=60_000.0)
    run = branching(stack)
    stack.engine.dispatcher = published = Published()  # type: ignore[assignment]
    right(stack, run)
    assert order(stack) == ["first", "other"]
    assert published.steps == []
    right(stack, run)
    assert order(stack) == ["first", "other", "then"]
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_a_right_that_was_kept_and_not_used_is_announced(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time for going on is over just then; or the process hands back what it has."""
    left = iter([1.0, 1.0])
    monkeypatch.setattr(Bundle, "_left_ms", lambda _: next(left, 0.0))
    run = branching(stack)
    stack.engine.dispatcher = published = Published()  # type: ignore[assignment]
    right(stack, run)
    assert order(stack) == ["first"]
    assert [step.name for step in published.steps] == ["then"]


def test_many_ranked_steps_share_messages_and_few_do_not(stack: Stack) -> None:
    """A wide frontier goes out in 64 messages at least, so that no worker idles for the sake of a bundle."""
    bundles = stack.engine.dispatcher._bundles
    few = [Ready(at, f"s{at}", "a", "q", 5, 9.0, 0.001, False) for at in range(64)]
    many = [Ready(at, f"s{at}", "a", "q", 5, 9.0, 0.001, False) for at in range(640)]
    assert {len(bundle) for bundle in bundles(few)} == {1}
    assert {len(bundle) for bundle in bundles(many)} == {10}


def test_more_messages_than_steps_change_nothing(one_a_message: Stack) -> None:
    """Doubled and late messages find nothing: every body ran once."""
    stack = one_a_message
    run = accepted(stack, 1.0, 2.0, 3.0)
    for _ in range(9):
        right(stack, run, [0, 1])
    assert stack.effects() == {"s0": 1, "s1": 1, "s2": 1}
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_lost_rights_are_given_anew_by_the_tick(
    one_a_message: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All messages gone: each step that is left is announced again, with its rank."""
    stack = one_a_message
    run = accepted(stack, 1.0, 2.0, 3.0)
    right(stack, run)
    stack.rows("UPDATE step SET due_at = now() - interval '1 hour' WHERE state = 'ready'")
    published = Published()
    monkeypatch.setattr(stack.engine, "dispatcher", published)
    recovery.tick(stack.engine)
    assert [(step.name, step.rank) for step in sorted(published.steps)] == [("s0", 1.0), ("s1", 2.0)]


def test_a_retry_that_waits_for_its_time_is_not_taken_early(one_a_message: Stack) -> None:
    """Nor is it taken by another's right before it is announced, which would leave that one without."""
    stack = one_a_message
    run = accepted(stack, 1.0, 4.0)
    stack.rows("UPDATE step SET sent = false, attempt = 1, failures = 1 WHERE name = 's1'")
    assert [step.name for step in claim(stack, run)] == ["s0"]
    assert claim(stack, run) == []
    stack.rows("UPDATE step SET sent = true WHERE name = 's1'")
    assert [(step.name, step.attempt) for step in claim(stack, run)] == [("s1", 2)]


def test_a_step_that_took_a_worker_down_is_called_by_its_name(one_a_message: Stack) -> None:
    """A right never takes it; a message of its own does, and is no right."""
    stack = one_a_message
    run = accepted(stack, 1.0, 4.0)
    stack.rows("UPDATE step SET attempt = 1 WHERE name = 's1'")
    assert [step.name for step in claim(stack, run)] == ["s0"]
    assert claim(stack, run) == []
    stack.engine.run_bundle("effect", run, [1])
    assert order(stack) == ["s1"]


def test_only_actions_of_this_process_are_taken(one_a_message: Stack) -> None:
    """The most urgent step of another deployment is left to it."""
    stack = one_a_message
    run = accepted(stack, 1.0, 4.0)
    assert claim(stack, run, known=["noop"]) == []
    assert claim(stack, run, queue="another") == []


def test_a_short_step_among_many_takes_others_like_it_along(one_a_message: Stack) -> None:
    """As far as the time goes; what is slower than the first stays, and few steps are shared among all workers."""
    stack = one_a_message
    run = accepted(stack, *[0.01] * 64, 0.2, 0.02)
    assert [step.name for step in claim(stack, run, room=9)] == ["s64"]  # the slow one is the most urgent
    taken = claim(stack, run, room=9)
    assert [step.name for step in taken] == ["s65", "s0"]
    assert len(claim(stack, run, room=9)) == 1  # 63 are left


def test_rights_that_are_left_over_go_back(one_a_message: Stack) -> None:
    """A message of three rights that runs one step leaves two; one that finds nothing leaves none."""
    stack = one_a_message
    run = accepted(stack, 1.0, 2.0, 3.0)
    published = stack.engine.dispatcher = Published()  # type: ignore[assignment]
    right(stack, run, [0, 1, 2])
    assert order(stack) == ["s2"]
    assert [step.idx for step in published.steps] == [1, 2]
    right(stack, run, [1, 2])
    right(stack, run, [2])
    published.steps.clear()
    right(stack, run, [0, 1, 2])
    assert published.steps == []


def test_a_step_that_another_claim_holds_is_passed_over(one_a_message: Stack) -> None:
    """Two claims at once take two steps, and neither waits for the other."""
    stack = one_a_message
    run = accepted(stack, 1.0, 4.0)
    with stack.connect() as other, other.transaction():
        other.execute("SELECT FROM step WHERE name = 's1' FOR UPDATE")
        assert [step.name for step in claim(stack, run)] == ["s0"]
    assert [step.name for step in claim(stack, run)] == ["s1"]


def test_a_claim_whose_commit_went_unheard_finds_its_own_steps(
    one_a_message: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked twice, it has taken one step and not two, in its first attempt."""
    stack = one_a_message
    run = accepted(stack, 1.0, 4.0)
    monkeypatch.setattr(stack.engine.database, "again", lambda ask: (ask(), ask())[1])
    taken = claim(stack, run)
    assert [(step.name, step.attempt) for step in taken] == [("s1", 1)]
    assert stack.rows("SELECT name, attempt FROM step ORDER BY name") == [("s0", 0), ("s1", 1)]


def test_a_paused_or_ended_run_gives_nothing_and_announces_nothing(one_a_message: Stack) -> None:
    """Else its messages would chase each other for as long as it stands."""
    stack = one_a_message
    run = accepted(stack, 0.03, 0.04)
    stack.rows("UPDATE run SET state = 'paused'")
    assert claim(stack, run, room=2) == []
    assert stack.rows("SELECT DISTINCT state FROM step") == [("ready",)]


def test_items_of_a_map_are_ranked_by_the_lane_behind_them(one_a_message: Stack) -> None:
    """Five items in two lanes, and two seconds behind them all."""
    stack = one_a_message
    wf = Workflow("items", register=False)
    wf.map("each", steps.effect, over=list(range(5)), concurrency=2, ledger=stack.ledger, expect=1.0)
    wf.step("end", steps.effect, ledger=stack.ledger, after=["each"], expect=2.0)
    wf.step("other", steps.effect, ledger=stack.ledger, expect=4.5)
    run = stack.client.start(wf).id
    right(stack, run)
    assert stack.rows(
        "SELECT name, rank, expect FROM step WHERE starts_with(name, 'each[') ORDER BY idx"
    ) == [
        ("each[]", 2.0, None),
        *((f"each[{at}]", rank, 1.0) for at, rank in enumerate([5.0, 4.0, 4.0, 3.0, 3.0])),
    ]
    for _ in range(7):
        right(stack, run)
    assert order(stack)[:2] == ["each[0]", "other"]


def test_a_measured_mean_ranks_what_says_nothing(stack: Stack) -> None:
    """The client reads what the workers have measured."""
    stack.engine.journal.learn({"effect": (10, 300.0)})
    wf = Workflow("measured", register=False)
    wf.step("a", steps.noop)
    wf.step("b", steps.effect, ledger=stack.ledger)
    run = stack.client.start(wf).id
    found = stack.rows("SELECT name, rank FROM step WHERE run_id = %s ORDER BY idx", run)
    assert found == [("a", 0.0), ("b", pytest.approx(0.3))]


def test_a_run_that_joins_a_transaction_is_ranked_by_what_is_known(stack: Stack) -> None:
    """Nothing is asked for it; what steps and actions say counts as ever."""
    wf = Workflow("joined", register=False)
    wf.step("a", steps.noop)
    wf.step("b", steps.noop, expect=3)
    with stack.connect() as connection, connection.transaction():
        run = stack.client.start(wf, connection=connection)
    assert stack.rows("SELECT rank FROM step WHERE run_id = %s ORDER BY idx", run.id) == [(0.0,), (3.0,)]


def test_both_claims_do_the_same_to_a_step() -> None:
    """They differ in which steps they take, never in what becomes of them."""

    def after(name: str) -> tuple[str, str]:
        text = SQL[name].decode()
        changed = re.search(r"UPDATE step s\n(SET .*?)\nFROM", text, re.DOTALL)
        answered = re.search(r"(RETURNING .*?correlation_id)", text, re.DOTALL)
        assert changed
        assert answered
        return changed[1], answered[1]

    assert after("claim") == after("claim_ranked")


def test_a_plain_run_has_nothing_of_all_this(stack: Stack) -> None:
    """No rank, and messages that name their steps."""
    wf = Workflow("plain", register=False)
    wf.step("a", steps.noop)
    wf.step("b", steps.noop)
    prepared = prepare(wf, {}, stack.settings)
    assert {(step.rank, step.expect) for step in prepared.ready} == {(None, None)}
