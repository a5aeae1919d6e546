"""A micro-batcher: what several threads ask for at about the same time goes through the model together.

The law: texts wait for others for no longer than `window` seconds, and only where there were others a moment ago; a
call gets its own vectors or its own error. Where a pass of several calls fails, each of them is tried alone, so that a
text that breaks the model spoils nobody else's answer. `close` lets what was accepted finish, and refuses what comes
later.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from ...tasks.errors import EmbedderRefused, EmbedderUnavailable, EmbeddingError
from .before import Before
from .perprocess import PerProcess
from .protocol import Embedder, Vectors, checked

MOST = 32  # texts in a pass: MiniLM on one core gains nothing beyond
WINDOW = 0.005  # seconds


@dataclass(slots=True)
class Call:
    """Texts of one caller, and where it waits."""

    texts: list[str]
    arrived: float  # time.monotonic()
    answer: Future[Vectors] = field(default_factory=Future)


def take(sizes: Sequence[int], most: int) -> int:
    """How many of the calls with so many texts go into one pass: as many as fit into `most`, and at least one."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if total > most and count:
            return count
    return len(sizes)


def patience(
    sizes: Sequence[int], oldest: float, now: float, *, most: int, window: float, company: bool
) -> float:
    """Seconds for which a pass may still wait for more.

    None where it is full, where its first call has waited for `window`, or where the last pass had no `company`: one
    caller alone would wait for nobody.
    """
    if sum(sizes) >= most or not company:
        return 0.0
    return min(max(oldest + window - now, 0.0), window)


def by_length(texts: Sequence[str], most: int) -> list[list[int]]:
    """The places of the texts in parts of `most`, like with like: a pass is padded to its longest text."""
    places = sorted(range(len(texts)), key=lambda place: len(texts[place]), reverse=True)
    return [places[start : start + most] for start in range(0, len(places), most)]


class Batcher:
    """One thread before one embedder, for one process."""

    def __init__(
        self, embed: Callable[[list[str]], Vectors], *, most: int = MOST, window: float = WINDOW
    ) -> None:
        """embed: what is done with a pass. most: texts in it. window: seconds to wait for them."""
        self._embed = embed
        self._most = most
        self._window = window
        self._calls: deque[Call] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._company = False  # whether the last pass was for several
        self.passes = 0  # of the model
        self._thread = threading.Thread(target=self._work, name="embedding batches", daemon=True)
        self._thread.start()

    def put(self, texts: list[str]) -> Future[Vectors]:
        """Ask for vectors. Raises EmbedderUnavailable after `close`."""
        call = Call(texts, time.monotonic())
        with self._changed:
            if self._closed:
                raise EmbedderUnavailable("batches", "this process is stopping")
            self._calls.append(call)
            self._changed.notify()
        return call.answer

    def close(self) -> None:
        """Finish what was accepted, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while calls := self._next():
            self._run(calls)

    def _next(self) -> list[Call]:
        """The calls of the next pass; none when it is over."""
        with self._changed:
            while not self._calls:
                if self._closed:
                    return []
                self._changed.wait()
            while not self._closed:
                sizes = [len(call.texts) for call in self._calls]
                left = patience(
                    sizes,
                    self._calls[0].arrived,
                    time.monotonic(),
                    most=self._most,
                    window=self._window,
                    company=self._company,
                )
                if not left:
                    break
                self._changed.wait(left)
            count = take([len(call.texts) for call in self._calls], self._most)
            taken = [self._calls.popleft() for _ in range(count)]
            self._company = count > 1
        return [call for call in taken if call.answer.set_running_or_notify_cancel()] or self._next()

    def _run(self, calls: list[Call]) -> None:
        self.passes += 1
        ends = list(accumulate(len(call.texts) for call in calls))
        try:
            rows = self._embed([text for call in calls for text in call.texts])
            if len(rows) != ends[-1]:
                raise EmbeddingError("batches", f"{len(rows)} vectors came back for {ends[-1]} texts")
        except BaseException as error:
            if len(calls) == 1 or isinstance(error, EmbedderRefused | EmbedderUnavailable):
                for call in calls:
                    call.answer.set_exception(error)
                return
            for call in calls:
                self._run([call])
            return
        for call, end in zip(calls, ends, strict=True):
            call.answer.set_result(rows[end - len(call.texts) : end])


class BatchingEmbedder(Before):
    """An embedder whose concurrent calls share passes of the model."""

    def __init__(self, inner: Embedder, *, most: int = MOST, window: float = WINDOW) -> None:
        super().__init__(inner)
        self._most = most
        self._batcher = PerProcess(lambda: Batcher(inner.embed, most=most, window=window))

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of the texts, as the embedder behind it gives them. Raises what that raises for these texts."""
        found = checked(texts, self.model)
        if not found:
            return self.inner.embed([])
        # One pass after the other, so that a caller with a thousand texts lets those with one in between.
        rows: Vectors | None = None
        for part in by_length(found, self._most):
            answer = self._batcher.get().put([found[place] for place in part]).result()
            if rows is None:
                rows = np.empty((len(found), answer.shape[1]), dtype=np.float32)
            rows[part] = answer
        assert rows is not None
        return rows

    def close(self) -> None:
        """End this process's thread, after what it has accepted."""
        batcher = self._batcher.forget()
        if batcher is not None:
            batcher.close()
