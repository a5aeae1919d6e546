"""The command `trellis`: options, messages, exit codes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import EntryPoint, version
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from trellis.tasks import cli

RUN = CliRunner()


class Became(Exception):
    """The command went on as this program."""

    def __init__(self, command: list[str], env: Mapping[str, str]) -> None:
        self.command = command
        self.env = env


@pytest.fixture(autouse=True)
def a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in an empty folder, with the home in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TRELLIS_HOME", str(tmp_path / ".trellis"))


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRELLIS_DATABASE_URL", "postgresql://trellis:hidden@127.0.0.1:1/d")
    monkeypatch.setenv("TRELLIS_BROKER_URL", "redis://:hidden@127.0.0.1:1/0")


@pytest.fixture
def execve(monkeypatch: pytest.MonkeyPatch) -> None:
    def become(program: str, command: list[str], env: Mapping[str, str]) -> None:
        raise Became(command, env)

    monkeypatch.setattr(os, "execve", become)


def _main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["trellis", *arguments])
    monkeypatch.setattr(cli, "_join_others", lambda: None)
    try:
        return int(cli.main() or 0)
    except SystemExit as ended:
        return int(ended.code or 0)


def test_the_version() -> None:
    result = RUN.invoke(cli.app, ["--version"])
    assert result.output == f"trellis {version('celery-trellis')}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dcotor"], "Did you mean 'doctor'?"),
        (["up", "--hme", "x"], "--home"),
        (["up", "--pool", "forks"], "prefork"),
        (["up", "--concurrency", "0"], "greater than or equal to 1"),
        (["flower", "--port", "99999"], "65535"),
    ],
)
def test_a_slip_in_the_command_line_is_answered(arguments: list[str], says: str) -> None:
    result = RUN.invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert says in result.output


@pytest.mark.parametrize("command", ["worker", "beat", "flower", "migrate"])
def test_without_addresses_a_command_says_what_to_set(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(monkeypatch, command) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: TRELLIS_")
    assert "trellis up" in shown
    assert "Traceback" not in shown


def test_a_wrong_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRELLIS_LEASE_SECONDS", "soon")
    assert _main(monkeypatch, "doctor") == 2
    assert "TRELLIS_LEASE_SECONDS='soon'" in capsys.readouterr().err


@pytest.mark.usefixtures("addresses")
def test_a_server_that_is_not_there_is_no_mistake_of_the_person(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(monkeypatch, "migrate") == 1
    shown = capsys.readouterr().err
    assert "cannot reach Postgres" in shown
    assert "hidden" not in shown


@pytest.mark.usefixtures("addresses", "execve")
def test_a_worker_becomes_celery_with_all_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / f"my_{name}.py").touch()
    monkeypatch.setenv("TRELLIS_IMPORTS", "my_one, my_two")
    options = [
        "--import",
        "my_two",
        "--import",
        "my_three",
        "--queues",
        "a, b",
        "--name",
        "w",
        "--pool",
        "solo",
    ]
    with pytest.raises(Became) as became:
        cli.app(["worker", *options], standalone_mode=False)
    assert became.value.env["TRELLIS_IMPORTS"] == "my_one,my_two,my_three"
    assert {"--queues=a,b", "--hostname=w@%h", "--pool=solo"} <= set(became.value.command)


@pytest.mark.usefixtures("addresses", "execve")
def test_a_module_that_is_not_there_stops_a_worker_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(monkeypatch, "worker", "--import", "nothing_of_this_name") == 2
    assert "cannot be found from" in capsys.readouterr().err


@pytest.mark.usefixtures("addresses", "execve")
def test_beat_keeps_its_schedule_in_the_home(tmp_path: Path) -> None:
    with pytest.raises(Became) as became:
        cli.app(["beat"], standalone_mode=False)
    assert f"--schedule={tmp_path / '.trellis' / 'beat-schedule'}" in became.value.command


@pytest.mark.usefixtures("addresses", "execve")
def test_flower_listens_where_it_is_told() -> None:
    with pytest.raises(Became) as became:
        cli.app(["flower", "--port", "5777"], standalone_mode=False)
    assert {"--port=5777", "--address=127.0.0.1"} <= set(became.value.command)


class _Entries:
    """An entry point that brings a command, and one that is broken."""

    def load_good(self, app: typer.Typer) -> None:
        @app.command()
        def extra() -> None:
            typer.echo("extra")


def test_other_floors_join_and_a_broken_one_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()
    app.command(name="own")(lambda: None)

    def loaded(self: EntryPoint) -> Any:
        if self.name == "broken":
            raise ImportError("no module named x")
        return _Entries().load_good

    entries = [EntryPoint(name, f"{name}:register", cli.GROUP) for name in ("good", "broken")]
    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(cli, "entry_points", lambda group: entries)
    monkeypatch.setattr(EntryPoint, "load", loaded)
    cli._join_others()
    assert RUN.invoke(app, ["extra"]).output == "extra\n"
    assert "the commands of 'broken' (broken:register) are left out" in capsys.readouterr().err
