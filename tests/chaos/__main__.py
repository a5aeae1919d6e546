"""`python -m chaos`: plays cases in lanes beside each other and prints what became of them."""

from __future__ import annotations

import argparse
import logging
import queue
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .cases import FAULTS, POINTS, TOGETHER, Case, Wave, cases, named_wave, waves
from .play import Result, season
from .report import closing, line, table
from .stage import stage

Answer = Result | BaseException | None


def lane(
    number: int, waiting: queue.SimpleQueue[Wave], answers: queue.SimpleQueue[Answer], home: Path
) -> None:
    """Play what waits, on a stage of its own; after a failure on a new one."""
    stages = 0
    try:
        while not waiting.empty():
            stages += 1
            with stage(home / f"lane-{number}-{stages}") as set_up:
                for result in season(set_up, _taken(waiting)):
                    answers.put(result)
        answers.put(None)
    except BaseException as broken:  # the harness itself: nothing to pass over
        answers.put(broken)


def _taken(waiting: queue.SimpleQueue[Wave]) -> Iterator[Wave]:
    with suppress(queue.Empty):
        while True:
            yield waiting.get_nowait()


def results(answers: queue.SimpleQueue[Answer], lanes: int, count: int) -> list[Result]:
    """What the lanes found, printed as it comes; the last word on a case counts."""
    found: dict[Case, Result] = {}
    while lanes:
        answer = answers.get()
        if answer is None:
            lanes -= 1
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found[answer.case] = answer
            print(line(answer, len(found), count), flush=True)
    return list(found.values())


def main() -> int:
    """The number of failures decides the exit status."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--cases", type=int, default=len(POINTS) * len(FAULTS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="begin with the case of this number, from 0 on")
    parser.add_argument("--only", help="the case of a name, or those of some names with commas, at once")
    parser.add_argument("--together", type=int, default=TOGETHER, help="cases at once on a stage")
    parser.add_argument("--lanes", type=int, default=2, help="stages beside each other")
    parser.add_argument("--keep", type=Path, help="a folder for logs, ledger and data, which is kept")
    given = parser.parse_args()
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # restarts of Postgres are no news here
    drawn = list(cases(given.cases, given.seed))[given.first :]
    planned = [named_wave(given.only)] if given.only else waves(drawn, given.together)
    wanted = [case for wave in planned for case in wave]
    waiting: queue.SimpleQueue[Wave] = queue.SimpleQueue()
    for wave in planned:
        waiting.put(wave)
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    lanes = max(1, min(given.lanes, len(planned)))
    with tempfile.TemporaryDirectory(prefix="trellis-chaos-") as made:
        home = given.keep or Path(made)
        for number in range(1, lanes + 1):
            threading.Thread(target=lane, args=(number, waiting, answers, home), daemon=True).start()
        found = results(answers, lanes, len(wanted))
        print(table(found))
        print(closing(found, len(wanted)))
    return 0 if len(found) == len(wanted) and not any(result.problems for result in found) else 1


if __name__ == "__main__":
    sys.exit(main())
