"""When a schedule fires: cron expressions and intervals, in a time zone. Pure.

The law: a timetable knows no clock. Its ticks are moments in UTC, strictly one after the other, and the same for
everyone who computes them, jitter included; so whoever takes over from a killed beat finds the same ticks.

Daylight saving, for cron expressions (the rule of Debian's cron, kept by the library cronsim):

* minute and hour both fixed (`30 2 * * *`): a local time that is skipped in spring fires once, at the moment at
  which the clocks jump; one that comes twice in autumn fires once, the first time;
* minute or hour begins with `*` (`*/15 * * * *`, `0 * * * *`): it follows real time, so nothing of the skipped hour
  fires and everything of the doubled one does, both times.

Intervals are real time and know no time zone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from ..tasks.errors import DefinitionError
from ..tasks.hints import did_you_mean, listed

OVERLAPS = ("skip", "queue", "cancel", "allow")
MIN_EVERY = 1.0  # seconds: ticks of beat come about as often
MIN_CATCH_UP = 10.0  # seconds: a tick is never handled at the very moment at which it is due
_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MICROSECOND = timedelta(microseconds=1)
_FIELDS = 5


@dataclass(frozen=True, slots=True)
class Timetable:
    """The ticks of a schedule: of a cron expression, or every so many seconds since `anchor`."""

    cron: str | None
    every: float | None
    timezone: str
    anchor: datetime
    jitter: float = 0.0

    def after(self, moment: datetime) -> datetime | None:
        """The first tick after a moment; None where there is none within fifty years."""
        if self.every is not None:
            period = timedelta(seconds=self.every)
            return self.anchor + ((moment - self.anchor) // period + 1) * period
        assert self.cron is not None
        moves = CronSim(_ALIASES.get(self.cron, self.cron), moment.astimezone(_zone(self.timezone)))
        # Two fixed times of a skipped hour fall on one moment, and seen from the second of two doubled hours the
        # local time of a tick may lie ahead that has long been: only what is later is next.
        found = (tick.astimezone(UTC) for tick in moves)
        return next((tick for tick in found if tick > moment), None)

    def first(self, moment: datetime) -> datetime | None:
        """The first tick at a moment or after it."""
        return self.after(moment - _MICROSECOND)

    def between(self, begin: datetime, end: datetime) -> Iterator[datetime]:
        """The ticks from `begin` on and before `end`."""
        tick = self.first(begin)
        while tick is not None and tick < end:
            yield tick
            tick = self.after(tick)

    def due(self, name: str, tick: datetime) -> datetime:
        """When the tick of the schedule of this name is handled: at once, or up to `jitter` seconds later.

        The delay is drawn from the name and the tick, so that it is the same for all who ask.
        """
        if not self.jitter:
            return tick
        drawn = blake2b(f"{name}|{tick.astimezone(UTC).isoformat()}".encode(), digest_size=8).digest()
        return tick + timedelta(seconds=self.jitter * int.from_bytes(drawn) / 2**64)


class Due(NamedTuple):
    """What of a schedule is due."""

    ticks: list[datetime]  # to be handled now, the oldest first
    missed: datetime | None  # the first tick that is too old to be made up for; None where none is
    following: datetime | None  # the tick after them


def due(table: Timetable, name: str, tick: datetime, now: datetime, catch_up: float, limit: int) -> Due:
    """What is due of a schedule whose next tick is `tick`: at most `limit` ticks, none older than `catch_up` s."""
    horizon = now - timedelta(seconds=catch_up)
    missed, following = None, tick
    if table.due(name, tick) < horizon:
        missed, candidate = tick, table.first(max(tick, horizon - timedelta(seconds=table.jitter)))
        while candidate is not None and table.due(name, candidate) < horizon:
            candidate = table.after(candidate)
        if candidate is None:
            return Due([], missed, None)
        following = candidate
    ticks: list[datetime] = []
    while table.due(name, following) <= now and len(ticks) < limit:
        ticks.append(following)
        after = table.after(following)
        if after is None:
            return Due(ticks, missed, None)
        following = after
    return Due(ticks, missed, following)


class Choice(NamedTuple):
    """What the overlap policy makes of ticks."""

    start: list[datetime]
    queue: list[datetime]  # later, one after the other
    skip: list[datetime]


def choose(overlap: str, ticks: list[datetime], *, busy: bool) -> Choice:
    """What becomes of ticks that are due, where a run of the schedule is still open (`busy`) or not."""
    if overlap == "allow":
        return Choice(ticks, [], [])
    if overlap == "queue":
        return Choice([], ticks, [])
    if overlap == "cancel":  # of several at once the newest one would cancel the others
        return Choice(ticks[-1:], [], ticks[:-1])
    return Choice([], [], ticks) if busy else Choice(ticks[:1], [], ticks[1:])


def stamp(tick: datetime) -> str:
    """A tick in UTC as text: `2026-03-29T01:00:00Z`."""
    return tick.astimezone(UTC).isoformat().replace("+00:00", "Z")


def key_of(name: str, tick: datetime) -> str:
    """The key of the run that a tick starts: a tick that is handled twice starts one run."""
    return f"schedule:{name}:{stamp(tick)}"


def local(tick: datetime, timezone: str) -> datetime:
    """A tick in the time zone of its schedule."""
    return tick.astimezone(_zone(timezone))


def moment_of(text: str, timezone: str) -> datetime:
    """A moment as people write it, ISO 8601; without an offset it is one of the time zone. Raises ValueError."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo is not None else found.replace(tzinfo=_zone(timezone))


def timetable(name: str, cron: Any, every: Any, timezone: Any, jitter: Any, anchor: datetime) -> Timetable:
    """A checked timetable. Raises DefinitionError, which names the schedule, the field and the fix."""
    if (cron is None) == (every is None):
        raise wrong(name, 'give either cron="0 3 * * *" or every=seconds')
    if not _is_number(jitter) or not 0 <= jitter <= 86_400:
        raise wrong(name, f"jitter {jitter!r} is not a number of seconds from 0 to 86400")
    check_zone(name, timezone)
    if every is not None:
        seconds = every.total_seconds() if isinstance(every, timedelta) else every
        if not _is_number(seconds) or not MIN_EVERY <= seconds <= 3_155_760_000:
            raise wrong(
                name, f"every {every!r} is not a timedelta or a number of seconds from {MIN_EVERY:g} on"
            )
        return Timetable(None, float(seconds), timezone, anchor, float(jitter))
    if not isinstance(cron, str):
        raise wrong(name, f"cron {cron!r} is not a text such as '0 3 * * *'")
    text = " ".join(cron.split())
    found = Timetable(text, None, timezone, anchor, float(jitter))
    _check_cron(name, text)
    if found.after(anchor) is None:
        raise wrong(name, f"cron {text!r} never fires: there is no such date")
    return found


def wrong(name: str, problem: str) -> DefinitionError:
    """The refusal of a schedule."""
    return DefinitionError(f"schedule {name!r}: {problem}")


def check_overlap(name: str, overlap: Any) -> None:
    """Raises DefinitionError for a policy that does not exist."""
    if overlap not in OVERLAPS:
        raise wrong(
            name,
            f"overlap {overlap!r} is not one of {listed(OVERLAPS)}{did_you_mean(str(overlap), OVERLAPS)}",
        )


def check_catch_up(name: str, catch_up: Any) -> float:
    """The window in seconds. Raises DefinitionError for one that is too short to handle any tick in."""
    seconds = catch_up.total_seconds() if isinstance(catch_up, timedelta) else catch_up
    if not _is_number(seconds) or seconds < MIN_CATCH_UP:
        raise wrong(
            name, f"catch_up {catch_up!r} is not a timedelta or a number of seconds from {MIN_CATCH_UP:g} on"
        )
    return float(seconds)


def _check_cron(name: str, text: str) -> None:
    fields = _ALIASES.get(text, text).split()
    if len(fields) != _FIELDS:
        example = "minute hour day-of-month month day-of-week, for example '0 3 * * MON-FRI'"
        raise wrong(name, f"cron {text!r} has {len(fields)} fields instead of {_FIELDS}: {example}")
    try:
        CronSim(" ".join(fields), datetime(2000, 1, 1))
    except CronSimError as error:
        field = str(error).replace("Bad ", "")
        date = ", or there is no such date" if field == "day-of-month" else ""
        raise wrong(name, f"cron {text!r}: its {field} cannot be read{date}") from error


def check_zone(name: str, timezone: Any) -> None:
    """Refuse what is no time zone. Raises DefinitionError, which names the schedule."""
    try:
        _zone(timezone)
    except (KeyError, ValueError, TypeError, OSError, AttributeError) as error:
        close = did_you_mean(str(timezone), available_timezones())
        raise wrong(name, f"there is no time zone {timezone!r}, such as 'Europe/Berlin'{close}") from error


@lru_cache(maxsize=600)
def _zone(timezone: str) -> ZoneInfo:
    return ZoneInfo(timezone)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
