"""The results as JSON and as tables.

The law: a ratio is the median rate of the engine over the median rate of the native canvas, both from the same
run of the benchmark; a goal that is missed is shown as missed, with where the time went.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measure import Samples
from rich.console import Console
from rich.table import Table
from shapes import Shape

SCALING_GOAL = 0.8
MAKESPAN_GOAL = 1.10


def ratios(compared: dict[str, dict[str, Samples]], yardstick: str) -> dict[str, dict[str, float]]:
    """Engine over canvas, by shape, bundling on and off."""
    return {
        shape: {side: round(sides[side].rate / sides[yardstick].rate, 3) for side in ("on", "off")}
        for shape, sides in compared.items()
    }


def raw(compared: dict[str, dict[str, Samples]]) -> dict[str, Any]:
    """Everything that the ratios come from."""
    return {
        shape: {
            side: {
                "steps_per_s": round(samples.rate, 1),
                "seconds": [round(seconds, 4) for seconds in samples.seconds],
                "cpu_ms_per_step": samples.cpu_ms_per_step(),
            }
            for side, samples in sides.items()
        }
        for shape, sides in compared.items()
    }


def machine() -> dict[str, Any]:
    """What it ran on."""
    return {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: version(name) for name in ("celery", "kombu", "redis", "psycopg")},
    }


def write(results: dict[str, Any], path: Path) -> None:
    """Replace the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(results, indent=2) + "\n")
    new.replace(path)


def show(results: dict[str, Any], shapes: Sequence[Shape], console: Console) -> None:
    """All tables."""
    if results.get("ratio"):
        console.print(_comparison(results, shapes))
        console.print(_profile(results))
    console.print(_figures(results))
    if results.get("dags"):
        console.print(_makespans(results["dags"]))


def _comparison(results: dict[str, Any], shapes: Sequence[Shape]) -> Table:
    table = Table(
        title="Steps per second, and ratios to the native canvas",
        caption="lean: the same canvas waited for with get(propagate=False), and the ratios to that",
        title_justify="left",
        caption_justify="left",
    )
    columns = ("workload", "native", "on", "ratio", "goal", "off", "ratio", "goal", "lean", "on", "off")
    for column in columns:
        table.add_column(column, justify="left" if column == "workload" else "right")
    for shape in shapes:
        if shape.name not in results["ratio"]:
            continue
        rates, ratio = results["raw"][shape.name], results["ratio"][shape.name]
        row = [shape.name, f"{rates['native']['steps_per_s']:,.0f}"]
        for side, goal in (("on", shape.goal_on), ("off", shape.goal_off)):
            row += [f"{rates[side]['steps_per_s']:,.0f}", *_judged(ratio[side], goal, above=True)]
        lean = results["ratio_lean"][shape.name]
        row += [f"{rates['native_lean']['steps_per_s']:,.0f}", f"{lean['on']:.3g}", f"{lean['off']:.3g}"]
        table.add_row(*row)
    return table


def _profile(results: dict[str, Any]) -> Table:
    """Where the time goes."""
    parts = ("client", "parent", "children", "postgres", "redis", "beat")
    table = Table(
        title="CPU milliseconds per step (the wall time shares the processors)", title_justify="left"
    )
    for column in ("workload", "side", "wall", *parts):
        table.add_column(column, justify="left" if column in ("workload", "side") else "right")
    for shape, sides in results["raw"].items():
        for side, figures in sides.items():
            spent = figures["cpu_ms_per_step"]
            cells = [f"{spent[part]:.3f}" if part in spent else "-" for part in parts]
            table.add_row(shape, side, f"{1000 / figures['steps_per_s']:.3f}", *cells)
    return table


def _figures(results: dict[str, Any]) -> Table:
    table = Table(title="Other figures", title_justify="left")
    for column in ("figure", "value", "goal"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    if "scaling" in results:
        for name, pair in results["scaling"].items():
            value = f"{pair['5000']:,.0f} / {pair['50000']:,.0f}"
            table.add_row(f"steps/s at 5,000 / 50,000 steps, {name}", value, "")
        judged = _judged(results["scaling_50000_over_5000"], SCALING_GOAL, above=True)
        table.add_row("steps/s at 50,000 over those at 5,000, the lower one", *judged)
    for key, name in (("three_step_ms", "engine"), ("three_step_native_ms", "native canvas")):
        if key in results:
            value = f"{results[key]['p50']:.1f} / {results[key]['p95']:.1f} ms"
            table.add_row(f"a run of 3 steps, {name}, p50 / p95", value, "")
    for name, value in results.get("space", {}).items():
        table.add_row(f"space.{name}", f"{value:,}", "")
    for side, value in results.get("redis_bytes_per_step", {}).items():
        table.add_row(f"bytes in Redis per waiting step, {side}", f"{value:,}", "")
    table.add_row(
        "processor used by idle groups while another is measured", f"{results['idle_cpu_percent']} %", ""
    )
    table.add_row("load of the machine before / after", " / ".join(map(str, results["load"])), "")
    return table


def _makespans(lines: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Recorded workflows: seconds, real and ideal", title_justify="left")
    for column in ("workflow", "tasks", "makespan", "fifo", "÷ fifo", "goal", "best", "÷ best"):
        table.add_column(column, justify="left" if column == "workflow" else "right")
    for line in lines:
        judged = _judged(_over(line, "fifo"), MAKESPAN_GOAL, above=False)
        table.add_row(
            line["name"], str(line["tasks"]), f"{line['makespan']:.2f}", f"{line['fifo']:.2f}", *judged,
            f"{line['best']:.2f}", f"{_over(line, 'best'):.3f}",
        )  # fmt: skip
    return table


def _over(line: dict[str, Any], ideal: str) -> float:
    """The makespan over an ideal one, which is 0 where all runtimes are."""
    return line["makespan"] / line[ideal] if line[ideal] else float("inf")


def _judged(value: float, goal: float | None, *, above: bool) -> tuple[str, str]:
    """A figure and its goal, marked where it is missed."""
    if goal is None:
        return f"{value:.3g}", "-"
    reached = value >= goal if above else value <= goal
    colour = "green" if reached else "red"
    return f"[{colour}]{value:.3g}[/]" if above else f"[{colour}]{value:.3f}[/]", (
        f"{'≥' if above else '≤'} {goal:g}" + ("" if reached else " missed")
    )
