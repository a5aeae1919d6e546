"""The fault suite in its short form: cases of one seed, spread over all kill points and faults (`make chaos`)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chaos.cases import FAULTS, NONSENSE, POINTS, cases, named, named_wave, waves
from chaos.play import season
from chaos.report import again, line
from chaos.stage import stage

CASES = 64


def test_the_short_form_meets_every_kill_point_and_every_fault() -> None:
    """And no pair of them twice before all have had their turn."""
    short = list(cases(CASES, seed=1))
    assert {case.point for case in short} == set(POINTS)
    assert {case.fault for case in short} == set(FAULTS)
    whole = list(cases(len(POINTS) * len(FAULTS) - len(NONSENSE), seed=1))
    assert len({(case.point, case.fault) for case in whole}) == len(whole)
    assert [named(case.name) for case in short] == short
    together = waves(short)
    assert [case for wave in together for case in wave] == short
    assert all(len({case.fault for case in wave}) == len(wave) for wave in together)
    assert named_wave(",".join(case.name for case in together[0])) == together[0]


def test_every_run_ends_right_whatever_is_killed_stopped_lost_or_doubled(tmp_path: Path) -> None:
    """Judged by the ledger outside and the journal's own history (tests/chaos/laws.py)."""
    short = list(cases(CASES, seed=1))
    played = []
    with stage(tmp_path / "stage") as set_up:
        for result in season(set_up, waves(short)):
            print(line(result, len(played) + 1, len(short)))
            assert not result.problems, again(result)
            played.append(result.case)
    assert played == short
