"""What is to be stored, with all that is said of it.

The law: a draft is checked, down to the leaves of its value; who holds one can store it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypedDict, get_args
from uuid import UUID

from ..tasks.errors import EntryError
from .entries import Json, Seconds, mapping_of, moment_of, run_id_of, seconds_of, trust_of
from .scope import NAME_BYTES, TRUST, Source
from .texts import hash_of, json_of, name_of, storable, text_of


class Options(TypedDict, total=False):
    """What may be said of a value that is stored."""

    ttl: Seconds | None  # seconds or a timedelta for which it lives; that of the memory where it is left out
    importance: float  # 0 to 1; 0.5 where it is left out
    metadata: Mapping[str, Json] | None  # what filters ask for
    source: Source  # where it is from: user (where it is left out), tool, web, agent; recalled is not stored
    trust: int | None  # 0 none, 1 little, 2 usual, 3 the operator's; that of the source where it is left out
    actor: str | None  # whose words these are: searches that name them find them first
    at: datetime | None  # when it happened; now where it is left out
    run: UUID | str | None  # the run that it comes from
    step: int | None  # its number in the run
    text: str | None  # what is searched, instead of the value's own text


@dataclass(frozen=True, slots=True)
class Draft:
    """A value that is to be stored, checked."""

    key: str
    json: str
    text: str
    hash: bytes
    metadata: str
    importance: float
    source: str
    trust: int
    actor: str | None
    at: datetime
    said_at: datetime | None  # the same, where it was told
    ttl: float | None
    run: str | None
    step: int | None  # its number in the run
    told: dict[
        str, Any
    ]  # metadata and importance as far as they were given, for a value that is there already

    def arguments(self) -> dict[str, Any]:
        """For the statements; `id`, `kind`, `vector` and the context come besides."""
        return {
            "key": self.key,
            "value": self.json,
            "text": self.text,
            "hash": self.hash,
            "metadata": self.metadata,
            "importance": self.importance,
            "source": self.source,
            "trust": self.trust,
            "actor": self.actor,
            "at": self.at,
            "said_at": self.said_at,
            "ttl": self.ttl,
            "run": self.run,
            "step": self.step,
        }


def draft(key: str, value: Json, most: int, ttl: float | None, options: Options) -> Draft:
    """Check what is to be stored; `most`: bytes of JSON; `ttl`: seconds where the options say nothing.

    Raises EntryError or ValueTooLarge, with the name of the argument.
    """
    unknown = sorted(set(options) - set(Options.__annotations__))
    if unknown:
        raise EntryError(unknown[0], f"is no option: there are {', '.join(Options.__annotations__)}")
    source = options.get("source", "user")
    if source not in get_args(Source):
        raise EntryError("source", f"is {source!r}: needs one of {', '.join(get_args(Source))}")
    importance = options.get("importance", 0.5)
    if isinstance(importance, bool) or not isinstance(importance, int | float) or not 0 <= importance <= 1:
        raise EntryError("importance", f"is {importance!r}: needs a number from 0 to 1")
    step = options.get("step")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**31):
        raise EntryError("step", f"is {step!r}: needs a step's number")
    text, trust, actor = options.get("text"), options.get("trust"), options.get("actor")
    json = json_of("value", value, most)
    metadata = json_of("metadata", mapping_of("metadata", options.get("metadata") or {}), most)
    shown = text_of(value) if text is None else storable("text", text)
    at = moment_of("at", options.get("at"))
    return Draft(
        key=name_of("key", key, NAME_BYTES),
        json=json,
        text=shown,
        hash=hash_of(shown),
        metadata=metadata,
        importance=float(importance),
        source=source,
        trust=TRUST[source] if trust is None else trust_of("trust", trust),
        actor=None if actor is None else name_of("actor", actor, NAME_BYTES),
        at=at or datetime.now(UTC),
        said_at=at,
        ttl=seconds_of("ttl", options["ttl"]) if options.get("ttl") is not None else ttl,
        run=run_id_of("run", options.get("run")),
        step=step,
        told={
            "importance": None if "importance" not in options else float(importance),
            "metadata": None if options.get("metadata") is None else metadata,
        },
    )
