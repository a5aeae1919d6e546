"""Hears when runs end: one LISTEN connection a client, shared by all who wait.

The law: a notification is a hint. Whoever waits also looks by itself now and then, so a lost one, or a
broken connection, delays an answer and never loses it.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from ..tasks.database import connect
from ..tasks.errors import CommunicationError
from ..tasks.logs import get_logger

CHANNEL = "trellis_run"
_MOMENT = 0.1  # seconds that a first waiter gives the connection
_PAUSE = 1.0  # seconds before another try to connect; also how soon `close` is noticed

log = get_logger("trellis.listener")


class Listener:
    """Calls back when a run is announced as ended."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Callable[[], None]]] = defaultdict(list)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._listening = threading.Event()

    @contextmanager
    def subscribed(self, run: str, callback: Callable[[], None]) -> Iterator[None]:
        """Have `callback` called, from the listener's thread, each time `run` is announced."""
        with self._lock:
            self._waiting[run].append(callback)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="trellis-listener", daemon=True)
                self._thread.start()
        # What ends before LISTEN stands is seen by the look that follows; waiting a moment saves a poll.
        self._listening.wait(_MOMENT)
        try:
            yield
        finally:
            with self._lock:
                self._waiting[run].remove(callback)
                if not self._waiting[run]:
                    del self._waiting[run]

    def close(self) -> None:
        """End the thread and its connection."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                with connect(self._url, application_name="trellis-listener") as connection:
                    connection.execute(f"LISTEN {CHANNEL}".encode())
                    self._listening.set()
                    while not self._closed.is_set():
                        for notice in connection.notifies(timeout=_PAUSE / 4, stop_after=1):
                            self._tell(notice.payload)
            except (psycopg.OperationalError, CommunicationError) as error:
                self._listening.clear()
                log.debug("listener.reconnects", error=str(error))
                self._closed.wait(_PAUSE)

    def _tell(self, run: str) -> None:
        with self._lock:
            callbacks = list(self._waiting.get(run, ()))
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("listener.callback_failed")  # a closed event loop, say; the others still wait
