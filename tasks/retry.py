"""How long to wait before the next attempt: pure arithmetic.

The law: a delay depends on the policy, the number of failures and one random number handed in,
never on a clock; it lies between 0 and `max_delay`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from .models import build, by_hand


class Retry(BaseModel):
    """A retry policy. The first attempt counts: `Retry(attempts=3)` runs a body at most three times.

    exponential: base, 2·base, 4·base, …; linear: base, 2·base, 3·base, …; constant: base every time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempts: int = Field(1, ge=1, le=1000, description="Bodies run at most this often.")
    backoff: Literal["exponential", "linear", "constant"] = Field(
        "exponential", description="How the delay grows from one failure to the next."
    )
    base: float = Field(1.0, ge=0, allow_inf_nan=False, description="Seconds before the second attempt.")
    max_delay: float = Field(300.0, ge=0, allow_inf_nan=False, description="Seconds; no delay is longer.")
    jitter: float = Field(
        0.1, ge=0, le=1, description="A delay d becomes a random one between (1 - jitter)·d and d."
    )

    @by_hand
    def __init__(self, attempts: int = 1, **options: object) -> None:
        """`Retry(3)` is `Retry(attempts=3)`. Raises DefinitionError."""
        build(super().__init__, self, attempts=attempts, **options)

    def delay(self, failures: int, random: float) -> float:
        """Seconds to wait after the given number of failures (1 or more); `random` lies in [0, 1)."""
        if self.backoff == "exponential":
            raw = self.base * 2.0 ** min(failures - 1, 63)
        elif self.backoff == "linear":
            raw = self.base * failures
        else:
            raw = self.base
        capped = min(raw, self.max_delay)
        return capped * (1 - self.jitter * random)

    def allows(self, failures: int) -> bool:
        """Whether another attempt may follow this many failures."""
        return failures < self.attempts
