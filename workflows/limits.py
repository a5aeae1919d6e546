"""Stopping a body: softly by an exception inside it, then hard by ending its process.

The law: a body that runs past its limit, or whose step is no longer its own, gets an exception; if it is
still there after the grace, its pool process is killed and the slot is free again.

The soft stop of the main thread is a SIGALRM (it interrupts `time.sleep` and any Python loop), that of
another thread an asynchronous exception (it waits for the next bytecode), that of a coroutine a
cancellation. The hard one is faulthandler's watchdog: a C thread that needs no GIL, so it also ends a
C call that never returns, and prints where the body was. Only pool processes may be killed; with
`--pool threads` or `solo` a body that swallows the exception keeps its slot.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from ..tasks.errors import ExecutionError, StepTimeout

_STDERR = 2
_CLOSE = 60.0  # seconds before it fires at which the watchdog is taken off between bodies
_SLACK = 1.0  # seconds by which the watchdog may be late, so that short steps need not set it anew each


class Process:
    """What this process may do to itself; the worker's boot sets it."""

    killable = False  # a pool process: its parent starts another one


class Guard:
    """Watches one thread's bodies, one after the other."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._main = threading.current_thread() is threading.main_thread()
        self._reason: ExecutionError | None = None
        self._limit = 0.0
        self._lock = threading.RLock()
        self._active = False
        self.turn = 0  # counts bodies, so that a stop meant for one never hits the next
        self._task: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
        self._watchdog = 0.0  # when it fires (time.monotonic()); 0: it is off
        self._runner: asyncio.Runner | None = None
        if self._main:
            signal.signal(signal.SIGALRM, self._on_alarm)

    # --- around a body

    def call(self, body: Callable[[], Any], timeout: float, grace: float) -> Any:
        """Run a body within its limits. Raises StepTimeout or StepCancelled where it was stopped."""
        self._begin(timeout, grace)
        try:
            if self._main:
                signal.setitimer(signal.ITIMER_REAL, timeout)
            return body()
        finally:
            self._end()

    def call_async(self, coroutine: Coroutine[Any, Any, Any], timeout: float, grace: float) -> Any:
        """Run a coroutine to completion on this thread's loop, within the same limits."""
        self._begin(timeout, grace)
        if self._runner is None:
            self._runner = asyncio.Runner()
        try:
            # The context of now: a runner keeps that of its first run, and with it another step's log lines.
            return self._runner.run(self._bounded(coroutine, timeout), context=contextvars.copy_context())
        except BaseException:
            self._runner.close()  # an interrupted loop may hold half-finished tasks: begin with a new one
            self._runner = None
            raise
        finally:
            self._end()

    async def _bounded(self, coroutine: Coroutine[Any, Any, Any], timeout: float) -> Any:
        task = asyncio.ensure_future(coroutine)
        self._task = (asyncio.get_running_loop(), task)
        try:
            async with asyncio.timeout(timeout):
                return await task
        except TimeoutError:
            if task.done() and not task.cancelled():
                raise  # the body's own
            raise StepTimeout(timeout) from None
        except asyncio.CancelledError:
            if self._reason is None:
                raise
            raise self._reason from None
        finally:
            self._task = None

    def _begin(self, timeout: float, grace: float) -> None:
        with self._lock:
            self._reason = None
            self._limit = timeout
            self._active = True
            self.turn += 1
        if Process.killable and self._main:
            latest = time.monotonic() + timeout + grace
            if not latest <= self._watchdog <= latest + _SLACK:
                faulthandler.dump_traceback_later(timeout + grace + _SLACK, exit=True, file=_STDERR)
                self._watchdog = latest + _SLACK

    def _end(self) -> None:
        if self._main:
            signal.setitimer(signal.ITIMER_REAL, 0)
        with self._lock:
            self._active = False
        if self._watchdog and self._watchdog - time.monotonic() < _CLOSE:
            self.rest()  # recording may wait for Postgres: it must not be killed for the body's limit

    def rest(self) -> None:
        """No body runs for now: take the watchdog off."""
        if self._watchdog:
            faulthandler.cancel_dump_traceback_later()
            self._watchdog = 0.0

    # --- from the keeper's thread

    def stop(self, turn: int, reason: ExecutionError) -> None:
        """Raise `reason` in the body of this turn, if it still runs."""
        with self._lock:
            if not self._active or turn != self.turn:
                return
            self._reason = reason
            if self._task is not None:
                loop, task = self._task
                loop.call_soon_threadsafe(task.cancel)
            elif self._main:
                signal.pthread_kill(self._thread, signal.SIGALRM)
            else:
                raised = type(
                    type(reason).__name__,
                    (type(reason),),
                    {"__init__": lambda self: None, "__str__": lambda self: str(reason)},
                )
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread), ctypes.py_object(raised)
                )

    @property
    def needs_clock(self) -> bool:
        """Whether nobody but the keeper notices that this thread's body runs too long."""
        return not self._main

    def kill(self, turn: int) -> None:
        """End this process, if it may be ended and the body of this turn still runs: it does not listen."""
        with self._lock:
            if Process.killable and self._active and turn == self.turn:
                os.kill(os.getpid(), signal.SIGKILL)

    def _on_alarm(self, _signal: int, _frame: Any) -> None:
        if self._active and self._task is None:
            reason, self._reason = self._reason or StepTimeout(self._limit), None
            raise reason


_local = threading.local()


def guard() -> Guard:
    """The guard of the calling thread, made anew in a forked child."""
    found: Guard | None = getattr(_local, "guard", None)
    if found is None or _local.pid != os.getpid():
        found = _local.guard = Guard()
        _local.pid = os.getpid()
    return found
