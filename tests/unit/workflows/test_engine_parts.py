"""The engine's pure parts: ids in messages, rows for COPY, bundle sizes, verdicts on expired leases."""

from __future__ import annotations

import csv
import json
import re
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trellis.tasks.errors import InputError
from trellis.tasks.queries import numbered
from trellis.tasks.settings import Settings
from trellis.workflows import growth, wire
from trellis.workflows.artifacts import Artifact, address
from trellis.workflows.dispatch import pack, unpack
from trellis.workflows.durations import bundle_size
from trellis.workflows.journal import SQL
from trellis.workflows.launch import new_id
from trellis.workflows.plan import PlannedStep
from trellis.workflows.records import Claimed, Expired, Outcome
from trellis.workflows.recovery import verdict
from trellis.workflows.states import StepState


@given(st.sets(st.integers(0, 100_000), min_size=1))
def test_packed_ids_are_the_same_ids(ids: set[int]) -> None:
    """Sorted, each once; neighbours take two numbers however many they are."""
    ordered = sorted(ids)
    assert unpack(pack(ordered)) == ordered
    assert pack(list(range(5, 5005))) == [5, 5000]


UNESCAPED = {"\\": "\\", "n": "\n", "t": "\t", "r": "\r", "N": "\\N"}
TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))


@given(TEXT, st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.none())))
def test_a_row_for_copy_says_what_it_was_given(name: str, inputs: dict[str, Any]) -> None:
    """Backslashes, tabs, newlines and quotes survive: the text format is undone field by field."""
    step = PlannedStep(3, name, "a", "q", 5, 2, (4, 5), inputs, None, (1,), None)
    [block] = wire.copy_rows("run", [step], sent=True)
    [row] = csv.reader([block.removesuffix("\n")], delimiter="\t", quoting=csv.QUOTE_NONE)
    plain = [re.sub(r"\\(.)", lambda found: UNESCAPED[found[1]], field) for field in row]
    assert plain[2] == name
    assert row[6:11] == ["waiting", "2", "t", "{4,5}", "{1}"]
    assert (json.loads(plain[11]) if inputs else plain[11]) == (inputs or "\\N")


@pytest.mark.parametrize(
    ("mean", "budget", "size"),
    [(None, 50, 1), (0.01, 50, 500), (1, 50, 50), (20, 50, 2), (26, 50, 1), (1, 0, 1), (0.0, 50, 500)],
)
def test_a_bundle_holds_about_its_budget_and_slow_or_unknown_steps_travel_alone(
    mean: float | None, budget: float, size: int
) -> None:
    """Milliseconds each, milliseconds in all, at most 500."""
    assert bundle_size(mean, budget, 500) == size


def late(**changes: Any) -> Expired:
    base = Expired("r", "w", 1, "s", 1, 0, None, "host:1", 2.0, str(uuid4()))
    return base._replace(**changes)


def test_a_vanished_worker_is_forgiven_until_it_happens_too_often() -> None:
    """Crashes are claims without a recorded failure; past the limit the step is a dead letter."""
    settings = Settings(max_crashes=2)
    assert verdict(late(attempt=2), settings).state is StepState.READY
    assert verdict(late(attempt=4, failures=2), settings).state is StepState.READY
    dead = verdict(late(attempt=3), settings)
    assert (dead.state, dead.fatal) == (StepState.FAILED, True)
    assert dead.error is not None
    assert dead.error["type"] == "WorkerLost"


def test_a_crash_is_no_timeout_however_short_the_limit_and_a_dead_letter_follows_its_policy() -> None:
    """A lease runs out long after a short limit, so its age alone proves nothing; at the end it is likely."""
    options = {"timeout": 1, "retry": {"attempts": 2}, "on_failure": {"default": [0]}}
    settings = Settings(max_crashes=1)
    again = verdict(late(options=options), settings)
    assert (again.state, again.fault) == (StepState.READY, 0)
    last = verdict(late(options=options, attempt=2), settings)
    assert (last.state, last.result, last.fatal, last.blocks) == (StepState.FAILED, b"[0]", False, False)
    assert last.error is not None
    assert last.error["type"] == "StepTimeout"


def map_step(concurrency: int | None) -> Claimed:
    options = {"map": {"action": "a", "queue": "q", "priority": 5, "inputs": {"x": None, "k": 1},
                       "bindings": [[["x"], "item", []]], "concurrency": concurrency}}  # fmt: skip
    return Claimed(0, "m", "trellis.map", "q", 5, 1, 0, 0, {}, None, None, options, str(uuid4()))


@given(st.integers(0, 60), st.integers(1, 8))
def test_a_map_never_has_more_items_ready_than_its_lanes(count: int, lanes: int) -> None:
    """Replay: whichever items end first, at most `lanes` are open, all run once, the gathering step sees each."""
    step = map_step(lanes)
    rows = list(growth.rows(step, growth.items(step, range(count)), 10, 1, count))
    missing = {row.idx: row.missing for row in rows}
    open_now = [row for row in rows if not row.missing]
    gathered = 0
    order = []
    while open_now:
        assert len(open_now) <= lanes
        done = open_now.pop(len(order) % len(open_now))
        order.append(done.idx)
        for edge in done.dependents:
            if edge == 1:
                gathered += 1
            else:
                assert edge < 0, "lanes are edges of order alone"
                missing[~edge] -= 1
                open_now += [row for row in rows if row.idx == ~edge and not missing[~edge]]
    assert sorted(order) == [10 + n for n in range(count)]
    assert gathered == count
    assert [row.inputs for row in rows] == [{"x": n, "k": 1} for n in range(count)]


def test_items_share_what_they_have_in_common_by_reference() -> None:
    """Only item and index are filled in; another step's result stays a binding, also inside a text."""
    step = map_step(None)
    assert step.options is not None
    bindings = [
        [["x"], "item", []],
        [["y"], 7, ["rows"]],
        [["z"], "text", ["n", ["index", []], "-", [8, []]]],
    ]
    step.options["map"] |= {"inputs": {"x": None, "y": None, "z": None}, "bindings": bindings}
    first, second = growth.rows(step, growth.items(step, ["a", "b"]), 10, 1, 2)
    assert (first.inputs["x"], second.inputs["x"]) == ("a", "b")
    assert first.bindings == [[["y"], 7, ["rows"]], [["z"], "text", ["n", "0", "-", [8, []]]]]
    assert first.refs == second.refs == (7, 8)


def test_a_map_over_no_list_is_refused() -> None:
    """The message names the step."""
    with pytest.raises(InputError, match="'m'.*over: a map goes over a list, this is dict"):
        growth.listed(map_step(None), {"over": {}})


def test_ids_of_runs_are_version_7_and_ordered_by_time() -> None:
    """So that new runs lie together in every index, and lists need no other order."""
    ids = [new_id() for _ in range(3)]
    assert all(UUID(each).version == 7 and UUID(each).variant == "specified in RFC 4122" for each in ids)
    assert sorted(each[:13] for each in ids) == [each[:13] for each in ids]


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../up", "a/../b", "a//b", "."])
def test_an_artifact_stays_in_its_folder(name: str) -> None:
    """Names that leave it are refused."""
    with pytest.raises(ValueError, match="relative name"):
        address("file:///root", "run", "step", 1, name)


def test_an_artifact_is_written_and_read(tmp_path: Any) -> None:
    """Folders come by themselves; the reference is JSON."""
    file = Artifact(uri=address(tmp_path.as_uri(), "run", "map[0]", 2, "a/b.txt"))
    assert not file.exists()
    assert Artifact.model_validate_json(file.write_text("é").model_dump_json()).read_text() == "é"
    assert file.exists()


@pytest.mark.parametrize("name", sorted(SQL))
def test_placeholders_are_numbered_in_the_order_of_their_names(name: str) -> None:
    """Postgres takes the statement as it is, and each number stands for the name that stood in its place."""
    made = numbered(SQL[name])
    places = re.findall(rb"%\((\w+)\)s", SQL[name])
    assert re.findall(rb"%\(", made.text) == []
    assert [made.names[int(n) - 1].encode() for n in re.findall(rb"\$(\d+)", made.text)] == places
    assert len(set(made.names)) == len(made.names)


@given(st.floats(0, 1e6), st.one_of(st.none(), st.text()), st.booleans())
def test_outcomes_are_json(ran: float, text: str | None, fatal: bool) -> None:
    """Whatever a result or an error says, the list parses and says it again."""
    result = None if text is None else json.dumps(text).encode()
    error = None if text is None else {"message": text}
    outcome = Outcome(3, "lease", StepState.FAILED, result, error, 1, True, 0.5, fatal, ran, 7.0)
    [told] = json.loads(wire.outcomes([outcome], 9.0))
    assert (told["idx"], told["state"], told["age"], told["fatal"]) == (3, "failed", 2.0, fatal)
    assert (told.get("result"), told.get("error")) == (text, error)
