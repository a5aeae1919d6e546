"""How values become bytes for Postgres: JSON texts and rows for COPY.

The law: pure and exact. A row is built by hand because 100,000 of them are written at a submit; what COPY
treats as special (backslash, tab, newline) is escaped, and nothing else can occur in JSON or in a name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from .plan import PlannedStep
from .records import Outcome

_NULL = "\\N"
_NOTHING_MORE = f"\t{_NULL}\t{_NULL}\t{_NULL}\t{_NULL}\n"
_FLAGS = ("false", "true")
_BLOCK = 64 * 1024  # characters a write: large enough to be cheap, small enough to stay in cache
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def dumps(value: Any) -> str:
    """Compact JSON."""
    return _encode(value)


_EXPONENT = re.compile(rb"\d[eE]|-0")


def loads(data: bytes) -> Any:
    """A JSON text as the value that comes back from a jsonb column.

    A worker that goes on with its own results must see in them what every other worker reads from the journal: jsonb
    keeps numbers as decimals (1e16 is an integer, there is no -0.0) and the keys of an object in an order of its own.
    """
    if b"{" not in data and not _EXPONENT.search(data):
        return json.loads(data)
    return json.loads(data, parse_float=_number, object_pairs_hook=_object)


def _number(text: str) -> int | float:
    value = Decimal(text)
    exponent = value.as_tuple().exponent
    return int(value) if isinstance(exponent, int) and exponent >= 0 else float(value) + 0.0


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(sorted(dict(pairs).items(), key=lambda pair: (len(pair[0].encode()), pair[0].encode())))


def _escape(text: str) -> str:
    if "\\" in text:
        text = text.replace("\\", "\\\\")
    if "\n" in text or "\t" in text or "\r" in text:
        text = text.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return text


def _json(value: Any) -> str:
    return _NULL if not value else _escape(_encode(value))


def _text(value: str | None) -> str:
    return _NULL if value is None else _escape(value)


def _real(value: float | None) -> str:
    return _NULL if value is None else f"{value:.6g}"


def _array(values: Iterable[int]) -> str:
    return "{" + ",".join(map(str, values)) + "}"


def outcomes(items: Iterable[Outcome], now: float) -> str:
    """Outcomes as one JSON list for the statement `complete`; what has its default is left out.

    Written by hand: a result is JSON already, and an array parameter per field costs psycopg more than the
    statement takes (16 µs a step, measured; this is 3). `now` is time.monotonic().
    """
    parts = []
    for item in items:
        text = (
            f'{{"idx":{item.idx},"lease":"{item.lease}","state":"{item.state.value}","fault":{item.fault},'
            f'"ran":{item.ran:.6f},"age":{max(0.0, now - item.ended):.6f},"delay":{item.delay:.6f}'
        )
        if item.result is not None:
            text += f',"result":{item.result.decode()}'
        if item.error is not None:
            text += f',"error":{_encode(item.error)}'
        text += f',"blocks":{_FLAGS[item.blocks]},"fatal":{_FLAGS[item.fatal]}}}'
        parts.append(text)
    return "[" + ",".join(parts) + "]"


def copy_rows(run: str, steps: Iterable[PlannedStep], *, sent: bool) -> Iterator[str]:
    """Blocks of rows in COPY's text format, in the column order of `copy_steps`."""
    flag = "t" if sent else "f"
    parts: list[str] = []
    size = 0
    for step in steps:
        state = "waiting" if step.missing else "ready" if step.waits_for is None else "parked"
        row = (
            f"{run}\t{step.idx}\t{_escape(step.name)}\t{_escape(step.action)}\t{_escape(step.queue)}\t{step.priority}"
            f"\t{state}\t{step.missing}\t{flag}\t{_array(step.dependents)}"
            f"\t{_array(step.refs) if step.refs else _NULL}\t{_json(step.inputs)}\t{_json(step.bindings)}"
            f"\t{_json(step.options)}"
        )
        if step.rank is None and step.waits_for is None and step.fair is None:
            row += _NOTHING_MORE
        else:
            row += (
                f"\t{_real(step.rank)}\t{_text(step.waits_for)}\t{_text(step.fair)}\t{_real(step.expect)}\n"
            )
        parts.append(row)
        size += len(row)
        if size >= _BLOCK:
            yield "".join(parts)
            parts, size = [], 0
    if parts:
        yield "".join(parts)
