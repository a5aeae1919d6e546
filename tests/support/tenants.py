"""Which scans of a plan would read rows of other tenants, were there no row-level security.

The law: a scan of a tenant's table is bound where a condition of its own says `tenant = $n`, with the parameter that is
the tenant, or sets its tenant equal to that of a scan that is bound. A change on conflict is, where the conflict can
only be with one of the tenant's own rows. What Postgres makes of a statement is judged, and not its words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from plans import parts

Node = dict[str, Any]


def nodes(node: Node) -> Iterator[Node]:
    """A plan's nodes, each before those below it."""
    yield node
    for below in node.get("Plans", ()):
        yield from nodes(below)


def unbound(plan: Node, parameter: int | None, tables: Collection[str], keyed: Collection[str]) -> list[str]:
    """Scans and changes that no tenant binds.

    parameter: the number of the tenant's; tables: of tenants, and their partitions; keyed: indexes with a tenant.
    """
    every = list(nodes(plan))
    left = [node for node in every if "Scan" in node["Node Type"] and node.get("Relation Name") in tables]
    while True:
        open_ = {name for node in left for name in _names(node)}
        found = [node for node in left if not _is_bound(node, parameter, open_, every)]
        if len(found) == len(left):
            break
        left = found
    return [f"{node['Node Type']} of {node['Relation Name']} {node['Alias']}" for node in left] + [
        f"on conflict of {node['Relation Name']}"
        for node in every
        if node.get("Conflict Resolution") == "UPDATE"
        and not set(node["Conflict Arbiter Indexes"]) <= set(keyed)
        and "tenant = excluded.tenant" not in node.get("Conflict Filter", "")
    ]


def _is_bound(node: Node, parameter: int | None, left: Collection[str], every: Sequence[Node]) -> bool:
    tables = {name for other in every if "Relation Name" in other for name in _names(other)}
    for part in _conditions(node):
        said = re.fullmatch(r"\(?(?:\w+\.)?tenant = (?:\$(?P<number>\d+)|(?P<other>\w+)\.tenant)\)?", part)
        if said is None:
            continue
        if said["number"] is not None and int(said["number"]) == parameter:
            return True
        if said["other"] in tables and said["other"] not in left:
            return True
    return False


def _conditions(node: Node) -> list[str]:
    """Of a scan itself, and of the bitmaps that it is made of: what has to be true, all of it."""
    own = [str(node[name]) for name in ("Index Cond", "Recheck Cond", "Filter") if name in node]
    maps = (
        below for below in node.get("Plans", ()) if below["Node Type"] in ("Bitmap Index Scan", "BitmapAnd")
    )
    return [part for text in own for part in parts(text)] + [
        part for below in maps for part in _conditions(below)
    ]


def _names(node: Node) -> set[str]:
    """What conditions call it: a partition also as its table."""
    alias = str(node["Alias"])
    return (
        {alias, re.sub(r"_\d+$", "", alias)}
        if re.fullmatch(r"memory_\d+", node["Relation Name"])
        else {alias}
    )
