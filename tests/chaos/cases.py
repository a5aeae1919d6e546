"""Cases: what each seed stands for.

The law: a case is its seed. The order of kill points and faults is such that any number of cases in a row covers both
evenly. Cases that are played together are neighbours in that order, so that their faults differ.
"""

from __future__ import annotations

import itertools
import math
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
    "before a joint commit",
    "after a joint commit",
    "inside tick",
    "inside map expansion",
    "inside append",
    "before the intent",
    "after the intent",
    "before parking",
    "after parking",
    "inside a schedule's tick",
    "inside a foreign task",
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
    "kill beat",
)
# A task of another application commits nothing of ours, so there is no commit whose answer it could miss.
NONSENSE = {("inside a foreign task", "commit unheard")}
NEEDS = {  # so that each run passes the point
    "before a joint commit": ("booked",),
    "after a joint commit": ("booked",),
    "before the intent": ("once",),
    "after the intent": ("once",),
    "inside append": ("append",),
    "before parking": ("sleep", "child", "foreign"),
    "after parking": ("foreign", "child", "sleep"),
    "inside a foreign task": ("foreign",),
}
TOGETHER = 8  # cases that are played at once on a stage


class Case(NamedTuple):
    """One experiment."""

    seed: int
    point: str
    fault: str

    @property
    def name(self) -> str:
        """What `ONLY=` takes."""
        return f"{self.seed}:{_plain(self.point)}:{_plain(self.fault)}"


Wave = tuple[Case, ...]


def cases(count: int, seed: int) -> Iterator[Case]:
    """The first so many cases of a seed: along diagonals of the table, so that each prefix is spread over it."""
    rng = Random(seed)
    points, faults = list(POINTS), list(FAULTS)
    rng.shuffle(points)
    rng.shuffle(faults)
    number = 0
    round_ = math.lcm(len(points), len(faults))  # turns after which the same pairs would come again
    for turn in itertools.count():
        pair = points[(turn + turn // round_) % len(points)], faults[turn % len(faults)]
        if number == count:
            return
        if pair not in NONSENSE:
            yield Case(seed * 1_000_000 + number, *pair)
            number += 1


def named(text: str) -> Case:
    """The case of a name. Raises ValueError."""
    seed, point, fault = text.split(":")
    known = {_plain(each): each for each in (*POINTS, *FAULTS)}
    return Case(int(seed), known[point], known[fault])


def _plain(name: str) -> str:
    """A name that a shell leaves alone."""
    return name.replace(" ", "-").replace("'", "")


def waves(drawn: Sequence[Case], together: int = TOGETHER) -> list[Wave]:
    """Cases in groups that are played at once: while one waits for the end of a lease, the others go on."""
    return [tuple(drawn[first : first + together]) for first in range(0, len(drawn), together)]


def named_wave(text: str) -> Wave:
    """The cases of some names with commas between them. Raises ValueError."""
    return tuple(named(each) for each in text.split(","))
