"""What the suite prints: a line a case, the table, how to play a failure alone, and the closing line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .cases import FAULTS, POINTS
from .play import Result

_SHOWN = 12  # problems of one case


def line(result: Result, number: int, count: int) -> str:
    """One case as it is over."""
    case = result.case
    said = "failed" if result.problems else "passed"
    head = f"{number:>5}/{count}  {said}  {result.seconds:5.1f} s  {case.point}, {case.fault}  (seed {case.seed})"
    shown = [f"           {problem}" for problem in result.problems[:_SHOWN]]
    if len(result.problems) > _SHOWN:
        shown.append(f"           and {len(result.problems) - _SHOWN} more")
    return "\n".join([head, *shown])


def table(results: Sequence[Result]) -> str:
    """Kill point by fault: how many cases passed, and how many failed where some did."""
    played = Counter((result.case.point, result.case.fault) for result in results)
    failed = Counter((result.case.point, result.case.fault) for result in results if result.problems)
    width = max(map(len, FAULTS))
    rows = ["", " " * width + "  " + "  ".join(f"{number:>7}" for number in range(1, len(POINTS) + 1))]
    for fault in FAULTS:
        cells = [_cell(played[point, fault], failed[point, fault]) for point in POINTS]
        rows.append(f"{fault:<{width}}  " + "  ".join(f"{cell:>7}" for cell in cells))
    rows += ["", *(f"{number:>2} {point}" for number, point in enumerate(POINTS, 1)), ""]
    return "\n".join(rows)


def _cell(played: int, failed: int) -> str:
    if not played:
        return "·"
    return f"{played - failed}/{played}" if failed else str(played)


def again(result: Result) -> str:
    """The command that plays a case together with those that it was played with."""
    return f"make chaos ONLY={','.join(case.name for case in result.wave)}"


def closing(results: Sequence[Result], wanted: int) -> str:
    """The failures with the way to play each alone; last `N passed, N failed`."""
    failures = [result for result in results if result.problems]
    lines = [f"failed: seed {result.case.seed}; play it again: {again(result)}" for result in failures]
    missing = wanted - len(results)
    if missing:
        lines.append(f"{missing} cases were not played: their stage did not start")
    passed = len(results) - len(failures)
    return "\n".join([*lines, f"{passed} passed, {len(failures) + missing} failed"])
