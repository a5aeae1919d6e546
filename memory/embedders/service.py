"""The worker's side of the embed queue: the task `trellis.embed`, which drains what callers have asked for.

The law: one drain a process, and one pass of the model at a time, of up to 32 texts of whoever asked; a text waits for
others for 5 ms at most, until there are as many calls as in the last pass, and only where nothing else is to do. A call
gets its own vectors or its own error. The task is only a call to look; it ends when nothing has come for a moment, or
after some seconds with a call for the next, so a worker that is told to stop stops.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from celery import Task, signals

from ...tasks.app import app
from ...tasks.errors import (
    ConfigurationError,
    EmbedderRefused,
    EmbedderUnavailable,
    TrellisError,
)
from ...tasks.logs import get_logger
from ...tasks.settings import current
from . import choose
from .link import GONE, connect
from .perprocess import PerProcess
from .protocol import Embedder
from .wire import AWAKE_MS, NUDGE, REPLY_MS, TAKE, TASK, UNKNOWN, Names, Reply, Request, error_body

MOST = 32  # texts in a pass
WINDOW = 0.005  # seconds
LOOK = 0.001  # seconds between two looks for others
LINGER_SECONDS = 1.0  # without work, before the task ends
TERM_SECONDS = 5.0  # with work, before it makes room

log = get_logger("trellis.memory")


@dataclass(slots=True)
class Served:
    """What one drain did."""

    requests: int = 0
    texts: int = 0
    passes: int = 0


class Service:
    """An embedder for those who ask in Redis."""

    def __init__(self, link: Any, embedder: Callable[[], Embedder], accepts: Callable[[str], bool]) -> None:
        """link: a Redis client. embedder: made at its first use. accepts: whether it is what a caller expects."""
        self._link = link
        self._embedder = embedder
        self._accepts = accepts
        self._turn = threading.Lock()
        self._company = 0  # calls in the last pass

    def drain(
        self, queue: str, *, linger: float = LINGER_SECONDS, term: float = TERM_SECONDS
    ) -> tuple[Served, bool]:
        """Answer requests until none comes for `linger` seconds, or for `term`. Whether to call the next is the second.

        At once and for nothing where another thread of this process is at it. Raises redis.RedisError.
        """
        served = Served()
        if not self._turn.acquire(blocking=False):
            return served, False
        try:
            names = Names(queue)
            until = time.monotonic() + term
            for requests in self._taken(names, linger, until):
                self._answer(names, requests, served)
            # In this order: who asks after the first of them calls a worker, who asked before is seen by the second.
            self._link.delete(names.awake)
            keys, values = names.call()
            return served, bool(self._link.eval(NUDGE, len(keys), *keys, *values))
        finally:
            self._turn.release()

    def _taken(self, names: Names, linger: float, until: float) -> Iterator[list[Request]]:
        """The requests of each pass."""
        while time.monotonic() < until:
            requests = self._take(names)
            if not requests:
                popped = self._link.blpop(names.pending, timeout=linger)
                if popped is None:
                    return
                requests = self._take(names, popped[1].decode())
                late = time.monotonic() + WINDOW
                # As many were answered a moment ago, and ask again: together, then.
                while requests and len(requests) < self._company and time.monotonic() < late:
                    if _size(requests) >= MOST:
                        break
                    time.sleep(LOOK)
                    requests += self._take(names, most=MOST - _size(requests))
            if requests:
                self._company = len(requests)
                yield requests

    def _take(self, names: Names, *taken: str, most: int = MOST) -> list[Request]:
        found = self._link.eval(
            TAKE, 2, names.pending, names.awake, most, AWAKE_MS, names.request(""), *taken
        )
        requests = []
        for id_, body in zip(found[::2], found[1::2], strict=True):
            try:
                requests.append(Request.read(id_.decode(), body))
            except ValueError as error:
                self._reply(names, {id_.decode(): error_body(error, UNKNOWN)})
        return requests

    def _answer(self, names: Names, requests: list[Request], served: Served) -> None:
        """One pass for all, and where it fails for several, one for each."""
        served.passes += 1
        try:
            bodies = self._pass(requests)
        except Exception as error:
            if len(requests) > 1 and _may_be_a_text(error):
                for each in requests:
                    self._answer(names, [each], served)
                return
            bodies = {each.id: error_body(error, UNKNOWN) for each in requests}
            if not isinstance(error, TrellisError):
                log.exception("embedding.failed", texts=_size(requests))
        served.requests += len(requests)
        served.texts += _size(requests)
        self._reply(names, bodies)

    def _pass(self, requests: list[Request]) -> dict[str, bytes]:
        """The answers by id."""
        embedder = self._embedder()
        bodies = {each.id: body for each in requests if (body := self._refusal(embedder.model, each.asks))}
        fitting = [each for each in requests if each.id not in bodies]
        rows = embedder.embed([text for each in fitting for text in each.texts])
        start = 0
        for each in fitting:
            end = start + len(each.texts)
            data = rows[start:end].astype("<f4").tobytes()
            bodies[each.id] = Reply(embedder.model, embedder.dims, len(each.texts), data).body()
            start = end
        return bodies

    def _refusal(self, model: str, asks: str) -> bytes | None:
        """The answer to a caller that expects another embedder."""
        try:
            if self._accepts(asks):
                return None
            problem = f"the worker serves this one, not {asks}: set TRELLIS_EMBEDDER alike on both sides"
        except ConfigurationError as error:
            problem = str(error)
        return error_body(EmbedderRefused(model, problem), model)

    def _reply(self, names: Names, bodies: dict[str, bytes]) -> None:
        with self._link.pipeline(transaction=False) as pipeline:
            for id_, body in bodies.items():
                pipeline.rpush(names.reply(id_), body)
                pipeline.pexpire(names.reply(id_), REPLY_MS)
            pipeline.set(names.awake, "1", px=AWAKE_MS)
            pipeline.execute()


def _size(requests: list[Request]) -> int:
    return sum(len(each.texts) for each in requests)


def _may_be_a_text(error: Exception) -> bool:
    """Whether one of the texts may be to blame, and not the embedder."""
    return not isinstance(error, EmbedderRefused | EmbedderUnavailable | ConfigurationError)


# --- the task


class _Serving:
    """Whether this worker consumes the embed queue; children inherit it."""

    queue: str | None = None


_service = PerProcess(
    lambda: Service(
        connect(current().need_broker(), read=LINGER_SECONDS + 4.0),
        lambda: choose.local(current()),
        lambda asks: choose.same(asks, current().embedder),
    )
)


@app.task(name=TASK, bind=True, acks_late=False, ignore_result=True)
def embed(self: Task) -> dict[str, int]:
    """Drain the embed queue; sent by callers when no worker is awake."""
    queue = (self.request.delivery_info or {}).get("routing_key") or current().embed_queue
    try:
        served, left = _service.get().drain(queue)
    except GONE as error:
        log.warning("embedding.queue.away", problem=str(error))  # callers call again
        return {}
    if left:
        self.app.send_task(TASK, queue=queue, ignore_result=True)
    return asdict(served)


@signals.celeryd_after_setup.connect
def _check_in(instance: Any, **_: Any) -> None:
    """A worker that cannot embed must not take requests: it says why, and does not start."""
    queue = current().embed_queue
    _Serving.queue = queue if queue in instance.app.amqp.queues.consume_from else None
    if _Serving.queue is not None:
        try:
            choose.check(current())
        except TrellisError as error:
            raise SystemExit(f"trellis: {error}") from error


@signals.worker_process_init.connect
def _boot_child(**_: Any) -> None:
    _warm_up()


@signals.worker_ready.connect
def _boot(sender: Any, **_: Any) -> None:
    """Pools of threads have no children of their own; that of processes must not have torch in the parent."""
    if not type(sender.pool).__module__.endswith(".prefork"):
        _warm_up()


def _warm_up() -> None:
    """Load the model now, so that the first caller does not wait for it."""
    if _Serving.queue is not None:
        threading.Thread(target=_load, name="embedder", daemon=True).start()


def _load() -> None:
    try:
        embedder = choose.local(current())
        log.info("embedding.ready", model=embedder.model, dims=embedder.dims, queue=_Serving.queue)
    except TrellisError as error:
        log.error("embedding.refused", problem=str(error))  # and so is every caller told
