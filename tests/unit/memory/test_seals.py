"""Seals: what was done to a row or to a seal shows, whoever lacks the key."""

from __future__ import annotations

from datetime import date

import pytest

from trellis.memory.seals import (
    GENESIS,
    Kind,
    Row,
    Seal,
    check_gone,
    check_retired,
    check_rows,
    check_seal,
    retire,
    seal,
)

KEY, MONTH = b"a secret of the tests", date(2026, 1, 1)
ROWS = [Row(n, f"row {n}") for n in (3, 5, 4, 9)]


def sealed(rows: list[Row] = ROWS, seq: int = 1, previous: bytes = GENESIS) -> Seal:
    return seal("k", KEY, seq, MONTH, rows, ("7", 9), previous)


def kinds(now: list[Row]) -> list[tuple[Kind, int | None]]:
    return [(each.kind, each.row) for each in check_rows(sealed(), now, KEY)]


@pytest.mark.parametrize(
    ("now", "found"),
    [
        (ROWS, []),
        ([ROWS[0], Row(5, "other"), *ROWS[2:]], [(Kind.CHANGED, 5)]),
        ([*ROWS[:1], *ROWS[2:]], [(Kind.REMOVED, 5)]),
        ([*ROWS, Row(10, "new")], [(Kind.INSERTED, 10)]),
        ([*ROWS, ROWS[-1]], [(Kind.INSERTED, 9)]),
        ([ROWS[0], ROWS[0], *ROWS[1:]], [(Kind.INSERTED, 3)]),
        ([ROWS[1], ROWS[0], *ROWS[2:]], [(Kind.REORDERED, 5), (Kind.REORDERED, 3)]),
        ([], [(Kind.REMOVED, n) for n in (3, 5, 4, 9)]),
    ],
)
def test_each_row_that_is_not_as_it_was_sealed_is_named(
    now: list[Row], found: list[tuple[Kind, int | None]]
) -> None:
    assert kinds(now) == found


@pytest.mark.parametrize(
    "change",
    [{"last_id": 10}, {"last_tx": "8"}, {"ids": (3, 5, 4, 8)}, {"key": "j"}, {"month": date(2026, 2, 1)}],
)
def test_a_seal_covers_all_that_it_says(change: dict[str, object]) -> None:
    fields = {name: getattr(sealed(), name) for name in Seal.__dataclass_fields__}
    assert list(check_seal(sealed(), None, {"k": KEY})) == []
    assert list(check_seal(Seal(**{**fields, **change}), None, {"k": KEY, "j": KEY}))


def test_a_seal_continues_the_one_before_it() -> None:
    first = sealed()
    second = sealed([Row(11, "next")], 2, first.mac)
    assert list(check_seal(second, first, {"k": KEY})) == []
    assert list(check_seal(second, sealed([Row(3, "else")]), {"k": KEY}))
    assert "seal 1 is missing" in next(check_seal(second, None, {"k": KEY})).what


def test_a_month_is_retired_by_who_has_the_key_alone() -> None:
    gone = retire("k", KEY, MONTH, 4, 1)
    assert list(check_retired(gone, {"k": KEY})) == []
    assert list(check_retired(gone._replace(rows=5), {"k": KEY}))
    assert list(check_retired(gone._replace(last_seal=9), {"k": KEY}))
    assert list(check_retired(retire("k", b"guessed", MONTH, 4, 1), {"k": KEY}))
    assert list(check_retired(gone, {"j": KEY}))


def test_what_lies_in_the_place_of_a_retired_month_was_inserted() -> None:
    assert [each.kind for each in check_gone(sealed(), [Row(3, "row 3")])] == [Kind.INSERTED]
    assert list(check_gone(sealed(), [])) == []
