"""The micro-batcher: what threads ask for together goes through the model together, and nobody suffers for others."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from trellis.memory.embedders import Vectors
from trellis.memory.embedders.batching import Batcher, BatchingEmbedder, by_length, patience, take
from trellis.memory.embedders.hashing import HashingEmbedder
from trellis.memory.embedders.passes import FIXED, passes
from trellis.tasks.errors import EmbedderUnavailable, EmbeddingError


class Gate:
    """An embedder that stops at a gate in each pass, and remembers them."""

    model, dims = "gate", 8

    def __init__(self, *, open_: bool = False) -> None:
        self.inner = HashingEmbedder(8)
        self.passes: list[list[str]] = []
        self.arrived = threading.Semaphore(0)
        self.may_go = threading.Event()
        if open_:
            self.may_go.set()

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.passes.append(list(texts))
        self.arrived.release()
        assert self.may_go.wait(10)
        if "breaks" in texts:
            raise ValueError("this text breaks the model")
        if "gone" in texts:
            raise EmbedderUnavailable(self.model, "gone")
        return self.inner.embed(texts)


@pytest.mark.parametrize(
    ("sizes", "count"), [([1], 1), ([1, 1, 1], 3), ([16, 16, 1], 2), ([40, 1], 1), ([31, 2], 1), ([1, 40], 1)]
)
def test_a_pass_takes_as_many_calls_as_fit_and_at_least_one(sizes: list[int], count: int) -> None:
    assert take(sizes, 32) == count


@pytest.mark.parametrize(
    ("sizes", "waited", "company", "left"),
    [
        ([1], 0.0, True, 0.005),
        ([1], 0.002, True, 0.003),
        ([1], 0.009, True, 0.0),
        ([32], 0.0, True, 0.0),
        ([1], 0.0, False, 0.0),
        ([1], -1.0, True, 0.005),
    ],
)
def test_a_pass_waits_for_five_milliseconds_at_most_and_only_where_others_are_about(
    sizes: list[int], waited: float, company: bool, left: float
) -> None:
    found = patience(sizes, 100.0, 100.0 + waited, most=32, window=0.005, company=company)
    assert found == pytest.approx(left, abs=1e-9)


def test_parts_hold_each_place_once_and_like_with_like() -> None:
    texts = ["a" * length for length in (5, 1, 9, 1, 7, 3, 8)]
    parts = by_length(texts, 3)
    assert [[len(texts[place]) for place in part] for part in parts] == [[9, 8, 7], [5, 3, 1], [1]]
    assert sorted(place for part in parts for place in part) == list(range(7))
    assert by_length([], 3) == []


@pytest.mark.parametrize("seed", range(5))
def test_passes_hold_each_text_once_and_cost_no_more_than_any_others(seed: int) -> None:
    """Against every way to cut the sorted texts."""
    dice = random.Random(seed)
    lengths = [dice.choice([3, 30, 100, 400, 900]) + dice.randrange(20) for _ in range(dice.randrange(1, 10))]
    most = dice.randrange(1, 6)
    found = passes(lengths, most)
    assert sorted(place for each in found for place in each) == list(range(len(lengths)))
    assert max(len(each) for each in found) <= most
    ordered = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    assert [place for each in found for place in each] == ordered

    def cost(cuts: Sequence[Sequence[int]]) -> int:
        return sum(FIXED + len(each) * max(lengths[place] for place in each) for each in cuts)

    every = []
    for marks in itertools.product([False, True], repeat=len(lengths) - 1):
        ends = [number + 1 for number, mark in enumerate(marks) if mark] + [len(lengths)]
        cuts = [ordered[begin:end] for begin, end in itertools.pairwise([0, *ends])]
        if max(map(len, cuts)) <= most:
            every.append(cost(cuts))
    assert cost(found) == min(every)


def test_texts_of_a_length_go_together_and_a_long_one_does_not_make_short_ones_wait() -> None:
    assert sorted(len(each) for each in passes([50] * 70)) == [6, 32, 32]
    assert [len(each) for each in passes([40] * 15 + [1200])] == [1, 15]
    assert passes([]) == []


def test_calls_that_come_during_a_pass_share_the_next_one() -> None:
    """Sixteen callers of one text each: two passes, and to each its own vector."""
    gate = Gate()
    embedder = BatchingEmbedder(gate, window=0.0)
    with ThreadPoolExecutor(17) as pool:
        first = pool.submit(embedder.embed, ["first"])
        assert gate.arrived.acquire(timeout=10)
        rest = [pool.submit(embedder.embed, [f"text {number}"]) for number in range(16)]
        batcher = embedder._batcher.get()
        with batcher._changed:
            assert batcher._changed.wait_for(lambda: len(batcher._calls) == 16, 10)
        gate.may_go.set()
        answers = [each.result(10) for each in (first, *rest)]
    assert [len(each) for each in gate.passes] == [1, 16]
    for text, answer in zip(["first", *(f"text {number}" for number in range(16))], answers, strict=True):
        assert np.array_equal(answer, gate.inner.embed([text]))
    embedder.close()


def _together(gate: Gate, *calls: list[str]) -> list[object]:
    """What calls get that share one pass: their vectors or their errors."""
    batcher = Batcher(gate.embed, window=0.0)
    blocker = batcher.put(["blocker"])
    assert gate.arrived.acquire(timeout=10)
    futures = [batcher.put(call) for call in calls]
    gate.may_go.set()
    blocker.result(10)
    found = [each.exception(10) or each.result() for each in futures]
    batcher.close()
    return found


def test_a_text_that_breaks_the_model_is_its_callers_error_alone() -> None:
    gate = Gate()
    first, second, third = _together(gate, ["fine"], ["also fine", "breaks"], ["fine too"])
    assert isinstance(second, ValueError)
    assert np.array_equal(first, gate.inner.embed(["fine"]))
    assert np.array_equal(third, gate.inner.embed(["fine too"]))


def test_an_embedder_that_is_away_is_not_asked_again_for_each_caller() -> None:
    gate = Gate()
    found = _together(gate, ["gone"], ["fine"])
    assert [type(each) for each in found] == [EmbedderUnavailable] * 2
    assert len(gate.passes) == 2


def test_too_few_vectors_are_an_error_and_not_somebody_elses() -> None:
    batcher = Batcher(lambda texts: np.zeros((1, 8), dtype=np.float32))
    with pytest.raises(EmbeddingError, match="1 vectors came back for 2 texts"):
        batcher.put(["a", "b"]).result(10)
    batcher.close()


def test_closing_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    gate = Gate()
    batcher = Batcher(gate.embed, window=30.0)
    accepted = [batcher.put(["a"]), batcher.put(["b"])]
    gate.may_go.set()
    batcher.close()
    assert all(each.done() for each in accepted)
    with pytest.raises(EmbedderUnavailable, match="stopping"):
        batcher.put(["late"])


def test_a_large_call_goes_in_parts_and_comes_back_in_its_order() -> None:
    gate = Gate(open_=True)
    embedder = BatchingEmbedder(gate, most=4)
    texts = [f"{'x' * (number * 7 % 11)} {number}" for number in range(10)]
    assert np.array_equal(embedder.embed(texts), gate.inner.embed(texts))
    assert [len(each) for each in gate.passes] == [4, 4, 2]
    assert embedder.embed([]).shape == (0, 8)
    assert (embedder.model, embedder.dims) == ("gate", 8)
    embedder.close()
