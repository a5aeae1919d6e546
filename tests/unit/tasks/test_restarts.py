"""The arithmetic of restarts."""

from trellis.tasks.restarts import LIMIT, MAX_DELAY, STABLE_SECONDS, Restarts


def test_each_quick_death_doubles_the_wait_up_to_a_limit() -> None:
    account = Restarts()
    delays = [account.died(lived=0.1) for _ in range(LIMIT)]
    assert all(delay is not None and delay <= MAX_DELAY for delay in delays)
    assert delays[:4] == [0.2, 0.4, 0.8, 1.6]


def test_too_many_quick_deaths_are_given_up() -> None:
    account = Restarts()
    for _ in range(LIMIT):
        assert account.died(lived=0.1) is not None
    assert account.died(lived=0.1) is None


def test_a_long_life_clears_the_account() -> None:
    account = Restarts()
    for _ in range(LIMIT):
        account.died(lived=0.1)
    assert account.died(lived=STABLE_SECONDS) == 0.2
    assert account.died(lived=0.1) == 0.4
