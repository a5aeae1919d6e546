"""What the harness does for a fault once a worker's process has said that it happens.

The law: it never waits itself, since other faults have their time as well, and what it has taken down or stopped comes
back whatever the runs do.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import suppress

from . import laws, ledger
from .disk import FLAG
from .stage import Stage
from .trigger import Arm, publish

_AT_THE_SERVERS = threading.Lock()  # two cases of one wave may want the same server


class Helper:
    """The harness's part in one fault."""

    def __init__(self, stage: Stage, arm: Arm) -> None:
        self._stage = stage
        self._arm = arm
        self._at = 0.0
        self._done = False
        self._ended = 0.0
        self._thread: threading.Thread | None = None
        self._said: dict[str, int | str] = {}
        self.fired = False
        self.paused: laws.Pause | None = None

    def look(self) -> bool:
        """Do what is due; whether nothing more is to be done."""
        if not self.fired:
            try:
                self._said = json.loads((self._stage.folder / f"fired-{self._arm.case}").read_text())
            except FileNotFoundError:
                return True  # runs that end without it: the caller tells
            self.fired, self._at = True, time.monotonic()
        if not self._done:
            self._done = self._help(time.monotonic() - self._at)
            self._ended = time.monotonic()
        return self._done

    @property
    def happened(self) -> bool:
        """Whether the point was passed often enough.

        A fault of another case may kill the process that passed it, before it could do its own.
        """
        try:
            return (
                self.fired
                or (self._stage.folder / f"passages-{self._arm.case}").stat().st_size >= self._arm.passage
            )
        except FileNotFoundError:
            return False

    def settled(self, seconds: float) -> bool:
        """Whether the fault is still to come, or is over for so long."""
        return not self.fired or (self._done and time.monotonic() - self._ended >= seconds)

    def _help(self, passed: float) -> bool:
        fault, stage, quick = self._arm.fault, self._stage, self._stage.settings
        if fault in ("postgres restart", "redis restart"):
            if self._thread is None:
                self._thread = threading.Thread(target=self._restart)
                self._thread.start()
            return not self._thread.is_alive()
        if fault == "stop past the lease":
            # Two leases, the look of a tick between them, and some time for the others to go ahead.
            if passed < 2 * quick.lease_seconds + 4 * quick.tick_seconds:
                return False
            self.paused = laws.Pause(int(self._said["pid"]), int(self._said["group"]), ledger.now())
            with suppress(ProcessLookupError):
                os.killpg(self.paused.group, signal.SIGCONT)
        if fault == "disk full":
            if passed < 0.2 + self._arm.variant / 1000:
                return False
            (stage.folder / FLAG).unlink(missing_ok=True)
        return True

    def _restart(self) -> None:
        folder, case, variant = self._stage.folder, self._arm.case, self._arm.variant
        servers = self._stage.servers
        with _AT_THE_SERVERS:
            if self._arm.fault == "postgres restart":
                servers.postgres.stop(mode="immediate")
            else:
                servers.redis.stop(mode="kill" if variant % 3 else "save")
            publish(folder / f"down-{case}", "")
            time.sleep(variant / 1000 if variant % 5 == 0 else 0.0)
            (servers.postgres if self._arm.fault == "postgres restart" else servers.redis).start()
        publish(folder / f"back-{case}", "")

    def end(self) -> None:
        """Put right what the fault has left: no server stays down, no disk full, no worker stopped."""
        if self._thread is not None:
            self._thread.join()
        if self._arm.fault == "disk full":
            (self._stage.folder / FLAG).unlink(missing_ok=True)
        if self._arm.fault == "stop past the lease":
            for program in self._stage.programs:
                program.send(signal.SIGCONT)
