"""Cases: what each seed stands for.

The law: a case is its seed. The order of kill points and faults is such that any number of cases in a row covers both
evenly. Cases that are played together are neighbours in that order, so that their faults differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

POINTS = (
    "before claim",
    "after claim",
    "before the effect",
    "after the effect",
    "before completion commit",
    "after completion commit",
    "inside tick",
    "inside map expansion",
    "inside append",
    "before the intent",
    "after the intent",
    "before parking",
    "after parking",
)
FAULTS = (
    "kill child",
    "kill worker",
    "stop past the lease",
    "postgres restart",
    "backends terminated",
    "commit unheard",
    "redis flushall",
    "redis restart",
    "duplicate delivery",
    "clock ahead",
    "clock behind",
    "disk full",
)
NEEDS = {  # so that each run passes the point
    "before the intent": ("once", "booked"),
    "after the intent": ("once", "booked"),
    "inside append": ("append",),
    "before parking": ("sleep", "child", "foreign"),
    "after parking": ("foreign", "child", "sleep"),
}
TOGETHER = 6  # cases that are played at once on a stage


class Case(NamedTuple):
    """One experiment."""

    seed: int
    point: str
    fault: str

    @property
    def name(self) -> str:
        """What `ONLY=` takes."""
        return f"{self.seed}:{self.point}:{self.fault}".replace(" ", "-")


Wave = tuple[Case, ...]


def cases(count: int, seed: int) -> Iterator[Case]:
    """The first so many cases of a seed: diagonals of the table, so that each prefix is spread over it."""
    rng = Random(seed)
    points, faults = list(POINTS), list(FAULTS)
    rng.shuffle(points)
    rng.shuffle(faults)
    for number in range(count):
        lap, place = divmod(number, len(faults))
        yield Case(seed * 1_000_000 + number, points[(place + lap) % len(points)], faults[place])


def named(text: str) -> Case:
    """The case of a name. Raises ValueError."""
    seed, point, fault = text.split(":")
    known = {each.replace(" ", "-"): each for each in (*POINTS, *FAULTS)}
    return Case(int(seed), known[point], known[fault])


def waves(drawn: Sequence[Case], together: int = TOGETHER) -> list[Wave]:
    """Cases in groups that are played at once: while one waits for the end of a lease, the others go on."""
    return [tuple(drawn[first : first + together]) for first in range(0, len(drawn), together)]


def named_wave(text: str) -> Wave:
    """The cases of some names with commas between them. Raises ValueError."""
    return tuple(named(each) for each in text.split(","))
