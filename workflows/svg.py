"""The SVG drawing of a workflow.

The law: one self-contained document, no script, no font and no image from elsewhere; every box has a
tooltip; colours follow the reader's light or dark setting. Wide workflows run from left to right, long
ones from top to bottom.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import NamedTuple

from . import graph
from .layout import Layout, layout
from .overview import STATES, Box, Overview
from .spec import WorkflowSpec

_HEIGHT = 46.0
_MIN_WIDTH, _MAX_WIDTH = 110.0, 320.0
_GAP = 18.0  # between boxes of a layer
_STEP = 54.0  # between layers
_MARGIN = 24.0
_HEAD = 34.0
_BOLD, _SMALL = 13.0, 10.5  # the sizes of letters, in px
_WIDE, _NARROW = 0.8, 0.64  # of the size; a bold capital, any other letter

# Plain rules and no CSS variables, which converters to PNG and PDF do not know.
_STATE_COLOURS = {
    "failed": "#dc2626",
    "running": "#2563eb",
    "parked": "#7c3aed",
    "ready": "#0891b2",
    "waiting": "#9ca3af",
    "cancelled": "#ea580c",
    "skipped": "#cbd5e1",
    "succeeded": "#16a34a",
}
_STYLE = (
    'svg{font-family:system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}'
    ".paper{fill:#ffffff}.box{fill:#f9fafb;stroke:#d1d5db;stroke-width:1.2}.if .box{stroke-dasharray:5 3}"
    ".name{fill:#111827;font-size:13px;font-weight:600}.more{fill:#6b7280;font-size:11px}"
    ".head{fill:#111827;font-size:15px;font-weight:600}.way{fill:none;stroke:#9ca3af;stroke-width:1.3}"
    ".tip{fill:#9ca3af}.skipped{opacity:.6}"
    "@media (prefers-color-scheme:dark){.paper{fill:#0f172a}.box{fill:#1e293b;stroke:#475569}"
    ".name,.head{fill:#e5e7eb}.more{fill:#94a3b8}.way{stroke:#64748b}.tip{fill:#64748b}}"
    + "".join(
        f".{state} .mark{{fill:{colour}}}.{state} .box{{stroke:{colour}}}"
        for state, colour in _STATE_COLOURS.items()
    )
)


class _Spot(NamedTuple):
    x: float  # the left upper corner
    y: float
    width: float
    height: float


def document(spec: WorkflowSpec, shown: Overview) -> str:
    """The drawing of an overview."""
    boxes = {box.name: box for box in shown.boxes}
    parents = {name: box.parents for name, box in boxes.items()}
    levels = graph.levels(parents)
    sideways = max(len(level) for level in levels) > len(levels)
    widths = {name: _width(box) for name, box in boxes.items()}
    sizes = dict.fromkeys(boxes, _HEIGHT) if sideways else widths
    placed = layout(parents, sizes, _GAP)
    spots = _spots(placed, widths, sideways)
    right = max(spot.x + spot.width for spot in spots.values())
    bottom = max(spot.y + spot.height for spot in spots.values())
    present = [state for state in STATES if any(box.states[state] for box in shown.boxes)]
    title = f"{spec.name} · {len(spec.steps):,} step{'' if len(spec.steps) == 1 else 's'}"
    if shown.left_out:
        title += f", {shown.left_out:,} of them not shown"
    width = max(right + _MARGIN, _MARGIN * 2 + len(title) * 8.6, _MARGIN * 2 + 92.0 * len(present))
    height = bottom + _MARGIN + (30 if present else 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>',
        f'<rect class="paper" width="{width:.0f}" height="{height:.0f}"/>',
        f'<text class="head" x="{_MARGIN:.0f}" y="{_MARGIN + 4:.0f}">{escape(title)}</text>',
    ]
    parts += [_way(route, spots, sideways) for route in placed.routes.values()]
    parts += [_drawn(box, spots[name]) for name, box in boxes.items()]
    parts += [_legend(state, number, height) for number, state in enumerate(present)]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _width(box: Box) -> float:
    words = max(_length(box.title, _BOLD), _length(_second(box), _SMALL))
    return min(_MAX_WIDTH, max(_MIN_WIDTH, words + 30))


def _length(words: str, size: float) -> float:
    """How wide words are, in wide letters: no font is at hand here, and the reader's is not known."""
    return size * sum(_WIDE if letter.isupper() or letter in "mwMW_…" else _NARROW for letter in words)


def _second(box: Box) -> str:
    return f"{box.action} · {box.detail}" if box.detail else box.action


def _spots(placed: Layout, widths: Mapping[str, float], sideways: bool) -> dict[str, _Spot]:
    """Every box's and bend's place on the paper."""
    spots: dict[str, _Spot] = {}
    along = _MARGIN + (0.0 if sideways else _HEAD)
    for layer in placed.layers:
        thick = max((widths.get(name, 0.0) for name in layer), default=0.0) if sideways else _HEIGHT
        for name in layer:
            width = widths.get(name, thick if sideways else 0.0)
            height = _HEIGHT if name in widths else (0.0 if sideways else _HEIGHT)
            across = placed.centre[name]
            if sideways:
                spots[name] = _Spot(along, _MARGIN + _HEAD + across - height / 2, width, height)
            else:
                spots[name] = _Spot(_MARGIN + across - width / 2, along, width, height)
        along += thick + _STEP
    return spots


def _way(route: list[str], spots: Mapping[str, _Spot], sideways: bool) -> str:
    """An edge as smooth curves from layer to layer, straight through its bends."""
    x, y = _end(spots[route[0]], sideways)
    path = f"M{x:.1f} {y:.1f}"
    for name in route[1:]:
        to_x, to_y = _start(spots[name], sideways)
        if sideways:
            half = (x + to_x) / 2
            path += f"C{half:.1f} {y:.1f} {half:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"
        else:
            half = (y + to_y) / 2
            path += f"C{x:.1f} {half:.1f} {to_x:.1f} {half:.1f} {to_x:.1f} {to_y:.1f}"
        x, y = to_x, to_y
        if name != route[-1]:
            x, y = _end(spots[name], sideways)
            path += f"L{x:.1f} {y:.1f}"
    return f'<path class="way" d="{path}" marker-end="url(#tip)"/>'


def _start(spot: _Spot, sideways: bool) -> tuple[float, float]:
    return (spot.x, spot.y + spot.height / 2) if sideways else (spot.x + spot.width / 2, spot.y)


def _end(spot: _Spot, sideways: bool) -> tuple[float, float]:
    if sideways:
        return spot.x + spot.width, spot.y + spot.height / 2
    return spot.x + spot.width / 2, spot.y + spot.height


def _drawn(box: Box, spot: _Spot) -> str:
    x, y, width, height = spot
    classes = " ".join(filter(None, ["step", box.state or "", "if" if box.condition else ""]))
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="7"'
    behind = ""
    if box.is_map or len(box.steps) > 1:  # a pile of sheets
        behind = "".join(
            f'<rect class="box" x="{x + shift:.1f}" y="{y + shift:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" rx="7"/>'
            for shift in (6, 3)
        )
    mark = f'<rect class="mark" x="{x:.1f}" y="{y + 9:.1f}" width="4" height="{height - 18:.1f}" rx="2"/>'
    room = width - 24
    return (
        f'<g class="{classes}"><title>{escape(_tooltip(box))}</title>{behind}<rect class="box" {shape}/>'
        f"{mark if box.state else ''}"
        f"{_words('name', _cut(box.title, room, _BOLD), x + 14, y + 19)}"
        f"{_words('more', _cut(_second(box), room, _SMALL), x + 14, y + 35)}</g>"
    )


def _words(kind: str, words: str, x: float, y: float) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def _cut(words: str, room: float, size: float) -> str:
    """Words shortened in their middle: names that begin alike differ at their ends."""
    kept = len(words)
    shown = words
    while kept > 3 and _length(shown, size) > room:
        kept -= 1
        head = kept * 2 // 5
        shown = f"{words[:head]}…{words[len(words) - kept + head :]}"
    return shown


def _tooltip(box: Box) -> str:
    rows = [box.title, f"action: {box.action}"]
    if box.states:
        rows.append(", ".join(f"{state}: {box.states[state]}" for state in STATES if box.states[state]))
    if len(box.steps) > 1:
        rows.append(f"{len(box.steps):,} steps")
    elif box.is_map:
        rows.append("one run for each item of a list")
    if box.condition:
        rows.append(f"if {box.condition}")
    return "\n".join([*rows, *box.notes])


def _legend(state: str, number: int, height: float) -> str:
    x, y = _MARGIN + number * 92.0, height - 24
    return (
        f'<g class="{state}"><rect class="mark" x="{x:.1f}" y="{y:.1f}" width="10" height="10" rx="2"/>'
        f'<text class="more" x="{x + 15:.1f}" y="{y + 9:.1f}">{state}</text></g>'
    )
