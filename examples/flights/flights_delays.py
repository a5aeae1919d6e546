"""Summarise the delays of each part, and combine the summaries.

The law: a summary holds counts and sums of whole minutes, nothing else, so combining parts is adding
integers: the totals are exact and do not depend on how the flights were cut or in which order the parts
were ready. Means are taken once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import polars as pl
from flights_tables import Part, read
from pydantic import BaseModel

from trellis.workflows import action

Dimension = Literal["airport", "carrier", "hour", "weather", "age"]

LATE = 15  # minutes; a departure this late, or later, counts as late, as in the US statistics

# In order of precedence: fog with rain counts as poor visibility.
WEATHER = ("visibility below 3 miles", "rain or snow", "wind from 20 mph", "fair", "no record")
AGES = ("up to 4 years", "5 to 9 years", "10 to 14 years", "15 to 19 years", "20 years and more", "unknown")


class Tally(BaseModel):
    """Counts and sums over a group of flights."""

    group: str
    flights: int
    departed: int
    late: int
    departure_minutes: int  # the sum of all departure delays; an early departure counts as negative
    arrived: int
    arrival_minutes: int


class Summary(BaseModel):
    """The delays of one month and airport."""

    month: int
    origin: str
    tallies: dict[Dimension, list[Tally]]


class Group(Tally):
    """A tally over all parts, with its means. They are null where no flight of the group flew."""

    cancelled: int
    late_share: float | None
    departure_delay: float | None
    arrival_delay: float | None


class Destination(BaseModel):
    """An airport that flights went to."""

    code: str
    name: str | None
    arrived: int
    arrival_delay: float


def _weather() -> pl.Expr:
    low, wet, windy, fair, missing = (pl.lit(name) for name in WEATHER)
    return (
        pl.when(pl.col("visib").is_null())
        .then(missing)
        .when(pl.col("visib") < 3)
        .then(low)
        .when(pl.col("precip") > 0)
        .then(wet)
        .when(pl.col("wind_speed") >= 20)
        .then(windy)
        .otherwise(fair)
    )


def _age() -> pl.Expr:
    return (2013 - pl.col("built")).cut([4, 9, 14, 19], labels=AGES[:-1]).cast(pl.String).fill_null(AGES[-1])


# Functions, so that no expression exists before the worker forks.
LABELS: dict[Dimension, Callable[[], pl.Expr]] = {
    "airport": lambda: pl.col("origin"),
    "carrier": lambda: pl.concat_str("carrier", "airline", separator=" "),
    "hour": lambda: pl.col("hour").cast(pl.String).str.zfill(2) + ":00",
    "weather": _weather,
    "age": _age,
}


def tally(frame: pl.DataFrame, by: Dimension) -> list[Tally]:
    """Count the flights of each group."""
    departure, arrival = pl.col("dep_delay"), pl.col("arr_delay")
    groups = (
        frame.group_by(LABELS[by]().alias("group"))
        .agg(
            flights=pl.len(),
            departed=departure.count(),
            late=(departure >= LATE).sum(),
            departure_minutes=departure.sum(),
            arrived=arrival.count(),
            arrival_minutes=arrival.sum(),
        )
        .sort("group")
    )
    return [Tally(**row) for row in groups.iter_rows(named=True)]


@action(name="flights.summarise")
def summarise(part: Part) -> Summary:
    """Tally the flights of one month and airport in every dimension."""
    frame = read(part.data)
    tallies = {by: tally(frame, by) for by in get_args(Dimension)}
    return Summary(month=part.month, origin=part.origin, tallies=tallies)


def add(tallies: list[Tally], group: str) -> Group:
    """Add tallies up, and take the means."""
    sums = {
        name: sum(getattr(tally, name) for tally in tallies) for name in Tally.model_fields if name != "group"
    }
    departed, arrived = sums["departed"], sums["arrived"]
    return Group(
        group=group,
        **sums,
        cancelled=sums["flights"] - departed,
        late_share=sums["late"] / departed if departed else None,
        departure_delay=sums["departure_minutes"] / departed if departed else None,
        arrival_delay=sums["arrival_minutes"] / arrived if arrived else None,
    )


@action(name="flights.combine")
def combine(summaries: list[Summary], by: Dimension) -> list[Group]:
    """Add the summaries of all parts up in one dimension; carriers come with the latest first."""
    tallies: dict[str, list[Tally]] = {}
    for summary in summaries:
        for entry in summary.tallies[by]:
            tallies.setdefault(entry.group, []).append(entry)
    groups = [add(entries, name) for name, entries in sorted(tallies.items())]
    if by == "carrier":
        groups.sort(key=lambda group: group.departure_delay or 0.0, reverse=True)
    elif by in ("weather", "age"):
        order = WEATHER if by == "weather" else AGES
        groups.sort(key=lambda group: order.index(group.group))
    return groups


@action(name="flights.destinations")
def destinations(parts: list[Part], least: int = 365, top: int = 10) -> list[Destination]:
    """The destinations with the longest mean arrival delay, among those with an arrival a day."""
    frame = pl.concat(read(part.data).select("dest", "destination", "arr_delay") for part in parts)
    ranking = (
        frame.group_by(code="dest", name="destination")
        .agg(arrived=pl.col("arr_delay").count(), minutes=pl.col("arr_delay").sum())
        .filter(pl.col("arrived") >= least)
        .with_columns(arrival_delay=pl.col("minutes") / pl.col("arrived"))
        .sort("arrival_delay", "code", descending=[True, False])
        .head(top)
    )
    return [Destination(**row) for row in ranking.drop("minutes").iter_rows(named=True)]
