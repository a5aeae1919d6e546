"""A year of flights from New York: from five tables to one report, as a durable workflow.

    load five tables → check each → join → summarise 12 months, 3 airports each → combine → chart → report
                                         └→ rank the destinations ────────────────────────────────────┘

The load of the weather fails at its first attempt, on purpose: the run shows the retry, and ends all
the same. Run it on a stack whose workers import this module:

    trellis run examples/flights/flights.py --wait
"""

from __future__ import annotations

from flights_chart import chart
from flights_delays import combine, destinations, summarise
from flights_report import report
from flights_tables import check, join, load

from trellis.workflows import Param, Retry, Workflow

# What each table has to be: its number of rows, its key, and the columns that may be empty.
TABLES: dict[str, tuple[int, list[str], list[str]]] = {
    "flights": (
        336_776,
        ["time_hour", "carrier", "flight"],
        ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "tailnum"],
    ),
    "weather": (
        26_115,
        ["origin", "time_hour"],
        ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "pressure"],
    ),
    "planes": (3_322, ["tailnum"], ["year", "speed"]),
    "airlines": (16, ["carrier"], []),
    "airports": (1_458, ["faa"], ["tzone"]),
}

workflow = Workflow(
    "flights",
    params={
        "folder": Param(
            str,
            default="examples/flights/out",
            description="Where report.md and delays.png go; a relative one counts from the worker's folder.",
        )
    },
    description="Delays of the 336,776 flights that were to leave New York in 2013.",
)

checked = {}
for name, (rows, key, nullable) in TABLES.items():
    loaded = workflow.step(
        f"load_{name}",
        load,
        table=name,
        fail_first=name == "weather",
        retry=Retry(3, base=0.5),
    )
    checked[name] = workflow.step(f"check_{name}", check, table=loaded, rows=rows, key=key, nullable=nullable)

joined = workflow.step("join", join, **checked)

summaries = workflow.map("delays", summarise, over=joined["parts"], concurrency=8, part=workflow.item)
by_airport, by_carrier, by_hour, by_weather, by_age = (
    workflow.step(f"by_{dimension}", combine, summaries=summaries, by=dimension)
    for dimension in ("airport", "carrier", "hour", "weather", "age")
)
ranking = workflow.step("destinations", destinations, parts=joined["parts"])
picture = workflow.step(
    "chart", chart, hours=by_hour, carriers=by_carrier, weather=by_weather, summaries=summaries
)
workflow.step(
    "report",
    report,
    folder=workflow.params.folder,
    chart=picture,
    tables=list(checked.values()),
    joined=joined,
    airports=by_airport,
    carriers=by_carrier,
    hours=by_hour,
    weather=by_weather,
    ages=by_age,
    destinations=ranking,
)
