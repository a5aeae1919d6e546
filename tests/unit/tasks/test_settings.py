"""Settings: one reader of the environment, every refusal names the variable."""

import json
from pathlib import Path

import pytest

from trellis.tasks.errors import ConfigurationError
from trellis.tasks.settings import Settings, load, misspelt


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("TRELLIS_LEASE_SECONDS", "soon", "number"),
        ("TRELLIS_LEASE_SECONDS", "0", "greater than or equal to 1"),
        ("TRELLIS_DATABASE_URL", "mysql://x", "postgresql://user:password@host:port/name"),
        ("TRELLIS_BROKER_URL", "amqp://x", "redis://:password@host:port/db"),
        ("TRELLIS_LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("TRELLIS_BUNDLE_MAX", "0", "greater than or equal to 1"),
    ],
)
def test_a_wrong_value_names_the_variable_and_what_it_accepts(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    """As early as possible, with the purpose of the setting."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert f"{variable}='{value}'" in str(caught.value)
    assert says in str(caught.value)


def test_every_wrong_value_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody likes to mend one variable after the other."""
    monkeypatch.setenv("TRELLIS_LEASE_SECONDS", "x")
    monkeypatch.setenv("TRELLIS_POOL_MAX_SIZE", "y")
    with pytest.raises(
        ConfigurationError, match=r"(?s)LEASE_SECONDS.*POOL_MAX_SIZE|POOL_MAX_SIZE.*LEASE_SECONDS"
    ):
        load()


def test_imports_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks do not matter."""
    monkeypatch.setenv("TRELLIS_IMPORTS", "a.b, c ,")
    assert load().imports == ("a.b", "c")


def test_a_running_stack_is_found_and_the_environment_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`trellis up` leaves its addresses in its home; variables override them."""
    stack = {"database_url": "postgresql://a@h/x", "broker_url": "redis://h/1", "pid": 1}
    (tmp_path / "stack.json").write_text(json.dumps(stack))
    monkeypatch.setenv("TRELLIS_HOME", str(tmp_path))
    assert load().need_database() == "postgresql://a@h/x"
    monkeypatch.setenv("TRELLIS_BROKER_URL", "redis://other/2")
    assert (load().database_url, load().broker_url) == ("postgresql://a@h/x", "redis://other/2")


def test_a_missing_address_says_how_to_get_one() -> None:
    """`trellis up`, or the variable with an example."""
    settings = Settings(database_url=None, broker_url=None)
    with pytest.raises(ConfigurationError, match=r"trellis up.*TRELLIS_DATABASE_URL=postgresql://"):
        settings.need_database()
    with pytest.raises(ConfigurationError, match=r"trellis up.*TRELLIS_BROKER_URL=redis://"):
        settings.need_broker()


def test_settings_are_frozen() -> None:
    """Handed down, never changed."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().lease_seconds = 1.0


def test_a_refused_address_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages end up in logs."""
    monkeypatch.setenv("TRELLIS_BROKER_URL", "amqp://user:secret@host")
    with pytest.raises(ConfigurationError, match=r"amqp://user:\*\*\*@host") as caught:
        load()
    assert "secret" not in str(caught.value)


def test_a_misspelt_variable_is_found_with_the_one_that_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment may hold anything, so it is no error; `trellis doctor` tells."""
    monkeypatch.setenv("TRELLIS_LEASE_SECOND", "4")
    monkeypatch.setenv("TRELLIS_XYZZY", "1")
    found = misspelt()
    assert (found["TRELLIS_LEASE_SECOND"], found["TRELLIS_XYZZY"]) == ("TRELLIS_LEASE_SECONDS", "")
    assert "TRELLIS_HOME" not in found
