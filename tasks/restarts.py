"""When a child that died starts again: pure arithmetic.

The law: each quick death doubles the wait, a life of `STABLE_SECONDS` clears the account, and after
`LIMIT` quick deaths in a row there is no further start, since the cause will not go away by itself.
"""

from __future__ import annotations

FIRST_DELAY = 0.2
MAX_DELAY = 5.0
LIMIT = 5
STABLE_SECONDS = 30.0


class Restarts:
    """The account of one child's deaths."""

    def __init__(self) -> None:
        self.quick = 0

    def died(self, lived: float) -> float | None:
        """Seconds until the next start after a life of `lived` seconds; None to give up."""
        self.quick = 1 if lived >= STABLE_SECONDS else self.quick + 1
        if self.quick > LIMIT:
            return None
        return float(min(FIRST_DELAY * 2 ** (self.quick - 1), MAX_DELAY))
