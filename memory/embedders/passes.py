"""Which texts go through a model together: pure.

The law: every place once, no pass larger than `most`, and no cheaper way to cut the sorted texts into passes.
A pass costs something of its own and is padded to its longest text, so it costs `FIXED + texts * longest`, in
characters. MiniLM on one core: 8 ms a pass, 2.5 ms for the library's way there, 0.29 ms a token, so a pass of its
own pays from some 36 tokens of padding on. Sixteen turns of a conversation take 0.65 of the time of one padded pass.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST = 32  # texts in a pass: beyond it a core only does more of the same
FIXED = 160  # characters


def passes(lengths: Sequence[int], most: int = MOST, fixed: int = FIXED) -> list[list[int]]:
    """The places of the texts with these lengths (characters) in passes, the longest first."""
    places = sorted(range(len(lengths)), key=lambda place: lengths[place], reverse=True)
    costs, begins = [0.0], [0]
    for end in range(1, len(places) + 1):
        # The pass that ends here may begin at any of the last `most`; what is before it is solved already.
        cost, begin = min(
            (costs[begin] + fixed + (end - begin) * lengths[places[begin]], begin)
            for begin in range(max(end - most, 0), end)
        )
        costs.append(cost)
        begins.append(begin)
    found: list[list[int]] = []
    end = len(places)
    while end:
        found.append(places[begins[end] : end])
        end = begins[end]
    return found[::-1]
