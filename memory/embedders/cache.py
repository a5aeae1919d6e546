"""What was embedded once is not embedded again: kept by model and text, in this process and in Redis.

The law: a cached vector is the one that was computed, to the last bit, by the same model for the same text. Redis is a
convenience: when it is away, that costs its hits and one line in the log a minute, and no answer. A call of more than
`BULK` texts is looked up in this process alone and leaves nothing behind: an import repeats nothing, and would only
push out what does.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...tasks.logs import get_logger
from .before import Before
from .link import GONE, connect
from .perprocess import PerProcess
from .protocol import Embedder, Vectors, checked

BULK = 64  # texts
RETRY_SECONDS = 5.0  # without Redis after it failed
TELL_SECONDS = 60.0  # between two lines about it
_PREFIX = "trellis:embedding"

log = get_logger("trellis.memory")


@dataclass(slots=True)
class Counts:
    """Texts since the start of this process: found `here`, found in Redis (`shared`), `computed`; Redis' `failures`."""

    here: int = 0
    shared: int = 0
    computed: int = 0
    failures: int = 0


class _Kept:
    """This process' part: the vectors used last, and how Redis is."""

    def __init__(self, size: int) -> None:
        self.lock = threading.Lock()
        self.counts = Counts()
        self.away_until = self.tell_at = float("-inf")  # time.monotonic()
        self._size = size
        self._rows: OrderedDict[bytes, Vectors] = OrderedDict()

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Vectors]:
        found = {}
        with self.lock:
            for key in keys:
                if (row := self._rows.get(key)) is not None:
                    self._rows.move_to_end(key)
                    found[key] = row
        return found

    def put(self, rows: Mapping[bytes, Vectors]) -> None:
        with self.lock:
            for key, row in rows.items():
                self._rows[key] = row
                self._rows.move_to_end(key)
            while len(self._rows) > self._size:
                self._rows.popitem(last=False)

    def count(self, **more: int) -> None:
        with self.lock:
            for name, number in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + number)


class CachingEmbedder(Before):
    """An embedder that remembers."""

    def __init__(
        self, inner: Embedder, *, size: int = 4096, redis_url: str | None = None, seconds: float = 3600.0
    ) -> None:
        """size: vectors kept in this process. redis_url: where they are shared, for so many seconds."""
        super().__init__(inner)
        self._seconds = seconds
        self._kept = PerProcess(lambda: _Kept(size))
        self._redis: PerProcess[Any] | None = None
        if redis_url is not None and seconds > 0:
            address = redis_url
            self._redis = PerProcess(lambda: connect(address))

    @property
    def counts(self) -> Counts:
        """What this process found where."""
        return self._kept.get().counts

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of the texts; those that are not known come from the embedder behind it. Raises what that raises."""
        found = checked(texts, self.model)
        if not found:
            return self.inner.embed([])
        kept = self._kept.get()
        keys = [hashlib.sha256(text.encode()).digest() for text in found]
        wanted = dict(zip(keys, found, strict=True))  # each text once
        rows = kept.get(wanted)
        kept.count(here=len(rows))
        bulk = len(found) > BULK
        if not bulk and (missing := [key for key in wanted if key not in rows]):
            shared = self._shared(kept, missing)
            kept.put(shared)
            kept.count(shared=len(shared))
            rows.update(shared)
        if missing := [key for key in wanted if key not in rows]:
            computed = self.inner.embed([wanted[key] for key in missing])
            # Copies: a row of a large array would keep all of it alive.
            made = {key: row.copy() for key, row in zip(missing, computed, strict=True)}
            kept.count(computed=len(made))
            rows.update(made)
            if not bulk:
                kept.put(made)
                self._share(kept, made)
        if (
            len({len(row) for row in rows.values()}) > 1
        ):  # Redis had vectors of another length under this model's name
            return self.inner.embed(found)
        return np.stack([rows[key] for key in keys])

    def _key(self, key: bytes) -> str:
        return f"{_PREFIX}:{self.model}:{key.hex()}"

    def _shared(self, kept: _Kept, keys: list[bytes]) -> dict[bytes, Vectors]:
        """What Redis has of these, as far as it looks like vectors."""
        if self._redis is None or time.monotonic() < kept.away_until:
            return {}
        try:
            answers = self._redis.get().mget([self._key(key) for key in keys])
        except GONE as error:
            self._lost(kept, error)
            return {}
        found = {key: _row(answer) for key, answer in zip(keys, answers, strict=True) if answer}
        rows = {key: row for key, row in found.items() if row is not None}
        return rows if len({len(row) for row in rows.values()}) == 1 else {}

    def _share(self, kept: _Kept, rows: Mapping[bytes, Vectors]) -> None:
        if self._redis is None or time.monotonic() < kept.away_until:
            return
        try:
            with self._redis.get().pipeline(transaction=False) as pipeline:
                for key, row in rows.items():
                    pipeline.set(self._key(key), row.astype("<f4").tobytes(), px=int(self._seconds * 1000))
                pipeline.execute()
        except GONE as error:
            self._lost(kept, error)

    def _lost(self, kept: _Kept, error: Exception) -> None:
        now = time.monotonic()
        kept.count(failures=1)
        kept.away_until = now + RETRY_SECONDS
        if now >= kept.tell_at:
            kept.tell_at = now + TELL_SECONDS
            log.warning("embedding.cache.away", problem=str(error), failures=kept.counts.failures)


def _row(answer: bytes) -> Vectors | None:
    """A vector as Redis has it: float32 of length 1; anything else is none of ours."""
    if len(answer) % 4:
        return None
    row = np.frombuffer(answer, dtype="<f4").astype(np.float32)
    return row if abs(float(row @ row) - 1.0) < 1e-3 else None
