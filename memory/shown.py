"""How the command line shows memories.

The law: pure. A table is as wide as its reader's terminal, and what matters most stands where nothing cuts it off.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from rich.table import Table
from rich.text import Text

from .entries import Entry, Hit
from .stats import Stats

_TRUST = ("none", "little", "usual", "operator")
_TRUST_STYLES = ("red", "yellow", "", "green")
# The parts of a score, as a reader knows them.
_PARTS = (
    ("text", "words"),
    ("dense", "meaning"),
    ("recency", "recent"),
    ("importance", "import."),
    ("trust", "trust"),
)


def dumps(document: Any) -> str:
    """JSON for programs."""
    return json.dumps(document, ensure_ascii=False, indent=2, default=_plain)


def entry_json(entry: Entry) -> dict[str, Any]:
    """An entry with all its fields."""
    return entry._asdict()


def hit_json(hit: Hit) -> dict[str, Any]:
    """A hit: its entry, its score and the parts of it."""
    return {"score": hit.score, "parts": dict(hit.parts), **entry_json(hit.entry)}


def hits(found: Sequence[Hit]) -> Table:
    """Hits with the parts of their scores; a rank says the place in the list of words or of meaning."""
    parts = [(name, title) for name, title in _PARTS if any(name in hit.parts for hit in found)]
    table = _table()
    table.add_column("score", justify="right", style="bold", no_wrap=True)
    for _, title in parts:
        table.add_column(title, justify="right", no_wrap=True, style="dim")
    for title in ("key", "text", "source", "when"):
        table.add_column(
            title, overflow="fold" if title in ("key", "text") else "ellipsis", no_wrap=title == "when"
        )
    for hit in found:
        cells = [f"{hit.score:.4f}", *(_part(hit.parts, name) for name, _ in parts)]
        table.add_row(
            *cells, _key(hit.entry), _line(hit.entry.text, 200), _source(hit.entry), _when(hit.entry.at)
        )
    return table


def entries(found: Iterable[Entry], *, validity: bool = False) -> Table:
    """Entries, a line each; with `validity` from when to when they held."""
    table = _table()
    times = ("from", "to") if validity else ("when",)
    for title in (*times, "key", "text", "source"):
        table.add_column(title, overflow="fold" if title == "text" else "ellipsis", no_wrap=title in times)
    for each in found:
        shown = (_when(each.valid_from), _when(each.valid_to)) if validity else (_when(each.at),)
        table.add_row(*shown, _key(each), _line(each.text, 300), _source(each))
    return table


def entry(one: Entry) -> Table:
    """All that is known of an entry."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    value = one.value if isinstance(one.value, str) else json.dumps(one.value, ensure_ascii=False, indent=2)
    rows: list[tuple[str, Any]] = [("key", Text(one.key, "bold")), ("value", Text(value))]
    if one.kind == "episode":
        rows.append(("episode", f"{one.episode}, entry {one.seq}"))
    if one.agent:
        rows.append(("agent", one.agent))
    if one.metadata:
        rows.append(("metadata", json.dumps(one.metadata, ensure_ascii=False)))
    trust = Text(f"{one.trust} ({_TRUST[one.trust]})", _TRUST_STYLES[one.trust])
    rows += [("source", one.source), ("trust", trust), ("importance", f"{one.importance:g}")]
    if one.actor:
        rows.append(("actor", one.actor))
    rows.append(("at", _when(one.at)))
    for title, moment in (("expires", one.expires_at), ("held until", one.valid_to)):
        if moment is not None:
            rows.append((title, _when(moment)))
    if one.run_id is not None:
        rows.append(("run", str(one.run_id) + ("" if one.step is None else f", step {one.step}")))
    for title, shown in rows:
        table.add_row(title, shown if isinstance(shown, Text) else Text(str(shown)))
    return table


def figures(found: Stats) -> list[Table | Text]:
    """The tables of `trellis memory stats`."""
    rows = _table()
    for title in ("model", "agent", "kind"):
        rows.add_column(title, overflow="fold")
    for title in ("live", "replaced", "expired", "no vector"):
        rows.add_column(title, justify="right")
    rows.add_column("newest", no_wrap=True)
    for each in found.rows:
        counts = (f"{each.live:,}", *(f"{n:,}" if n else "" for n in (each.past, each.expired, each.bare)))
        agent = Text(each.agent) if each.agent else Text("(shared)", "dim")
        rows.add_row(Text(each.model), agent, each.kind, *counts, _when(each.newest))
    used = f"{found.used:,} of them found {found.hits:,} times"
    last = f", last {_when(found.last_hit)}" if found.last_hit else ""
    told = f"{found.links:,} linked to others; {used}{last}; working memory: {_of_tasks(found)}"
    sizes = _table()
    sizes.add_column("on disk, all tenants", overflow="fold")
    for title in ("dims", "table", "vector index", "other indexes"):
        sizes.add_column(title, justify="right", no_wrap=True)
    for size in found.sizes:
        index = _bytes(size.vectors) if size.indexed else Text("missing", "bold red")
        sizes.add_row(Text(size.model), str(size.dims), _bytes(size.table), index, _bytes(size.indexes))
    return [rows, Text(told, "dim"), *([sizes] if found.sizes else [])]


def _of_tasks(found: Stats) -> str:
    tasks = "1 task" if found.tasks == 1 else f"{found.tasks:,} tasks"
    return f"{found.values:,} of {tasks}"


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _part(parts: Mapping[str, float], name: str) -> str:
    """`.0476 #1`, the part and the rank that it comes from; `+` for one that lifts."""
    if name not in parts:
        return ""
    rank = parts.get(f"{name}_rank")
    return f"{parts[name]:.4f}" + ("" if rank is None else f" #{rank:.0f}")


def _key(entry: Entry) -> Text:
    if entry.kind == "episode":
        return Text.assemble((entry.episode or "", "magenta"), (f" {entry.seq}", "dim"))
    return Text(entry.key, "cyan")


def _source(entry: Entry) -> Text:
    who = f"{entry.source}: {entry.actor}" if entry.actor else entry.source
    return Text(who, _TRUST_STYLES[entry.trust])


def _line(text: str, limit: int) -> Text:
    flat = " ".join(text.split())
    return Text(flat if len(flat) <= limit else f"{flat[: limit - 1]}…")


def _when(at: datetime | None) -> str:
    return "" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _bytes(size: int) -> str:
    number = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"


def _plain(value: Any) -> str:
    return (
        value.isoformat()
        if isinstance(value, datetime)
        else str(value)
        if isinstance(value, UUID)
        else repr(value)
    )
