"""Spans of time as people write them: `90s`, `15m`, `2h`, `7d`, `4w`, or a moment such as 2026-11-20T08:00+01:00.

The law: pure. What cannot be read is refused with an example.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from .errors import ConfigurationError, ParameterError

_SPAN = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def span(text: str) -> timedelta:
    """`7d` as a timedelta. Raises ConfigurationError."""
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise ConfigurationError(f"{text!r} is no span of time: write e.g. 90s, 15m, 2h, 7d or 4w")
    try:
        return timedelta(**{_UNITS[found["unit"]]: float(found["number"])})
    except OverflowError:
        raise ConfigurationError(f"{text!r} is longer than time can be counted") from None


def since(text: str) -> datetime | timedelta:
    """A span, or a moment (that of this machine's time zone where it names none). Raises ConfigurationError."""
    try:
        return datetime.fromisoformat(text.strip()).astimezone()
    except ValueError:
        pass
    try:
        return span(text)
    except ConfigurationError:
        raise ConfigurationError(
            f"{text!r} is neither a span of time such as 2h or 7d nor a moment such as 2026-11-20T08:00"
        ) from None


def moment(name: str, text: str | None) -> datetime | None:
    """The moment that an option names, or that is so long ago. Raises ParameterError, which names the option."""
    if text is None:
        return None
    try:
        found = since(text)
    except ConfigurationError:
        raise ParameterError(
            {name: f"{text!r} is neither a time as 2026-01-31T12:00 nor an age as 2d"}
        ) from None
    return datetime.now(UTC) - found if isinstance(found, timedelta) else found


def said(span: timedelta) -> str:
    """A span as `span` reads it, in its largest whole unit."""
    seconds = span.total_seconds()
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:g}s"
