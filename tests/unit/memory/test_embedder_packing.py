"""How texts are put into sequences."""

from __future__ import annotations

from itertools import pairwise

import pytest

from trellis.memory.embedders.packing import packs


@pytest.mark.parametrize("lengths", [[], [5], [3, 4, 5, 6, 7, 8], [9, 9, 9], [1] * 40, [12, 1, 30, 1, 1]])
def test_every_token_is_in_one_sequence_and_no_text_is_cut(lengths: list[int]) -> None:
    found = packs(lengths, 10)
    borders = {sum(lengths[:count]) for count in range(len(lengths) + 1)}
    assert {edge for pack in found for edge in pack} <= borders
    assert all(one[1] == other[0] for one, other in pairwise(found))
    assert (found[0][0], found[-1][1]) == (0, sum(lengths)) if lengths else found == []


def test_a_sequence_holds_as_much_as_it_may_and_a_longer_text_is_alone() -> None:
    assert packs([4, 6, 1, 11, 2], 10) == [(0, 10), (10, 11), (11, 22), (22, 24)]
