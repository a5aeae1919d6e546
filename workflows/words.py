"""How the command line says times, counts, states and errors.

The law: pure; one way to say each thing, short enough for a table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime

from rich.text import Text

from .records import Json
from .states import StepState
from .summaries import Incident

STYLES = {
    "succeeded": "green",
    "failed": "bold red",
    "running": "cyan",
    "ready": "blue",
    "pending": "blue",
    "parked": "magenta",
    "paused": "magenta",
    "waiting": "dim",
    "skipped": "yellow",
    "cancelled": "yellow",
}
_ORDER = ("succeeded", "failed", "running", "parked", "ready", "waiting", "skipped", "cancelled")


def duration(seconds: float) -> str:
    """A time span in three digits or so."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def plural(number: int, thing: str, things: str = "") -> str:
    """`1 step`, `2,000 steps`, `2 retries`."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def at_most(number: int, limit: int, thing: str) -> str:
    """`12 runs`, and `more than 1,000 runs` where it was counted no further."""
    return plural(number, thing) if number <= limit else f"more than {plural(limit, thing)}"


def moment(at: datetime | None) -> str:
    """A time in the time zone of whoever reads."""
    return "-" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def one_line(text: str, limit: int) -> str:
    """A text without line breaks, cut at a limit."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else f"{flat[: limit - 1]}…"


def counted(states: Mapping[StepState, int]) -> Text:
    """`31 succeeded, 2 running`."""
    parts = [
        Text(f"{states[StepState(state)]:,} {state}", STYLES[state])
        for state in _ORDER
        if states.get(StepState(state))
    ]
    return Text(", ").join(parts)


def cause(error: Mapping[str, Json] | None) -> str:
    """`ConnectionError: no route to host`."""
    if not error:
        return ""
    return f"{error.get('type', 'Error')}: {error.get('message', '')}"


def incident_line(incident: Incident) -> Text:
    """What happened, in one line; what matters most stands where no terminal cuts it off."""
    line = Text.assemble((incident.at.astimezone().strftime("%H:%M:%S "), "dim"))
    if incident.step is None:
        line.append(f"the run {incident.kind.partition('.')[2]}", "bold")
    else:
        line.append(incident.step, "bold").append(_told(incident))
    if incident.kind == "step.retry":
        line.append(f", next in {duration(float(incident.detail.get('delay') or 0.0))}", "yellow")
    if incident.detail.get("type"):
        line.append(f": {one_line(cause(incident.detail), 300)}")
    return line


def _told(incident: Incident) -> str:
    if incident.kind == "step.appended":
        return f" appended {plural(int(incident.detail.get('steps') or 0), 'step')}"
    return f" attempt {incident.attempt} failed"


def compact(value: Json) -> str:
    """JSON in one line, for people."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
