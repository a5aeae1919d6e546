"""A workflow as a picture: text for the terminal, Mermaid for documents, SVG for everything else.

The law: pure text out of a definition, and of the states of a run's steps where they are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby

from . import graph, svg
from .additions import Addition
from .overview import STATES, SYMBOLS, Box, Overview, overview
from .spec import WorkflowSpec

__all__ = ["draw", "mermaid", "text"]

_NAMED = 4  # parents that a line of text names
_WIDTH = 32  # columns for a name or an action

_COLOURS = {
    "failed": "fill:#fee2e2,stroke:#dc2626,color:#7f1d1d",
    "running": "fill:#dbeafe,stroke:#2563eb,color:#1e3a8a",
    "parked": "fill:#ede9fe,stroke:#7c3aed,color:#4c1d95",
    "ready": "fill:#cffafe,stroke:#0891b2,color:#164e63",
    "waiting": "fill:#f3f4f6,stroke:#9ca3af,color:#374151",
    "cancelled": "fill:#ffedd5,stroke:#ea580c,color:#7c2d12",
    "skipped": "fill:#f9fafb,stroke:#d1d5db,color:#6b7280,stroke-dasharray:4 3",
    "succeeded": "fill:#dcfce7,stroke:#16a34a,color:#14532d",
}


def text(spec: WorkflowSpec, states: Mapping[str, str] | None = None, added: Sequence[Addition] = ()) -> str:
    """The steps level by level, a line each: state, name, action, and the steps before it."""
    shown = overview(spec, states, added)
    depth = graph.depths({box.name: box.parents for box in shown.boxes})
    titles = {box.name: box.title for box in shown.boxes}
    by_level = sorted(shown.boxes, key=lambda box: depth[box.name])  # stable: the order inside a level stays
    names = min(_WIDTH, max(len(_name(box)) for box in by_level))
    actions = min(_WIDTH, max(len(box.action) for box in by_level))
    digits = len(str(1 + max(depth.values())))
    lines = [
        f"{spec.name} · {_count(len(spec.steps) + len(added), 'step')} in {_count(1 + max(depth.values()), 'level')}",
        "",
    ]
    for level, boxes in groupby(by_level, key=lambda box: depth[box.name]):
        for position, box in enumerate(boxes):
            number = str(level + 1) if position == 0 else ""
            symbol = f"{SYMBOLS[box.state]} " if box.state else ""
            line = f"{number:>{digits}}  {symbol}{_cut(_name(box)):<{names}}  {_cut(box.action):<{actions}}"
            lines.append(f"{line}  {_remarks(box, titles)}".rstrip())
    if shown.left_out:
        lines.append(f"… and {_count(shown.left_out, 'more step')}")
    if states:
        present = [state for state in STATES if any(box.states[state] for box in shown.boxes)]
        lines += ["", "   ".join(f"{SYMBOLS[state]} {state}" for state in present)]
    return "\n".join(lines) + "\n"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _name(box: Box) -> str:
    return box.title + ("[]" if box.is_map else "")


def _cut(name: str) -> str:
    """A long name without its middle: names that begin alike differ at their ends."""
    return name if len(name) <= _WIDTH else f"{name[:12]}…{name[13 - _WIDTH :]}"


def _remarks(box: Box, titles: Mapping[str, str]) -> str:
    found = []
    if box.parents:
        named = ", ".join(titles[parent] for parent in box.parents[:_NAMED])
        more = f" +{len(box.parents) - _NAMED}" if len(box.parents) > _NAMED else ""
        found.append(f"← {named}{more}")
    if box.detail and box.detail != "map":
        found.append(box.detail)
    if box.condition:
        found.append(f"if {box.condition}")
    return "  ".join([*found, *box.notes])


def mermaid(
    spec: WorkflowSpec, states: Mapping[str, str] | None = None, added: Sequence[Addition] = ()
) -> str:
    """A Mermaid flowchart: maps have double sides, steps with a condition are hexagons."""
    shown = overview(spec, states, added)
    ids = {box.name: f"s{number}" for number, box in enumerate(shown.boxes)}
    lines = ["flowchart TD"]
    for box in shown.boxes:
        left, right = ("[[", "]]") if box.is_map else ("{{", "}}") if box.condition else ("[", "]")
        lines.append(f'    {ids[box.name]}{left}"{_label(box)}"{right}')
    for box in shown.boxes:
        lines.extend(f"    {ids[parent]} --> {ids[box.name]}" for parent in box.parents)
    if shown.left_out:
        lines.append(f'    rest["… and {_count(shown.left_out, "more step")}"]')
    for state in STATES:
        members = [ids[box.name] for box in shown.boxes if box.state == state]
        if members:
            lines += [f"    classDef {state} {_COLOURS[state]}", f"    class {','.join(members)} {state}"]
    return "\n".join(lines) + "\n"


def _label(box: Box) -> str:
    rows = [f"<b>{_safe(box.title)}</b>", _safe(box.action), _safe(box.detail)]
    if box.condition:
        rows.append(f"if {_safe(box.condition)}")
    return "<br/>".join(row for row in rows if row)


def _safe(words: str) -> str:
    # Mermaid has its own entity marks; `#` would begin one, and a backtick a Markdown text.
    return escape(words.replace("#", "#35;"), quote=False).replace('"', "#quot;").replace("`", "#96;")


def draw(spec: WorkflowSpec, states: Mapping[str, str] | None = None, added: Sequence[Addition] = ()) -> str:
    """An SVG document, coloured by state, for light and dark backgrounds."""
    shown: Overview = overview(spec, states, added)
    return svg.document(spec, shown)
