"""What a plan of Postgres reads, judged by its shape: which of its scans may grow with the journal.

The law: a scan is fine where its index condition names a row (of a step: run and id) or the few that belong to one, or
where a LIMIT ends it after as many entries as it gives: nothing in between has to read to the end first, and no
entry is read only to be thrown away. Whatever else is found, with how far it reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import psycopg

from trellis.tasks.queries import numbered

# The columns that single out a row, or the few that belong to one.
KEYS: dict[str, tuple[tuple[str, ...], ...]] = {
    "run": (("id",), ("parent_run",), ("origin",), ("workflow", "key"), ("workflow", "single")),
    "step": (("run_id", "idx"), ("waits_for", "run_id")),
    "event": (("id",),),
    "signal": (("id",), ("run_id", "name")),
    "dead_letter": (("run_id",),),
    "run_tag": (("run_id",),),
    "permit": (("run_id", "idx"),),
    "gate": (("name",),),
    "definition": (("digest",),),
    "schedule": (("name",), ("workflow",)),
    "schedule_tick": (("schedule",),),
    "heartbeat": (("name",),),
    "action_stat": (("action",),),
    "retention": (("workflow",),),
    "retention_part": (("part", "workflow"),),
    "pause": (("kind",),),
    "audit_log": (),
    "audit_seal": (("seq",),),
    "audit_retired": (("month",),),
}
_STREAMS = {
    "LockRows",
    "Result",
    "Subquery Scan",
    "Append",
    "Merge Append",
    "Nested Loop",
    "ProjectSet",
    "Limit",
}
_KEEPS = {"Materialize", "Hash", "Sort"}  # read once what is then used again and again


class Reading(NamedTuple):
    """A scan that may read more than it gives."""

    far: str  # run: all of one run; entries: of an index, an open number; table: all; again: one of these for each row
    what: str  # the table, or the node
    how: str  # the index, its condition and what is thrown away

    def __str__(self) -> str:
        return f"{self.far}: {self.what} {self.how}"


def predicates(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """What is true of all entries of a partial index, by its name."""
    rows = connection.execute(
        "SELECT indexrelid::regclass::text, pg_get_expr(indpred, indrelid) FROM pg_index WHERE indpred IS NOT NULL"
    )
    return dict(rows.fetchall())


def plan(connection: psycopg.Connection[Any], statement: bytes) -> dict[str, Any]:
    """The generic plan of a statement with `%(name)s` in it; no values are needed."""
    text = b"EXPLAIN (GENERIC_PLAN, FORMAT JSON) " + numbered(statement).text
    with psycopg.RawCursor(connection) as cursor:
        row = cursor.execute(text, prepare=False).fetchone()
    assert row is not None
    found: dict[str, Any] = row[0][0]["Plan"]
    return found


def readings(
    node: dict[str, Any], known: Mapping[str, str], limited: bool = False, repeated: bool = False
) -> Iterator[Reading]:
    """The scans of a plan that may read more than they give; `known`: the predicates of partial indexes."""
    kind, table = node["Node Type"], node.get("Relation Name")
    if table is not None and table.startswith("audit_log_"):
        table = "audit_log"  # its partitions
    if "Scan" in kind and table is not None and not table.startswith("pg_"):  # the catalogue is no journal
        far = _far(node, table, limited, known)
        if far is not None:
            # What the outer side of a loop names, such as `o.run_id`, is another run at each turn.
            again = repeated and re.search(r"\b[a-z]\w*\.[a-z]", node.get("Index Cond", "")) is None
            yield Reading("again" if again else far, table, _how(node))
    for below in node.get("Plans", ()):
        relation = below.get("Parent Relationship")
        once = kind in _KEEPS or relation == "InitPlan"
        turned = repeated or relation == "SubPlan" or (kind == "Nested Loop" and relation == "Inner")
        ends = (kind == "Limit" or (limited and kind in _STREAMS)) and relation not in ("InitPlan", "SubPlan")
        yield from readings(below, known, ends, turned and not once)


def _far(node: dict[str, Any], table: str, limited: bool, known: Mapping[str, str]) -> str | None:
    if "Index" not in node["Node Type"]:
        return "table"
    condition = node.get("Index Cond", "")
    if any(all(_bound(column, condition) for column in key) for key in KEYS[table]):
        return None
    if limited and not _thrown_away(node, known):
        return None
    if _bound("run_id", condition):
        neighbours = "idx >= " in condition and "idx < " in condition
        return None if neighbours else "run"
    return "entries" if condition else "table"


def _thrown_away(node: dict[str, Any], known: Mapping[str, str]) -> set[str]:
    """What a scan asks of its entries beyond what is true of all of them."""
    return parts(node.get("Filter", "")) - parts(known.get(node["Index Name"], ""))


def parts(condition: str) -> set[str]:
    """The parts of a condition, as far as AND joins them at its top."""
    depth, begin, found = 0, 0, []
    inner = condition[1:-1] if condition.startswith("((") else condition
    for at, letter in enumerate(inner):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and inner.startswith(" AND ", at):
            found.append(inner[begin:at])
            begin = at + 5
    return {part.strip() for part in [*found, inner[begin:]] if part.strip()}


def _bound(column: str, condition: str) -> bool:
    """Whether a condition gives a column its value (or a list of them)."""
    return re.search(rf"(?<![\w.]){column} = ", condition) is not None


def _how(node: dict[str, Any]) -> str:
    parts = [node["Node Type"], node.get("Index Name"), node.get("Index Cond")]
    if "Filter" in node:
        parts.append(f"but only {node['Filter']}")
    return " ".join(part for part in parts if part)
