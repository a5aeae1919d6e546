"""The client's side of the embed queue: vectors from the workers that consume it.

The law: a call for which no answer has come for its timeout ends with an error that says whether nobody listens or too
few do.
What is lost on the way is asked for once more. All vectors of this embedder are of one model: a worker that serves
another one is refused, and says so.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from kombu.exceptions import KombuError

from ...tasks.app import sender
from ...tasks.errors import EmbedderUnavailable, EmbeddingError, TextRefused
from .batching import MOST, by_length
from .link import GONE, connect
from .perprocess import PerProcess
from .protocol import Vectors, checked
from .wire import (
    ASK,
    NUDGE,
    TASK,
    UNKNOWN,
    Names,
    Reply,
    Request,
    ask_arguments,
    read_reply,
)

LOOK_SECONDS = 1.0  # a caller that has waited for so long looks whether a worker is awake
IN_FLIGHT = 8  # requests of one call at a time: enough for a worker to find the next pass ready
ATTEMPTS = 2

Call = Callable[[], None]


class RemoteEmbedder:
    """The embedder of whichever worker consumes the embed queue."""

    def __init__(
        self,
        broker_url: str,
        *,
        queue: str = "embed",
        asks: str = "",
        timeout: float = 30.0,
        call: Call | None = None,
    ) -> None:
        """asks: the embedder that the workers are expected to serve (as TRELLIS_EMBEDDER says it), "" for any.

        timeout: seconds without any answer, both attempts together. call: how a worker is called, by Celery.
        """
        self.queue = queue
        self._names = Names(queue)
        self._asks = asks
        self._timeout = timeout
        self._redis: PerProcess[Any] = PerProcess(lambda: connect(broker_url, read=LOOK_SECONDS + 4.0))
        self._celery = PerProcess(lambda: sender(broker_url))
        self._call = call or self._send
        self._known: tuple[str, int] | None = None
        self._knowing = threading.Lock()

    def __repr__(self) -> str:
        return f"RemoteEmbedder(queue={self.queue!r}, asks={self._asks!r})"

    @property
    def model(self) -> str:
        """The model of the workers; asks them once."""
        return self._described()[0]

    @property
    def dims(self) -> int:
        """Numbers in a vector; asks the workers once."""
        return self._described()[1]

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of the texts, of a worker.

        Raises EmbedderUnavailable (nobody listens, too few do, Redis is away), and what the worker's embedder raises.
        """
        found = checked(texts, self._known[0] if self._known else UNKNOWN)
        if not found:
            return np.empty((0, self.dims), dtype=np.float32)
        parts = by_length(found, MOST)
        replies = self._asked([tuple(found[place] for place in part) for part in parts], parts)
        rows = np.empty((len(found), replies[0].dims), dtype=np.float32)
        for part, reply in zip(parts, replies, strict=True):
            self._know(reply)
            rows[part] = np.frombuffer(reply.data, dtype="<f4").reshape(reply.count, reply.dims)
        return rows

    def _described(self) -> tuple[str, int]:
        if self._known is None:
            (reply,) = self._asked([()], [[]])
            self._know(reply)
        assert self._known is not None
        return self._known

    def _know(self, reply: Reply) -> None:
        with self._knowing:
            if self._known is None:
                self._known = reply.model, reply.dims
        if self._known != (reply.model, reply.dims):
            raise EmbeddingError(
                self._known[0],
                f"a worker of the queue {self.queue!r} serves {reply.model} with {reply.dims} dimensions: give all of "
                "its workers the same TRELLIS_EMBEDDER, then start this process again",
            )

    def _asked(self, groups: list[tuple[str, ...]], places: list[list[int]]) -> list[Reply]:
        """The replies to the groups, in their order. Lost ones are asked for once more."""
        replies: list[Reply | None] = [None] * len(groups)
        error: Exception | None = None
        for _ in range(ATTEMPTS):
            missing = [number for number, reply in enumerate(replies) if reply is None]
            try:
                self._attempt(groups, places, replies, missing)
            except (*GONE, KombuError) as gone:
                error = gone
            if all(reply is not None for reply in replies):
                return [reply for reply in replies if reply is not None]
        raise self._silence(error) from error

    def _attempt(
        self,
        groups: list[tuple[str, ...]],
        places: list[list[int]],
        replies: list[Reply | None],
        missing: list[int],
    ) -> None:
        """Ask for the missing replies, a few at a time, until none comes any more, and put them in place."""
        patience = self._timeout / ATTEMPTS
        until = time.monotonic() + patience
        waiting: dict[str, int] = {}
        left = list(reversed(missing))
        sent: dict[str, Request] = {}
        try:
            while (left or waiting) and (seconds := until - time.monotonic()) > 0:
                fresh: dict[str, Request] = {}
                while left and len(waiting) < IN_FLIGHT:
                    request = Request(uuid.uuid4().hex, self._asks, groups[left[-1]])
                    fresh[self._names.reply(request.id)] = request
                    waiting[self._names.reply(request.id)] = left.pop()
                if fresh:
                    sent.update(fresh)
                    self._ask(list(fresh.values()), 2 * patience)  # they are withdrawn before, if we live
                answer = self._redis.get().blpop(list(waiting), timeout=min(seconds, LOOK_SECONDS))
                if answer is None:
                    self._nudge()
                    continue
                key = answer[0].decode()
                number = waiting.pop(key)
                sent.pop(key)
                replies[number] = _read(answer[1], places[number])
                until = time.monotonic() + patience
        finally:
            self._withdraw(list(sent.values()))

    def _ask(self, requests: list[Request], seconds: float) -> None:
        keys, values = ask_arguments(self._names, requests, max(int(seconds * 1000), 1))
        if self._redis.get().eval(ASK, len(keys), *keys, *values):
            self._call()

    def _nudge(self) -> None:
        """Call a worker where none is awake: the call of before may be lost, or its worker dead."""
        keys, values = self._names.call()
        if self._redis.get().eval(NUDGE, len(keys), *keys, *values):
            self._call()

    def _withdraw(self, requests: list[Request]) -> None:
        """Take back what nobody answered, so that no worker does it in vain."""
        if not requests:
            return
        try:
            with self._redis.get().pipeline(transaction=False) as pipeline:
                for each in requests:
                    pipeline.delete(self._names.request(each.id))
                    pipeline.lrem(self._names.pending, 1, each.entry)
                pipeline.execute()
        except GONE:
            return  # they expire by themselves

    def _send(self) -> None:
        self._celery.get().send_task(TASK, queue=self.queue, ignore_result=True)

    def _silence(self, error: Exception | None) -> EmbedderUnavailable:
        """Why no answer came."""
        model = self._known[0] if self._known else UNKNOWN
        start = f"`trellis embedder`, or `trellis worker --queues {self.queue}`"
        if error is None:
            try:
                waiting = int(self._redis.get().llen(self._names.pending))
                awake = bool(self._redis.get().exists(self._names.awake))
            except GONE as gone:
                error = gone
        if error is not None:
            return EmbedderUnavailable(
                model, f"Redis, which carries the queue {self.queue!r}, is away: {error}"
            )
        within = f"within {self._timeout:g} s (TRELLIS_EMBEDDER_TIMEOUT)"
        if awake:
            return EmbedderUnavailable(
                model,
                f"the workers of the queue {self.queue!r} did not answer {within}; {waiting} requests wait: start "
                f"more of them ({start}), or give them more time",
            )
        return EmbedderUnavailable(
            model,
            f"no worker that listens to the queue {self.queue!r} answered {within}: start one ({start})",
        )


def _read(body: bytes, places: list[int]) -> Reply:
    """A reply; where it is the refusal of a text, that text's place in the whole call."""
    try:
        return read_reply(body)
    except TextRefused as refused:
        if refused.index is None or refused.index >= len(places):
            raise
        place = places[refused.index]
        said = refused.problem.removeprefix(f"text {refused.index}: ")
        raise TextRefused(refused.model, place, said) from None
