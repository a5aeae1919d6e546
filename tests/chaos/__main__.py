"""`python -m chaos`: plays cases in lanes beside each other and prints what became of them."""

from __future__ import annotations

import argparse
import queue
import sys
import tempfile
import threading
from pathlib import Path

from .cases import Case, Result, cases, named, play
from .report import closing, line, table
from .stage import stage


def lane(number: int, waiting: queue.SimpleQueue[Case], results: queue.SimpleQueue[Result | BaseException | None], home: Path) -> None:
    """Play what waits on a stage of its own; after a failure on a new one, since that may have been left broken."""
    stages = 0
    try:
        while not waiting.empty():
            stages += 1
            with stage(home / f"lane-{number}-{stages}") as set_up:
                while not waiting.empty():
                    try:
                        case = waiting.get_nowait()
                    except queue.Empty:
                        break
                    result = play(set_up, case)
                    results.put(result)
                    if result.problems:
                        break
        results.put(None)
    except BaseException as broken:  # the harness itself: nothing to pass over
        results.put(broken)


def main() -> int:
    """The number of failures decides the exit status."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--cases", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="one case, by the name that a failure printed")
    parser.add_argument("--lanes", type=int, default=2, help="stages beside each other")
    parser.add_argument("--keep", type=Path, help="a folder for logs, ledger and data, which is kept")
    given = parser.parse_args()
    wanted = [named(given.only)] if given.only else list(cases(given.cases, given.seed))
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in wanted:
        waiting.put(case)
    results: queue.SimpleQueue[Result | BaseException | None] = queue.SimpleQueue()
    lanes = max(1, min(given.lanes, len(wanted)))
    with tempfile.TemporaryDirectory(prefix="trellis-chaos-") as made:
        home = given.keep or Path(made)
        for number in range(lanes):
            threading.Thread(target=lane, args=(number, waiting, results, home), daemon=True).start()
        found: list[Result] = []
        while lanes:
            result = results.get()
            if result is None:
                lanes -= 1
                continue
            if isinstance(result, BaseException):
                raise result
            found.append(result)
            print(line(result, len(found), len(wanted)), flush=True)
        print(table(found))
        print(closing(found, len(wanted)))
    return 0 if len(found) == len(wanted) and not any(result.problems for result in found) else 1


if __name__ == "__main__":
    sys.exit(main())
