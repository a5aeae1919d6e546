"""`make demo`, from its driver on: a stack, the run with its retry, the report, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "examples" / "flights" / "demo.py"


def running(mark: str) -> list[str]:
    """The commands of living processes that name `mark`."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in command:
            found.append(command)
    return found


def test_the_demo_runs_from_nothing_and_leaves_only_its_report(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "report"
    ended = subprocess.run(
        [sys.executable, str(DEMO), str(folder)],
        cwd=tmp_path,
        env={**os.environ, "TRELLIS_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    shown = ended.stdout + ended.stderr
    assert ended.returncode == 0, shown
    assert "failing on purpose: the first attempt to load 'weather' always fails" in shown
    assert "2 (1 retry)" in shown
    assert "36 succeeded" in shown
    assert f"report: {folder / 'report.md'}" in ended.stdout
    assert {path.name for path in folder.iterdir()} == {"report.md", "delays.png"}
    assert running(str(home)) == []
