"""The cache in front of an embedder, in this process; with Redis see tests/integration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from trellis.memory.embedders import Vectors, cache
from trellis.memory.embedders.cache import BULK, CachingEmbedder
from trellis.memory.embedders.hashing import HashingEmbedder
from trellis.tasks.errors import TextRefused


class Counted(HashingEmbedder):
    """Remembers what it had to compute."""

    def __init__(self) -> None:
        super().__init__(16)
        self.computed: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.computed.append(list(texts))
        return super().embed(texts)


def test_a_text_is_computed_once_and_comes_back_to_the_last_bit() -> None:
    inner = Counted()
    embedder = CachingEmbedder(inner)
    first = embedder.embed(["a b", "c", "a b"])
    again = embedder.embed(["c", "d", "a b"])
    assert inner.computed == [["a b", "c"], ["d"]]
    assert np.array_equal(first[0], first[2])
    assert np.array_equal(again[[2, 0]], first[:2])
    assert (embedder.model, embedder.dims, embedder.embed([]).shape) == ("hashing-16", 16, (0, 16))
    counts = embedder.counts
    assert (counts.here, counts.shared, counts.computed, counts.failures) == (2, 0, 3, 0)


def test_what_a_caller_does_to_its_vectors_is_its_own_business() -> None:
    embedder = CachingEmbedder(Counted())
    rows = embedder.embed(["a"])
    rows[:] = 0
    assert np.array_equal(embedder.embed(["a"]), HashingEmbedder(16).embed(["a"]))


def test_the_texts_used_last_are_kept() -> None:
    inner = Counted()
    embedder = CachingEmbedder(inner, size=2)
    for texts in (["a"], ["b"], ["a"], ["c"], ["a"], ["b"]):
        embedder.embed(texts)
    assert inner.computed == [["a"], ["b"], ["c"], ["b"]]


def test_texts_that_only_look_alike_are_different_texts() -> None:
    inner = Counted()
    CachingEmbedder(inner).embed(["Straße", "strasse", "Straße ", "Straße"])
    assert inner.computed == [["Straße", "strasse", "Straße "]]


def test_a_bulk_call_pushes_nothing_out() -> None:
    inner = Counted()
    embedder = CachingEmbedder(inner, size=BULK)
    embedder.embed(["kept"])
    embedder.embed([f"text {number}" for number in range(BULK)] + ["kept"])
    embedder.embed(["kept", "text 1"])
    assert [len(each) for each in inner.computed] == [1, BULK, 1]
    assert inner.computed[2] == ["text 1"]


def test_what_is_kept_of_a_large_answer_is_no_window_into_it() -> None:
    """Else one row would keep all the others in memory."""
    embedder = CachingEmbedder(Counted())
    embedder.embed(["a", "b", "c"])
    assert all(row.base is None for row in embedder._kept.get()._rows.values())


def test_a_size_of_nothing_keeps_nothing() -> None:
    inner = Counted()
    embedder = CachingEmbedder(inner, size=0)
    embedder.embed(["a"])
    embedder.embed(["a"])
    assert len(inner.computed) == 2


def test_what_is_no_text_is_refused_before_anything_is_asked() -> None:
    inner = Counted()
    with pytest.raises(TextRefused):
        CachingEmbedder(inner).embed(["fine", "\udcff"])
    assert inner.computed == []


def test_without_redis_answers_come_all_the_same_and_it_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, logged once a minute, and asked again only after some seconds."""
    now = 1000.0
    lines: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(cache.time, "monotonic", lambda: now)
    monkeypatch.setattr(
        cache.log, "warning", lambda event, **facts: lines.append((event, facts)), raising=False
    )
    embedder = CachingEmbedder(Counted(), redis_url="redis://:hunter2@127.0.0.1:1/0")
    for number in range(3):
        assert len(embedder.embed([f"text {number}"])) == 1
    assert embedder.counts.failures == 1
    now += cache.RETRY_SECONDS + 1
    embedder.embed(["another"])
    assert (embedder.counts.failures, embedder.counts.computed) == (2, 4)
    assert [event for event, _ in lines] == ["embedding.cache.away"]
    assert "hunter2" not in repr(lines)
