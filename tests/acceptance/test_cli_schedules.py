"""`trellis schedules` as a person and as a script use it."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from forks import ran
from stack import Stack

FLOW = """
from trellis.workflows import Workflow, action

@action
def hello(day: str) -> str:
    return day

hello_flow = Workflow("hello", params={"day": str})
hello_flow.step("a", hello, day=hello_flow.params.day)
hello_flow.schedule("nightly", cron="0 3 * * *", timezone="Europe/Berlin", tick_param="day")
"""


class Shell:
    """Commands in a user's folder."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.folder = folder
        self.env = stack.environment(TRELLIS_IMPORTS="", PYTHONPATH=str(folder), COLUMNS="200")
        (folder / "flow.py").write_text(FLOW)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return ran(["trellis", "schedules", *arguments], self.folder, self.env)


@pytest.fixture
def shell(stack: Stack, tmp_path: Path) -> Shell:
    return Shell(stack, tmp_path)


def test_the_life_of_a_schedule(stack: Stack, shell: Shell) -> None:
    """Made from code and by hand, shown, paused, resumed, triggered, backfilled, deleted."""
    assert "no schedules" in shell().stderr
    assert shell("apply", "--import", "flow").stdout.startswith("nightly next tick ")
    made = shell(
        "create", "daily", "flow.py", "--cron", "@daily", "-p", "day=today", "--overlap", "allow", "--json"
    )
    assert json.loads(made.stdout)["cron"] == "@daily"
    every = (
        "create",
        "often",
        "flow.py",
        "--every",
        "3600",
        "-p",
        "day=x",
        "--timezone",
        "Europe/Berlin",
        "--json",
    )
    often = json.loads(shell(*every, "--anchor", "2026-01-01T00:17").stdout)
    assert datetime.fromisoformat(often["anchor"]) == datetime(2025, 12, 31, 23, 17, tzinfo=UTC)
    assert all(":17:00" in tick for tick in often["upcoming"])
    assert shell("delete", "often").returncode == 0
    assert [each["name"] for each in json.loads(shell("--json").stdout)] == ["daily", "nightly"]
    listed = shell().stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["schedule", "daily", "nightly"]
    assert listed[2].split()[2:8] == ["0", "3", "*", "*", "*", "Europe/Berlin"]
    assert shell("pause", "daily", "nightly").stdout == "daily paused\nnightly paused\n"
    assert "paused" in shell().stdout
    assert shell("resume", "nightly").stdout.startswith("nightly resumed, next tick ")
    run = shell("trigger", "nightly", "--import", "flow").stdout.strip()
    assert stack.client.get(run).params["day"].startswith("20")
    filled = shell("backfill", "nightly", "--from", "2026-03-28", "--to", "2026-03-31T03:00:00+02:00")
    assert filled.stdout == "3 ticks queued\n"
    assert len(shell("show", "nightly").stdout.partition("next ticks")[2].split("\n  ")) == 6
    assert shell("delete", "daily", "nightly").stdout == "daily deleted\nnightly deleted\n"
    assert stack.client.schedules.list() == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("create", "x", "flow.py", "--cron", "0 25 * * *", "-p", "day=x"),
            "cron '0 25 * * *': its hour cannot be read",
        ),
        (("create", "x", "flow.py", "--cron", "@daily"), "parameter 'day': is missing"),
        (("create", "x", "flow.py", "-p", "day=x"), 'give either cron="0 3 * * *" or every=seconds'),
        (("create", "x", "flow.py", "--every", "60", "--anchor", "noon"), "'noon' is not a time"),
        (
            ("create", "x", "flow.py", "--cron", "@daily", "--anchor", "2026-01-01"),
            "from which --every counts",
        ),
        (("pause", "nightly"), "there is no schedule 'nightly'"),
        (("backfill", "nightly", "--from", "x", "--to", "y"), "there is no schedule 'nightly'"),
        (("apply", "--import", "nowhere"), "nowhere"),
    ],
)
def test_what_is_wrong_is_one_line_without_a_traceback(
    shell: Shell, arguments: tuple[str, ...], told: str
) -> None:
    """Exit code 2 for a command that was wrong, and the fix."""
    done = shell(*arguments)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr
