"""Votes: which of them count."""

from __future__ import annotations

from datetime import UTC, datetime

from trellis.workflows.records import Signal
from trellis.workflows.votes import NO, YES, count, digest

NOW = datetime.now(UTC)


def vote(by: str, how: str = YES, shown: str = "d", comment: str = "") -> Signal:
    return Signal(1, by, {"by": by, "comment": comment, "vote": how, "shown": shown}, NOW)


def test_only_votes_on_what_is_shown_by_those_who_may_count() -> None:
    """And each person once, with the first comment."""
    votes = [vote("ann", comment="1"), vote("ann", comment="2"), vote("bob", shown="old"), vote("eve")]
    assert count(votes, "d", ["ann", "bob"]).yes == {"ann": "1"}
    assert count(votes, "d", []).yes == {"ann": "1", "eve": ""}


def test_a_rejection_that_counts_decides() -> None:
    """One by somebody who may not, or of something else, does not."""
    assert count([vote("eve", NO), vote("ann", NO, "old")], "d", ["ann"]).no is None
    assert count([vote("ann"), vote("bob", NO, comment="why")], "d", []).no == ("bob", "why")


def test_the_digest_is_that_of_the_content() -> None:
    """Whatever the order of its keys."""
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
