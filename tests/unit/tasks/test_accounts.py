"""Which account runs Postgres."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from trellis.tasks import accounts
from trellis.tasks.errors import ConfigurationError
from trellis.tasks.processes import Account

STRANGER = 64_123


def test_an_ordinary_user_runs_servers_as_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert accounts.server_account(tmp_path, [tmp_path]) is None


def test_a_closed_folder_is_found() -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path itself lies in a folder of one user
        closed = Path(name).resolve()
        inner = closed / "inner"
        inner.mkdir()
        assert accounts.closed(inner, STRANGER, STRANGER) == closed
        closed.chmod(0o711)
        assert accounts.closed(inner, STRANGER, STRANGER) is None


def test_the_owner_and_the_group_have_rights_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o640)
    mode = file.stat()
    assert accounts.closed(file, mode.st_uid, mode.st_gid) != file
    file.chmod(0o040)
    assert accounts.closed(file, mode.st_uid, mode.st_gid) is not None


def _as_root(monkeypatch: pytest.MonkeyPatch, *, closed: Path | None, capabilities: set[int]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(accounts, "closed", lambda *_: closed)
    monkeypatch.setattr(accounts, "_capabilities", lambda: capabilities)


def test_root_hands_new_data_to_an_unprivileged_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _as_root(monkeypatch, closed=None, capabilities=set())
    account = accounts.server_account(tmp_path / "data", [])
    assert isinstance(account, Account)
    assert account.uid != 0
    assert account.capability is None


@pytest.mark.parametrize(
    ("has", "kept"),
    [
        ({accounts.CAP_DAC_OVERRIDE, accounts.CAP_DAC_READ_SEARCH}, accounts.CAP_DAC_READ_SEARCH),
        ({accounts.CAP_DAC_OVERRIDE}, accounts.CAP_DAC_OVERRIDE),
    ],
)
def test_below_a_closed_folder_the_weakest_capability_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: set[int], kept: int
) -> None:
    _as_root(monkeypatch, closed=Path("/root"), capabilities=has)
    account = accounts.server_account(tmp_path / "data", [])
    assert account is not None
    assert account.capability == kept


def test_without_any_capability_the_closed_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _as_root(monkeypatch, closed=Path("/root"), capabilities=set())
    with pytest.raises(ConfigurationError, match="may not enter /root"):
        accounts.server_account(tmp_path / "data", [])


def test_a_home_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / ".trellis"
    (home / "logs").mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    with pytest.raises(ConfigurationError, match=r"\.trellis belongs to .*chown -R"):
        accounts.check_owner(home)
    accounts.check_owner(tmp_path / "new")  # not there yet, so it will be ours
