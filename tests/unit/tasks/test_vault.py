"""Encryption at rest: what opens, what does not, and what is said about it."""

from __future__ import annotations

import pytest

from trellis.tasks.errors import ConfigurationError, SecretError
from trellis.tasks.settings import Settings
from trellis.tasks.vault import HIDDEN, PREFIX, Vault, hidden, is_sealed

OLD, NEW = {"old": b"0123456789abcdef"}, {"new": b"fedcba9876543210"}


@pytest.mark.parametrize("text", ["", "hunter2", "żółw\n\0", "\ud800", "x" * 100_000])
def test_a_text_comes_out_as_it_went_in_and_never_the_same_way_twice(text: str) -> None:
    vault = Vault(OLD)
    first, second = vault.seal(text, "it"), vault.seal(text, "it")
    assert vault.open(first, "it") == vault.open(second, "it") == text
    assert first != second
    assert is_sealed(first)
    assert first.startswith(f"{PREFIX}old:")


def test_the_first_key_encrypts_and_all_open() -> None:
    sealed = Vault(OLD).seal("hunter2", "it")
    both = Vault({**NEW, **OLD})
    assert both.open(sealed, "it") == "hunter2"
    renewed = both.renewed(f'{{"a": "{sealed}", "b": 1}}')
    assert f"{PREFIX}new:" in renewed
    assert both.renewed(renewed) == renewed
    with pytest.raises(SecretError, match="key 'old', which TRELLIS_SECRET_KEYS does not name"):
        Vault(NEW).open(sealed, "it")


def test_what_was_changed_does_not_open() -> None:
    sealed = Vault(OLD).seal("hunter2", "it")
    letter = "A" if sealed[-5] != "A" else "B"
    for other in (sealed[:-5] + letter + sealed[-4:], sealed.replace(":old:", ":new:")):
        with pytest.raises(SecretError, match="it does not open with key"):
            Vault({**OLD, "new": OLD["old"] + b"x"}).open(other, "it")


def test_another_secret_under_the_same_name_does_not_open() -> None:
    with pytest.raises(SecretError, match="or that key's secret was"):
        Vault({"old": b"another secret of it"}).open(Vault(OLD).seal("hunter2", "it"), "it")


def test_without_a_key_the_error_names_the_field_and_the_setting() -> None:
    with pytest.raises(
        ConfigurationError, match="parameter 'token' is secret, and TRELLIS_SECRET_KEYS is not set"
    ):
        Vault({}).seal("hunter2", "parameter 'token'")


def test_what_is_shown_has_asterisks() -> None:
    assert hidden({"a": Vault(OLD).seal("x", "it"), "b": "trellis-secret: is a prefix", "c": 1}) == {
        "a": HIDDEN,
        "b": "trellis-secret: is a prefix",
        "c": 1,
    }


@pytest.mark.parametrize("name", ["secret_keys", "audit_keys"])
@pytest.mark.parametrize("wrong", ["short:0123", "no name", "a:0123456789abcdef,a:fedcba9876543210"])
def test_wrong_keys_are_refused_and_not_shown(name: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=r"accepts NAME:SECRET|names two keys alike") as caught:
        Settings(**{name: wrong})
    assert "0123456789abcdef" not in repr(caught.value.errors()[0]["msg"])


@pytest.mark.parametrize("name", ["secret_keys", "audit_keys"])
def test_an_empty_variable_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"TRELLIS_{name.upper()}", "")
    assert getattr(Settings(), name) is None
