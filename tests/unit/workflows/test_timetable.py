"""When schedules fire: real dates at which clocks jump, and laws over random ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trellis.tasks.errors import DefinitionError
from trellis.workflows import timetable
from trellis.workflows.timetable import Timetable, choose, due

START = datetime(2026, 1, 1, tzinfo=UTC)
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Africa/Casablanca",
)


def cron(expression: str, zone: str = "UTC", jitter: float = 0.0) -> Timetable:
    return timetable.timetable("s", expression, None, zone, jitter, START)


def every(seconds: float, jitter: float = 0.0) -> Timetable:
    return timetable.timetable("s", None, seconds, "UTC", jitter, START)


def fires(expression: str, zone: str, day: str, days: int = 1) -> list[str]:
    """The ticks of a local day, in local time with its offset."""
    begin = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    found = cron(expression, zone).between(begin, begin + timedelta(days=days))
    return [timetable.local(tick, zone).strftime("%d %H:%M%z") for tick in found]


@pytest.mark.parametrize(
    ("expression", "zone", "day", "expected"),
    [
        # Berlin, 29 March 2026: 02:00 becomes 03:00.
        ("30 2 * * *", "Europe/Berlin", "2026-03-29", ["29 03:00+0200"]),
        ("0,30 2 * * *", "Europe/Berlin", "2026-03-29", ["29 03:00+0200"]),
        ("30 2,3 * * *", "Europe/Berlin", "2026-03-29", ["29 03:00+0200", "29 03:30+0200"]),
        ("30 1 * * *", "Europe/Berlin", "2026-03-29", ["29 01:30+0100"]),
        ("0 1-4 * * *", "Europe/Berlin", "2026-03-29", ["29 01:00+0100", "29 03:00+0200", "29 04:00+0200"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-03-29", []),
        ("30 * 29 3 *", "Europe/Berlin", "2026-03-29", ["29 00:30+0100", "29 01:30+0100", "29 03:30+0200"]),
        # Berlin, 25 October 2026: 03:00 becomes 02:00 again.
        ("30 2 * * *", "Europe/Berlin", "2026-10-25", ["25 02:30+0200"]),
        ("0 1-3 * * *", "Europe/Berlin", "2026-10-25", ["25 01:00+0200", "25 02:00+0200", "25 03:00+0100"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-10-25",
         ["25 02:00+0200", "25 02:30+0200", "25 02:00+0100", "25 02:30+0100"]),
        # New York, 8 March and 1 November 2026.
        ("30 2 * * *", "America/New_York", "2026-03-08", ["08 03:00-0400"]),
        ("30 1 * * *", "America/New_York", "2026-11-01", ["01 01:30-0400"]),
        # Lord Howe moves by half an hour: 02:00 becomes 02:30 on 4 October 2026.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-04", ["04 02:30+1100"]),
        # The hour at midnight is skipped in Beirut on 29 March 2026.
        ("0 0 * * *", "Asia/Beirut", "2026-03-29", ["29 01:00+0300"]),
        # No daylight saving there.
        ("30 2 * * *", "UTC", "2026-03-29", ["29 02:30+0000"]),
    ],
)  # fmt: skip
def test_clocks_that_jump_follow_the_rule(expression: str, zone: str, day: str, expected: list[str]) -> None:
    """Fixed times once, at the jump or the first time; times that begin with a star by real time."""
    found = fires(expression, zone, day)
    assert found[: len(expected)] == expected
    if not expression.startswith("30 *"):
        assert len(found) == len(expected)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("expression", ["30 2 * * *", "15 1,2,3 * * *", "0 0 * * *", "59 23 * * *"])
def test_a_daily_time_fires_once_on_each_day_of_three_years(zone: str, expression: str) -> None:
    """Whatever the clocks do: as many ticks as days and fixed times, one after the other."""
    begin = datetime(2025, 1, 1, tzinfo=ZoneInfo(zone))
    end = datetime(2028, 1, 1, tzinfo=ZoneInfo(zone))
    ticks = list(cron(expression, zone).between(begin, end))
    assert ticks == sorted(set(ticks))
    times = len(expression.split()[1].split(","))
    days = (end - begin).days
    # In a skipped hour two of the three times fall on the same moment only where both lie in it; none do here.
    assert len(ticks) == days * times


moments = st.datetimes(datetime(2024, 1, 1), datetime(2028, 1, 1)).map(lambda each: each.replace(tzinfo=UTC))
expressions = st.builds(
    lambda minute, hour, days: f"{minute} {hour} * * {days}",
    st.sampled_from(["0", "30", "*/15", "7,37", "10-12"]),
    st.sampled_from(["*", "2", "1-3", "*/6", "0"]),
    st.sampled_from(["*", "MON-FRI", "SUN"]),
)


@given(expressions, st.sampled_from(ZONES), moments)
def test_the_next_tick_is_later_and_nothing_lies_between(
    expression: str, zone: str, moment: datetime
) -> None:
    """`after` moves on strictly, and from any moment before its answer the answer is the same."""
    table = cron(expression, zone)
    tick = table.after(moment)
    assert tick is not None
    assert tick > moment
    assert table.first(tick) == tick
    middle = moment + (tick - moment) / 2
    assert table.after(middle) == tick


@given(st.floats(1, 1e6), moments)
def test_an_interval_counts_from_its_anchor(seconds: float, moment: datetime) -> None:
    """Ticks are the anchor plus whole periods, whenever one asks, before the anchor too."""
    table = every(seconds)
    tick = table.after(moment)
    assert tick is not None
    period = timedelta(seconds=seconds)
    assert moment < tick <= moment + period
    assert (tick - START) % period == timedelta(0)


@given(moments, st.floats(0.1, 3600))
def test_jitter_is_bounded_and_the_same_for_all(tick: datetime, jitter: float) -> None:
    """Another process draws the same delay; another schedule another one."""
    table = every(60, jitter)
    assert tick <= table.due("a", tick) <= tick + timedelta(seconds=jitter)
    assert table.due("a", tick) == every(60, jitter).due("a", tick.astimezone(ZoneInfo("Asia/Tokyo")))
    assert table.due("a", tick) != table.due("b", tick)
    assert every(60).due("a", tick) == tick


@given(st.integers(0, 5000), st.floats(10, 2000), st.floats(0, 6), st.integers(1, 40))
def test_what_is_due_is_every_tick_of_the_window_and_no_other(
    late: int, window: float, jitter: float, limit: int
) -> None:
    """Called again and again until nothing is due, it gives each tick between the window's edge and now once."""
    table = every(7, jitter)
    first = START + timedelta(seconds=7)
    now = first + timedelta(seconds=late)
    found: list[datetime] = []
    tick: datetime | None = first
    missed = None
    while True:
        assert tick is not None
        part = due(table, "s", tick, now, window, limit)
        missed = missed or part.missed
        found += part.ticks
        tick = part.following
        if len(part.ticks) < limit:
            break
    every_tick = [first + timedelta(seconds=7 * n) for n in range(late // 7 + 20)]
    horizon = now - timedelta(seconds=window)
    young = [each for each in every_tick if table.due("s", each) >= horizon]
    expected = []
    for each in young:
        if table.due("s", each) > now:
            break
        expected.append(each)
    assert found == expected
    assert (missed is not None) == (table.due("s", first) < horizon)


@pytest.mark.parametrize(
    ("overlap", "busy", "expected"),
    [
        ("skip", True, ("", "", "abc")),
        ("skip", False, ("a", "", "bc")),
        ("queue", True, ("", "abc", "")),
        ("queue", False, ("", "abc", "")),
        ("cancel", True, ("c", "", "ab")),
        ("cancel", False, ("c", "", "ab")),
        ("allow", True, ("abc", "", "")),
        ("allow", False, ("abc", "", "")),
    ],
)
def test_the_overlap_policy_decides_about_every_tick(
    overlap: str, busy: bool, expected: tuple[str, str, str]
) -> None:
    """Each tick is started, queued or skipped, and none is lost."""
    ticks = {name: START + timedelta(seconds=n) for n, name in enumerate("abc")}
    choice = choose(overlap, list(ticks.values()), busy=busy)
    names = {tick: name for name, tick in ticks.items()}
    assert tuple("".join(names[tick] for tick in part) for part in choice) == expected


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"cron": None}, "give either cron="),
        ({"every": 5}, "give either cron="),
        ({"cron": "0 3 * *"}, "has 4 fields instead of 5"),
        ({"cron": "* 0 3 * * *"}, "has 6 fields instead of 5"),
        ({"cron": "0 25 * * *"}, "its hour cannot be read"),
        ({"cron": "0 0 31 2 *"}, "its day-of-month cannot be read, or there is no such date"),
        ({"cron": 5}, "is not a text such as"),
        ({"timezone": "Europe/Berln"}, "did you mean 'Europe/Berlin'"),
        ({"timezone": None}, "there is no time zone None"),
        ({"timezone": "../../etc/passwd"}, "there is no time zone"),
        ({"jitter": -1}, "jitter -1 is not a number of seconds"),
        ({"jitter": float("nan")}, "jitter nan"),
        ({"cron": None, "every": 0.5}, "every 0.5 is not a timedelta"),
        ({"cron": None, "every": True}, "every True"),
        ({"cron": None, "every": float("inf")}, "every inf"),
    ],
)
def test_what_is_wrong_is_refused_with_the_field_and_the_fix(wrong: dict[str, object], told: str) -> None:
    """At definition, by name."""
    given: dict[str, object] = {"cron": "0 3 * * *", "every": None, "timezone": "UTC", "jitter": 0} | wrong
    with pytest.raises(DefinitionError, match=r"schedule 'nightly': ") as caught:
        timetable.timetable("nightly", anchor=START, **given)
    assert told in str(caught.value)


def test_a_window_too_short_for_any_tick_is_refused() -> None:
    """With a window of nothing a tick would be too old as soon as it is due."""
    with pytest.raises(DefinitionError, match="catch_up 1 "):
        timetable.check_catch_up("nightly", 1)
    assert timetable.check_catch_up("nightly", timedelta(minutes=1)) == 60.0
