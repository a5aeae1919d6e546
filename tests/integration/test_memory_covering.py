"""What is asked of Postgres when a fact is stored, and of Python when a file is loaded, is one rule."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

from stack import Stack

from trellis.memory.covering import contains

OBJECTS: list[dict[str, Any]] = [
    {}, {"a": 1}, {"a": 1.0}, {"a": True}, {"a": "1"}, {"a": None}, {"a": []}, {"a": {}}, {"a": [1]}, {"a": [1, 2]},
    {"a": [2, 1, 1]}, {"a": [[1], 2]}, {"a": [[1, 2]]}, {"a": [{"b": 1}]}, {"a": [{"b": 1, "c": 2}, 3]},
    {"a": {"b": 1}}, {"a": {"b": [1, {"c": None}]}, "d": 0}, {"a": {"b": [{}]}}, {"a": 1, "d": False}, {"a": 0},
    {"a": [True]}, {"a": "x"},
]  # fmt: skip


def test_python_contains_what_postgres_contains(stack: Stack) -> None:
    pairs = list(product(map(json.dumps, OBJECTS), repeat=2))
    found = stack.rows(
        "SELECT g.whole::jsonb @> g.part::jsonb FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY "
        "AS g(whole, part, n) ORDER BY n",
        [whole for whole, _ in pairs],
        [part for _, part in pairs],
    )
    assert [contains(json.loads(whole), json.loads(part)) for whole, part in pairs] == [
        row[0] for row in found
    ]
