"""Limits, the pure part: keys, what is refused in them, and who is let in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trellis.tasks.errors import DefinitionError
from trellis.workflows import Workflow, action
from trellis.workflows.files import dump, load, workflow
from trellis.workflows.gates import (
    ENTRY,
    Gate,
    Scope,
    Shared,
    Waiter,
    canonical_key,
    decide,
    fair_line,
    first_line,
    key_line,
    key_of,
    known_parts,
    lines_of,
    of_item,
    others,
    rate_line,
    run_line,
    runs_line,
    short,
    template,
)


@action(name="limited")
def limited(x: Any = None) -> Any:
    """A body."""
    return x


# --- keys


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("plain", "plain"),
        ("c:{params.id}", "c:${params.id}"),
        ("c:${params.id}", "c:${params.id}"),
        ("c{params.id}d{item}", "c${params.id}d${item}"),
        ("{item}", "${item}"),
        ("{item.of}/{index}", "${item.of}/${index}"),
        ("{params.a}{params.b}", "${params.a}${params.b}"),
        ("{items}", "{items}"),
        ("{other}", "{other}"),
        ("\x00${params.id}\x00!", "${params.id}!"),  # as an f-string with a reference leaves it
    ],
)
def test_a_key_has_one_notation(written: str, canonical: str) -> None:
    assert canonical_key(written) == canonical
    assert canonical_key(canonical) == canonical


@pytest.mark.parametrize(
    ("key", "item", "message"),
    [
        ("", False, "at least one character"),
        ("${steps.a}", True, "known only at run time: a key is made of params, .{item} and .{index}"),
        ("${steps.a}", False, r"known only at run time: a key is made of params$"),
        ("k${item}", False, "outside a map"),
        ("k${index}", False, "outside a map"),
        ("k{id}", False, r"holds '\{id\}', which is no reference: write \{params.NAME\}$"),
        ("k{id", True, r"holds '\{id', which is no reference: .*\{item.FIELD\} or \{index\}"),
    ],
)
def test_what_a_key_cannot_hold_is_refused(key: str, item: bool, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        template(key, item=item)


def test_a_key_is_filled_in_from_params_and_then_from_the_item() -> None:
    parts = known_parts(template("${params.region}/${item.of}#${index}", item=True), {"region": "eu"})
    assert parts[0] == "eu"
    assert key_of(parts, {"item": {"of": 7}, "index": 2}) == "eu/7#2"
    with pytest.raises(LookupError):
        key_of(parts, {"item": {}, "index": 2})
    with pytest.raises(LookupError):
        known_parts(template("${params.region.x}", item=False), {"region": {}})


def test_a_long_key_is_known_by_its_digest() -> None:
    """It fits an index, and different keys stay different."""
    one, two = "k" * 300 + "1", "k" * 300 + "2"
    assert short("k" * 200) == "k" * 200
    assert len(short(one)) < 200
    assert len({short(one), short(two), short(one)}) == 2


def test_each_kind_of_gate_has_a_line_of_its_own() -> None:
    lines = [key_line("x"), runs_line("x"), run_line("x"), fair_line("x"), rate_line("x")]
    assert lines == ["gate:key:x", "gate:runs:x", "gate:run:x", "gate:fair:x", "gate:rate:x"]


def test_a_step_states_its_gates_key_first_and_its_rate_last() -> None:
    limits = {"key": [["k"], 2], "gates": [["gate:run:r", 3]], "rate": [["m"], 10, 60.0]}
    options = of_item(limits, {})
    assert options == {"gates": [["gate:key:k", 2], ["gate:run:r", 3]], "rate": ["gate:rate:m", 10, 60.0]}
    assert first_line(options) == "gate:key:k"
    assert lines_of(options) == ("gate:key:k", "gate:run:r")
    assert first_line({"rate": ["gate:rate:m", 1, 1.0]}) == "gate:rate:m"
    assert (first_line(None), first_line({}), lines_of(None)) == (None, None, ())


def test_what_limits_all_steps_of_a_run() -> None:
    assert Shared.of(None, Scope("r")) is None
    shared = Shared.of(3, Scope("r", "acme", 10))
    assert shared is not None
    assert shared.before("q") == [["gate:run:r", 3], ["gate:fair:q", 10]]


# --- who is let in


def waiter(
    idx: int, *gates: tuple[str, int], rate: tuple[str, int, float] | None = None, fair: str = ""
) -> Waiter:
    return Waiter(
        "run", idx, fair, [list(gate) for gate in gates], None if rate is None else list(rate), None
    )


def test_as_many_are_let_in_as_there_are_places_in_order() -> None:
    found = decide({"k": [waiter(n, ("k", 2)) for n in range(4)]}, {"k": Gate()}, 1.0)
    assert [each.idx for each, _ in found.admitted] == [0, 1]
    assert found.roomy == set()
    assert decide({"k": [waiter(0, ("k", 2))]}, {"k": Gate(2)}, 1.0).admitted == []


def test_a_line_that_was_not_filled_is_looked_at_again() -> None:
    assert decide({"k": [waiter(0, ("k", 2))]}, {"k": Gate()}, 1.0).roomy == {"k"}


def test_who_finds_another_gate_full_goes_to_that_line_and_holds_nothing() -> None:
    both = waiter(0, ("a", 1), ("b", 1))
    found = decide({"a": [both, waiter(1, ("a", 1))]}, {"a": Gate(), "b": Gate(1)}, 1.0)
    assert found.moved == [(both, "b")]
    assert [each.idx for each, _ in found.admitted] == [1]


def test_everybody_is_held_to_the_limit_that_it_states() -> None:
    narrow, wide = waiter(0, ("k", 1)), waiter(1, ("k", 3))
    assert decide({"k": [narrow, wide]}, {"k": Gate(1)}, 1.0).admitted == []
    assert [each.idx for each, _ in decide({"k": [wide, narrow]}, {"k": Gate(1)}, 1.0).admitted] == [1]


def test_a_rate_gives_slots_as_far_as_the_horizon() -> None:
    each = [waiter(n, rate=("gate:rate:m", 10, 1.0)) for n in range(9)]
    found = decide({"gate:rate:m": each}, {"gate:rate:m": Gate(wait=0.2)}, 0.5)
    assert [round(delay, 1) for _, delay in found.admitted] == [0.2, 0.3, 0.4, 0.5]
    assert round(found.next_slots["gate:rate:m"], 1) == 0.6


def test_who_has_a_place_and_no_slot_waits_for_the_slot_and_gives_the_place_to_others() -> None:
    both = waiter(0, ("k", 1), rate=("gate:rate:m", 1, 60.0))
    found = decide({"k": [both, waiter(1, ("k", 1))]}, {"k": Gate(), "gate:rate:m": Gate(wait=9.0)}, 0.5)
    assert found.moved == [(both, "gate:rate:m")]
    assert [each.idx for each, _ in found.admitted] == [1]


def test_a_run_that_begins_holds_one_place_for_all_of_its_steps() -> None:
    entry = ["gate:runs:k", 1]
    first, second = (Waiter(run, 0, "", [["k", 1]], None, entry) for run in ("one", "two"))
    found = decide({"gate:runs:k": [first, second]}, {"gate:runs:k": Gate()}, 1.0)
    assert found.entered == [(first, "gate:runs:k")]
    assert found.admitted == []
    assert others({"gate:runs:k": [first]}) == set()  # its steps' own gates are asked later
    assert ENTRY == "entry:"


def test_the_gates_besides_the_lines_are_those_of_the_waiters() -> None:
    each = waiter(0, ("a", 1), ("b", 1), rate=("gate:rate:m", 1, 1.0))
    assert others({"a": [each]}) == {"b", "gate:rate:m"}


lines = st.sampled_from(["a", "b", "c"])
waiters = st.builds(
    lambda idx, gates, line: (line, waiter(idx, (line, 2), *((g, n) for g, n in gates.items() if g != line))),
    st.integers(0, 1000),
    st.dictionaries(lines, st.integers(1, 3), max_size=3),
    lines,
)


@given(st.lists(waiters, max_size=12), st.dictionaries(lines, st.integers(0, 3)))
def test_no_limit_is_passed_whoever_waits(drawn: list[tuple[str, Waiter]], used: dict[str, int]) -> None:
    """For each who is let in: with it, no gate holds more than it states; nobody is both let in and moved."""
    waiting: dict[str, list[Waiter]] = {}
    for line, each in drawn:
        waiting.setdefault(line, []).append(each)
    found = decide(waiting, {line: Gate(used.get(line, 0)) for line in "abc"}, 1.0)
    held = {line: used.get(line, 0) for line in "abc"}
    for each, _ in found.admitted:
        for gate, limit in each.gates:
            held[gate] += 1
            assert held[gate] <= limit
    assert not {id(each) for each, _ in found.admitted} & {id(each) for each, _ in found.moved}


# --- in files

YAML = """
name: limits
params: {id: {type: integer}}
concurrency_key: "customer:{params.id}"
limit: 2
max_parallel: 8
fair_key: "{params.id}"
steps:
  one:
    action: limited
    concurrency_key: "k:{params.id}"
    limit: 3
    rate: {key: "mail:{params.id}", limit: 10, per: 60}
  each:
    action: limited
    inputs: {x: "${item}"}
    map: {over: [1, 2]}
    concurrency_key: "item:{item}"
"""


def in_python() -> Workflow:
    from_python = Workflow(
        "limits", params={"id": int}, concurrency_key="customer:{params.id}", limit=2, max_parallel=8,
        fair_key="{params.id}", register=False,
    )  # fmt: skip
    wf = from_python
    rate = {"key": f"mail:{wf.params.id}", "limit": 10, "per": 60}
    wf.step("one", limited, concurrency_key=f"k:{wf.params.id}", limit=3, rate=rate)  # type: ignore[arg-type]
    wf.map("each", limited, over=[1, 2], x=wf.item, concurrency_key=f"item:{wf.item}")
    return wf


def test_limits_are_the_same_in_yaml_json_and_python(tmp_path: Path) -> None:
    """One digest; and what Python writes comes back from JSON."""
    spec = in_python().spec
    yaml, plain = tmp_path / "limits.yaml", tmp_path / "limits.json"
    yaml.write_text(YAML)
    plain.write_text(dump(spec, "json"))
    assert load(yaml).digest() == load(plain).digest() == spec.digest()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"limit": 2}, "limit says how many at once of what: give concurrency_key"),
        ({"concurrency_key": "k{id}"}, r"holds '\{id\}', which is no reference"),
        ({"concurrency_key": "{item}"}, "outside a map"),
        ({"concurrency_key": "{params.nobody}"}, "a parameter 'nobody' that does not exist; there are: 'id'"),
        ({"rate": {"key": "{steps.one}", "limit": 1}}, r"holds '\{steps.one\}'"),
        ({"rate": {"key": "${steps.one}", "limit": 1}}, "known only at run time"),
    ],
    ids=range(6),
)
def test_what_is_wrong_in_a_file_is_told_with_the_step(
    tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    file = tmp_path / "wrong.json"
    steps = {"one": {"action": "limited", **wrong}}
    file.write_text(json.dumps({"name": "w", "params": {"id": {"type": "integer"}}, "steps": steps}))
    with pytest.raises(DefinitionError, match=message) as caught:
        workflow(file).validate()
    assert "'one'" in str(caught.value)
