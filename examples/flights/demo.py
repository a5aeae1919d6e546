"""What `make demo` runs: a stack of its own, the workflow with its live view, the totals, the end of it all.

The stack is `trellis up` in a folder of its own, started like any other program and stopped whatever
happens. The run begins as soon as Postgres is there: it is accepted by the journal, and waits for the worker.

    python examples/flights/demo.py [FOLDER FOR THE REPORT]
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from trellis.tasks.processes import end, spawn, tail
from trellis.tasks.settings import STACK_FILE, load
from trellis.workflows import Client

HERE = Path(__file__).resolve().parent
TRELLIS = str(Path(sys.executable).with_name("trellis"))


def main() -> int:
    """Run the demo. The exit status is that of `trellis run`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # with all that `finally` says
    console = Console(highlight=False)
    folder = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else HERE / "out"
    home = load().home.absolute() / "demo"
    began = time.monotonic()
    with stack(home, console) as up:
        console.print(f"Postgres and Redis run after {time.monotonic() - began:.1f} s, the worker follows.\n")
        status = run(up, home, folder)
        if status == 0:
            show(home, console)
    console.print(f"The stack is stopped. The demo took {time.monotonic() - began:.1f} s.")
    return status


@contextmanager
def stack(home: Path, console: Console) -> Iterator[subprocess.Popen[bytes]]:
    """`trellis up`, from the moment at which it takes runs; it dies with this process."""
    home.mkdir(parents=True, exist_ok=True)
    log = home / "demo.log"
    console.print(f"Starting the stack in {home} (log: {log.name}) …", soft_wrap=True)
    log.unlink(missing_ok=True)
    up = spawn(
        [TRELLIS, "up", f"--home={home}", "--no-flower", "--import=flights"], log=log, env=environment(home)
    )
    try:
        while not announced(home, up.pid):
            if up.poll() is not None:
                raise SystemExit(f"`trellis up` ended with status {up.returncode}:\n{tail(log, 30)}")
            time.sleep(0.05)
        yield up
        if up.poll() is not None:
            raise SystemExit(f"`trellis up` ended early with status {up.returncode}:\n{tail(log, 30)}")
    finally:
        end(up, ((signal.SIGTERM, 60.0),))


def announced(home: Path, pid: int) -> bool:
    """Whether this stack, and not one that was killed, says where it is."""
    try:
        facts = json.loads((home / STACK_FILE).read_text())
    except (OSError, ValueError):
        return False
    return bool(facts["pid"] == pid)


def run(up: subprocess.Popen[bytes], home: Path, folder: Path) -> int:
    """`trellis run` in this terminal; given up where the stack ends."""
    command = [TRELLIS, "run", str(HERE / "flights.py"), "--wait", "--param", f"folder={folder}"]
    runner = subprocess.Popen(command, env=environment(home))
    try:
        while up.poll() is None:
            try:
                return runner.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        return 1
    finally:
        end(runner, ((signal.SIGTERM, 5.0),))


def show(home: Path, console: Console) -> None:
    """The totals of the last run, and where its report is."""
    with Client(load(home=home)) as client:
        last = client.list("flights", limit=1)[0]
        carriers, total = client.result(last, "by_carrier"), client.result(last, "report")
    title = "Flights from New York in 2013, by airline; mean delays in minutes"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("airline", no_wrap=True)
    for name in ("flights", "cancelled", "late", "departure", "arrival"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in carriers:
        table.add_row(group["group"][3:], *numbers(group), end_section=group is carriers[-1])
    table.add_row("all", *numbers(total), style="bold")
    console.print()
    console.print(table)
    console.print()
    console.print(f"report: {total['markdown']}\nchart:  {total['chart']}\n", soft_wrap=True)


def numbers(group: dict[str, float]) -> list[str]:
    """The cells of a row."""
    return [
        f"{group['flights']:,}",
        f"{group['cancelled']:,}",
        f"{group['late_share']:.1%}",
        f"{group['departure_delay']:.1f}",
        f"{group['arrival_delay']:.1f}",
    ]


def environment(home: Path) -> dict[str, str]:
    """Ours, with the example's modules importable and the stack's folder known."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "TRELLIS_HOME": str(home)}


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
