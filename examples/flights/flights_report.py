"""Write the report.

The law: nothing is computed here but checksums of what the steps before handed in, and a file is replaced
in one move, so a second attempt leaves the same report and never half of one.
"""

from __future__ import annotations

from pathlib import Path

from flights_delays import LATE, Destination, Group, add
from flights_tables import Joined, Table
from pydantic import BaseModel

from trellis.workflows import Artifact, action


class Report(BaseModel):
    """What the run found, and where it wrote it."""

    markdown: str
    chart: str
    flights: int
    cancelled: int
    late_share: float
    departure_delay: float
    arrival_delay: float


@action(name="flights.report")
def report(
    folder: str,
    chart: Artifact,
    tables: list[Table],
    joined: Joined,
    airports: list[Group],
    carriers: list[Group],
    hours: list[Group],
    weather: list[Group],
    ages: list[Group],
    destinations: list[Destination],
) -> Report:
    """Write report.md and delays.png into the folder.

    Raises ValueError where a dimension does not add up to all flights.
    """
    for name, groups in (
        *(("airports", airports), ("carriers", carriers), ("hours", hours)),
        *(("weather", weather), ("ages", ages)),
    ):
        counted = sum(group.flights for group in groups)
        if counted != joined.rows:
            raise ValueError(f"the {name} add up to {counted:,} flights, the join has {joined.rows:,}")
    total = add(list(airports), "all flights")
    sections = [
        _head(total, tables, joined),
        _section("By airline", "Airline", carriers),
        _section("By scheduled hour of departure", "Hour", hours),
        _section("By weather at departure", "Weather", weather),
        _section("By age of the aircraft", "Age", ages),
        _section("By airport", "Airport", [*airports, total]),
        _destinations(destinations),
    ]
    target = Path(folder).absolute()
    target.mkdir(parents=True, exist_ok=True)
    picture = _replace(target / "delays.png", chart.read_bytes())
    markdown = _replace(target / "report.md", "\n".join(sections).encode())
    return Report(
        markdown=str(markdown),
        chart=str(picture),
        flights=total.flights,
        cancelled=total.cancelled,
        late_share=total.late_share,
        departure_delay=total.departure_delay,
        arrival_delay=total.arrival_delay,
    )


def _replace(path: Path, content: bytes) -> Path:
    draft = path.with_name(f".{path.name}.part")
    draft.write_bytes(content)
    return draft.replace(path)


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table: the first column to the left, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *rows]) + "\n"


def _minutes(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"  # noqa: RUF001


def _section(title: str, first: str, groups: list[Group]) -> str:
    head = [
        first,
        "Flights",
        "Cancelled",
        f"Late by {LATE} min or more",
        "Mean departure delay",
        "Mean arrival delay",
    ]
    rows = [
        [
            group.group,
            f"{group.flights:,}",
            f"{group.cancelled:,}",
            "–" if group.late_share is None else f"{group.late_share:.1%}",  # noqa: RUF001
            _minutes(group.departure_delay),
            _minutes(group.arrival_delay),
        ]
        for group in groups
    ]
    return f"## {title}\n\n{_table(head, rows)}"


def _head(total: Group, tables: list[Table], joined: Joined) -> str:
    rows = [
        [
            table.name,
            f"{table.rows:,}",
            ", ".join(f"{name} {table.nulls[name]:,}" for name in sorted(table.nulls)) or "none",
            str(table.attempt),
            f"{joined.unmatched[table.name]:,}" if table.name in joined.unmatched else "–",  # noqa: RUF001
        ]
        for table in tables
    ]
    inputs = _table(["Table", "Rows", "Nulls", "Attempts to load", "Flights without a match"], rows)
    return (
        "# Delays of flights from New York in 2013\n\n"
        f"{total.flights:,} flights were to leave Newark, Kennedy and LaGuardia; {total.cancelled:,} were "
        f"cancelled. Of the others {total.late_share:.1%} left {LATE} minutes late or more. The mean "
        f"delay was {_minutes(total.departure_delay)} minutes at departure and "
        f"{_minutes(total.arrival_delay)} minutes at arrival. Delays are in minutes; an early flight counts "
        "as negative.\n\n"
        "![Mean departure delay by hour, weather, airline and month](delays.png)\n\n"
        f"## Input\n\n{inputs}"
    )


def _destinations(ranking: list[Destination]) -> str:
    rows = [
        [f"{entry.code} {entry.name or ''}".strip(), f"{entry.arrived:,}", f"{entry.arrival_delay:.1f}"]
        for entry in ranking
    ]
    head = ["Destination", "Arrived", "Mean arrival delay"]
    note = "Among those with an arrival a day at least."
    return f"## The destinations with the longest delays\n\n{note}\n\n{_table(head, rows)}"
