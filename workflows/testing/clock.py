"""The time of an in-process stack: it stands still until somebody moves it.

The law: every reading is a microsecond after the one before, so what happened first is also earlier, and the
same program reads the same times whenever it is run.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 1, 9, 0, tzinfo=UTC)
NEVER = datetime.max.replace(tzinfo=UTC)  # as Postgres' 'infinity'
_GRAIN = timedelta(microseconds=1)


class Clock:
    """A clock that is moved by hand."""

    def __init__(self, now: datetime = START) -> None:
        if now.tzinfo is None:
            raise ValueError(f"now={now!r} has no time zone: write datetime(…, tzinfo=UTC)")
        self._now = now.astimezone(UTC)

    @property
    def time(self) -> datetime:
        """What it shows, without moving it."""
        return self._now

    def now(self) -> datetime:
        """What the journal takes for the present moment."""
        self._now += _GRAIN
        return self._now

    def move(self, to: datetime) -> None:
        """Set it to a later moment; an earlier one changes nothing."""
        self._now = max(self._now, to)
