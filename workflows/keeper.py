"""The keeper: a thread that looks after what this process has claimed while bodies run.

The law: the keeper never runs a body and never decides an outcome. It renews leases and carries progress,
tells bodies that they lost theirs and stops those that do not listen, and takes care that a step which turns
out to be slow holds up nobody else: finished neighbours are recorded, those not begun are handed back.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Protocol

from ..tasks.errors import ExecutionError, HeartbeatTimeout, StepCancelled, StepTimeout
from ..tasks.logs import get_logger
from ..tasks.settings import Settings
from . import draining
from .context import Context
from .journal import Journal
from .limits import Guard, Process
from .records import Claimed

_LOOK = 0.2  # seconds between looks; also how long a slow step may hold up its bundle

log = get_logger("trellis.keeper")


class Held:
    """A step that is worked on now."""

    __slots__ = (
        "began",
        "context",
        "guard",
        "handed_back",
        "lost_at",
        "once",
        "renewed",
        "run",
        "silent_at",
        "step",
        "stopped",
        "timeout",
        "turn",
    )

    def __init__(self, run: str, step: Claimed, timeout: float, guard: Guard) -> None:
        self.run = run
        self.step = step
        self.timeout = timeout
        self.guard = guard
        self.turn = guard.turn + 1
        self.context: Context | None = None
        self.began = self.renewed = time.monotonic()
        self.lost_at: float | None = None
        self.silent_at: float | None = None  # when it was found to be silent for too long
        self.stopped = False
        self.handed_back = False
        self.once = False  # in the midst of an effect that may happen once only

    @property
    def silence(self) -> float | None:
        """Seconds that the body may be silent; None: as long as it likes."""
        found = (self.step.options or {}).get("heartbeat")
        return None if found is None or self.context is None else float(found)


class Watched(Protocol):
    """What the keeper asks of a bundle."""

    @property
    def current(self) -> Held | None:
        """The step whose body runs now."""

    def relieve(self) -> None:
        """Record what is finished and hand back what is not begun."""

    def give_up(self, held: Held, reason: ExecutionError) -> None:
        """Record the step at hand as failed: its process is about to be killed."""


class Keeper:
    """One a process; its thread starts with the first bundle and sleeps while there is none."""

    def __init__(self, journal: Journal, settings: Settings) -> None:
        self._journal = journal
        self._settings = settings
        self._bundles: set[Watched] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._pid = 0

    def watch(self, bundle: Watched) -> None:
        """Look after a bundle until `unwatch`."""
        with self._lock:
            self._bundles.add(bundle)
            if self._pid != os.getpid():
                self._pid = os.getpid()
                threading.Thread(target=self._run, name="trellis-keeper", daemon=True).start()
        if not self._wake.is_set():
            self._wake.set()

    def unwatch(self, bundle: Watched) -> None:
        """The bundle is over."""
        with self._lock:
            self._bundles.discard(bundle)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            time.sleep(_LOOK)
            with self._lock:
                bundles = list(self._bundles)
                if not bundles:
                    self._wake.clear()
            try:
                self._look(bundles)
            except Exception:
                # Whatever it was (a restart of Postgres, mostly), the next look tries again; until then leases
                # stand for as long as they were last given.
                log.exception("keeper.failed")

    def _look(self, bundles: list[Watched]) -> None:
        now = time.monotonic()
        slow = [(each, held) for each in bundles if (held := each.current) and now - held.began >= _LOOK]
        held_now = [held for _, held in slow]
        due = [
            h for h in held_now if h.lost_at is None and now - h.renewed >= self._settings.heartbeat_seconds
        ]
        if due:
            self._renew(due, now)  # first: what follows may wait for the broker
        for bundle, held in slow:
            bundle.relieve()
            self._stop_late(bundle, held, now)
            if held.silence is not None:
                self._stop_silent(bundle, held, now)
            if draining.handing_back():
                self._hand_back(held)
            if held.lost_at is not None:
                self._stop_lost(held, now)

    def _renew(self, due: list[Held], now: float) -> None:
        grace = self._settings.timeout_grace + 1.0
        rows = []
        for held in due:
            # A lease never outlives the step's hard limit, so a killed body is noticed at once.
            left = held.timeout + grace - (now - held.began)
            seconds = max(0.0, min(self._settings.lease_seconds, left))
            progress = held.context.take_progress() if held.context else None
            rows.append((held.run, held.step.idx, held.step.lease, seconds, progress))
        ours = self._journal.renew(rows)
        for held in due:
            held.renewed = now
            if (held.run, held.step.idx) not in ours:
                held.lost_at = now
                if held.context is not None:
                    held.context.cancel()

    def _stop_late(self, bundle: Watched, held: Held, now: float) -> None:
        """The clock of threads that no signal reaches; and the end of a body that swallowed its exception."""
        ran = now - held.began
        if held.guard.needs_clock and not held.stopped and ran >= held.timeout:
            held.stopped = True
            held.guard.stop(held.turn, StepTimeout(held.timeout))
        elif Process.killable and held.lost_at is None and ran >= held.timeout + self._settings.timeout_grace:
            # Recorded first: else the next worker could not tell this kill from a crash.
            bundle.give_up(held, StepTimeout(held.timeout))
            held.guard.kill(held.turn)

    def _stop_silent(self, bundle: Watched, held: Held, now: float) -> None:
        """A body that does not say that it is alive is stopped, and ended where it swallows that."""
        assert held.silence is not None
        assert held.context is not None
        if held.silent_at is None:
            if now - held.context.beaten >= held.silence and not held.stopped:
                held.silent_at, held.stopped = now, True
                held.guard.stop(held.turn, HeartbeatTimeout(held.silence))
        elif (
            Process.killable and held.lost_at is None and now - held.silent_at >= self._settings.timeout_grace
        ):
            bundle.give_up(held, HeartbeatTimeout(held.silence))
            held.guard.kill(held.turn)

    def _hand_back(self, held: Held) -> None:
        """The worker shuts down and waits no longer: the body is stopped, its bundle gives the step back."""
        if held.stopped or held.lost_at is not None:
            return
        held.stopped = held.handed_back = True
        if held.context is not None:
            held.context.cancel()
        held.guard.stop(
            held.turn, StepCancelled(f"the worker shuts down: step {held.step.name!r} goes on elsewhere")
        )

    def _stop_lost(self, held: Held, now: float) -> None:
        assert held.lost_at is not None
        listens = held.context is not None
        patience = self._settings.timeout_grace if listens else 0.0
        if not held.stopped and now - held.lost_at >= patience:
            held.stopped = True
            log.info("step.stopped", run=held.run, step=held.step.name)
            held.guard.stop(
                held.turn, StepCancelled(f"step {held.step.name!r} was cancelled or given to another worker")
            )
        elif held.stopped and now - held.lost_at >= patience + self._settings.timeout_grace:
            held.guard.kill(held.turn)
