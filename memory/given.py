"""What a person writes on the command line, as what a memory takes: pure.

The law: what cannot be read is refused with the name of the option and an example of what can.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from ..tasks import spans
from ..tasks.errors import ConfigurationError, EntryError, ParameterError
from ..tasks.hints import closest
from ..tasks.spans import moment
from .entries import Filters

# Metadata, sources, trust at least, actors, episode, run, since, until.
Asked = tuple[
    Sequence[str],
    Sequence[str] | None,
    int | None,
    Sequence[str] | None,
    str | None,
    str | None,
    str | None,
    str | None,
]


def filters(asked: Asked) -> Filters:
    """Options as filters."""
    metadata, sources, min_trust, actors, episode, run, since, until = asked
    return Filters(
        metadata=pairs(metadata) or None, sources=sources, min_trust=min_trust, actors=actors or None, episode=episode,
        run=run, since=moment("since", since), until=moment("until", until),
    )  # fmt: skip


def pairs(given: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE as metadata: what reads as JSON is that, all else a text."""
    found: dict[str, Any] = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not equals or not name:
            raise ParameterError({"--meta": f"{each!r} is no KEY=VALUE"})
        try:
            found[name] = from_json(text)
        except ValueError:
            found[name] = text
    return found


def data_of(name: str, text: str) -> Any:
    """JSON. Raises EntryError."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise EntryError(name, f"is no JSON: {error}") from None


def span(name: str, text: str | None) -> float | None:
    """Seconds, or a number with a unit."""
    if text is None:
        return None
    try:
        return spans.span(text).total_seconds() if text[-1:].isalpha() else float(text)
    except (ConfigurationError, ValueError):
        raise ParameterError({name: f"{text!r} is no time span: seconds, or 20m, 3h, 2d"}) from None


def form(file: Path, wanted: str | None) -> str:
    """How a file is written, by its suffix. Raises ParameterError."""
    if wanted is not None:
        return wanted
    forms = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
    if file.suffix.lower() not in forms:
        raise ParameterError({"FILE": f"{file.name!r} does not end in .jsonl or .parquet: say --format"})
    return forms[file.suffix.lower()]


def nearest(name: str, names: Iterable[str]) -> str:
    """Which of the names may have been meant, in words; empty where none is near."""
    close = closest(name, names)
    return f"did you mean {close!r}?" if close is not None else ""
