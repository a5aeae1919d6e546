"""Delays: pure arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trellis.tasks.errors import DefinitionError
from trellis.tasks.retry import Retry


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [("exponential", [2, 4, 8, 10]), ("linear", [2, 4, 6, 8]), ("constant", [2, 2, 2, 2])],
)
def test_each_backoff_grows_as_its_name_says(backoff: str, expected: list[float]) -> None:
    """Up to the cap, with no jitter."""
    retry = Retry(9, backoff=backoff, base=2, max_delay=10, jitter=0)
    assert [retry.delay(failures, 0.5) for failures in (1, 2, 3, 4)] == expected


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.floats(0, 1), st.floats(0, 1e6))
def test_a_delay_lies_between_its_jitter_and_its_cap(
    failures: int, random: float, jitter: float, cap: float
) -> None:
    """Never negative, never over max_delay, never further below than the jitter allows; no overflow."""
    retry = Retry(5, base=1, max_delay=cap, jitter=jitter)
    full = min(2.0 ** min(failures - 1, 63), cap)
    assert full * (1 - jitter) <= retry.delay(failures, random) <= full


def test_attempts_count_the_first_one() -> None:
    """Three attempts: two failures may be followed by another try, three may not."""
    assert [Retry(3).allows(failures) for failures in (1, 2, 3)] == [True, True, False]


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"jitter": 2}, {"base": -1}, {"backof": "linear"}])
def test_a_wrong_policy_is_refused(wrong: dict[str, object]) -> None:
    """Out of range, or an option that does not exist."""
    with pytest.raises(DefinitionError, match=next(iter(wrong))):
        Retry(**{"attempts": 2, **wrong})
