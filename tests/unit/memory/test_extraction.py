"""What a model is shown of an episode and what is taken of its answer, without any model."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from trellis.memory.extraction import (
    MOST,
    TURN_CHARACTERS,
    Answer,
    Found,
    Turn,
    document,
    key,
    levels,
    shown,
    taken,
    window,
)

BEGAN = datetime(2026, 11, 20, 19, 20, tzinfo=UTC)
SOURCES = {3: "user", 2: "user", 1: "tool", 0: "web"}


def turn(number: int, text: str = "a text", trust: int = 2, **more: Any) -> Turn:
    at = BEGAN + timedelta(minutes=number)
    options = {"actor": "Ann" if trust == 2 else None, "context": False, **more}
    return Turn(id=UUID(int=number), text=text, source=SOURCES[trust], trust=trust, at=at, **options)


def found(*turns: int, **more: Any) -> Found:
    said = {"about": "Ann", "what": "drink", "fact": "Ann drinks tea", "worth": "normal", **more}
    return Found(turns=list(turns), **said)


def keys(*facts: Found, turns: list[Turn] | None = None, level: int = 2) -> list[str]:
    given = [turn(1), turn(2)] if turns is None else turns
    return [fact["key"] for fact in taken(Answer(facts=list(facts)), given, level)]


def test_windows_are_bounded_by_characters_and_hold_one_turn_at_least() -> None:
    assert window([turn(n, "x" * 60) for n in range(4)], 130) == 2
    assert window([turn(1, "x" * 500), turn(2)], 100) == 1
    assert window([turn(1, "x" * 10 * TURN_CHARACTERS), turn(2)], TURN_CHARACTERS + 10) == 2
    assert window([turn(1)], 100) == 1


def test_levels_are_those_of_new_turns_that_say_something() -> None:
    turns = [turn(1, trust=3, context=True), turn(2), turn(3, trust=0), turn(4, " ", trust=1)]
    assert levels(turns, 0) == [2, 0]
    assert levels(turns, 1) == [2]
    assert levels([], 0) == []


def test_a_reading_shows_nothing_that_is_less_trusted_than_its_level() -> None:
    turns = [turn(1, trust=0, context=True), turn(2), turn(3, trust=1), turn(4, trust=0), turn(5, "")]
    for level, numbers in ((2, [2]), (1, [2, 3]), (0, [1, 2, 3, 4])):
        assert [each.id.int for each in shown(turns, level)] == numbers
    assert shown(turns, 3) == []
    assert shown([turn(1, context=True)], 2) == []


def test_what_is_quoted_says_where_it_is_from_and_what_is_context() -> None:
    turns = [turn(1), turn(2, "x" * 2 * TURN_CHARACTERS, trust=1)]
    told = document(turns, 1, ["distilled/ann/drink"])
    assert told["names"] == ["ann/drink"]
    assert told["turns"][0] == {
        "turn": 1, "at": "Friday 2026-11-20 19:21 UTC", "from": "Ann (user)", "text": "a text", "context": True,
    }  # fmt: skip
    assert told["turns"][1]["from"] == "tool"
    assert len(told["turns"][1]["text"]) == TURN_CHARACTERS
    assert "context" not in told["turns"][1]
    json.dumps(told)


@pytest.mark.parametrize(
    ("about", "what", "made"),
    [
        ("Ann", "favourite drink", "distilled/ann/favourite-drink"),
        ("ANN ", "Favourite_Drink!", "distilled/ann/favourite-drink"),
        ("ann", "favourite-drink", "distilled/ann/favourite-drink"),
        ("../../x", "a/b", "distilled/x/a-b"),
        ("Zoë", "café", "distilled/zoë/café"),
        ("x" * 300, "y", f"distilled/{'x' * 60}/y"),
        ("?!", "y", None),
        ("x", " ", None),
    ],
)
def test_keys_are_the_same_however_they_are_written(about: str, what: str, made: str | None) -> None:
    assert key(about, what) == made


def test_a_fact_carries_what_it_comes_from() -> None:
    answer = Answer(facts=[found(2, 1, 2, fact=" Ann  drinks\ntea ", worth="high")])
    [fact] = taken(answer, [turn(1), turn(2)], 2)
    assert fact == {
        "key": "distilled/ann/drink", "text": "Ann drinks tea", "importance": 0.8, "trust": 2, "actor": "Ann",
        "at": "2026-11-20T19:22:00.000000+00:00", "entries": [str(UUID(int=1)), str(UUID(int=2))],
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        found(),
        found(0),
        found(3),
        found(1, 99),
        found(-1),
        found(1, worth="low"),
        found(1, fact=" "),
        found(1, fact="x" * 501),
        found(1, fact="NUL \0"),
        found(1, fact="half \ud800"),
        found(1, about="…"),
    ],
)
def test_what_cannot_be_kept_is_dropped_and_nothing_else(wrong: Found) -> None:
    assert keys(wrong, found(1, what="cup")) == ["distilled/ann/cup"]


def test_a_fact_of_context_alone_is_dropped_and_trust_is_that_of_the_level() -> None:
    """Whatever the model says: what it may have got from the web is as trusted as the web."""
    turns = [turn(1), turn(2, trust=0)]
    assert keys(found(1), turns=turns, level=0) == []
    [fact] = taken(Answer(facts=[found(1, 2)]), turns, 0)
    assert (fact["trust"], fact["actor"]) == (0, None)


def test_of_two_facts_under_one_key_the_later_stays() -> None:
    facts = [
        found(2, fact="now tea"),
        found(1, fact="once coffee"),
        found(1, what="cup"),
        found(1, what="Cup"),
    ]
    kept = taken(Answer(facts=facts), [turn(1), turn(2)], 2)
    assert [fact["text"] for fact in kept] == ["now tea", "Ann drinks tea"]


def test_facts_of_one_answer_are_bounded() -> None:
    assert len(keys(*(found(1, what=f"thing {n}") for n in range(3 * MOST)))) == MOST
