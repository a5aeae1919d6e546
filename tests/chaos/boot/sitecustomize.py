"""A wall clock that can be set wrong, for the worker in whose environment CHAOS_CLOCK names a file of 8 bytes.

The law: loaded by Python before anything else, so whoever says `from time import time` has this one. The file is
mapped: the offset in it (seconds, a double) holds at once in the worker and all its children. Monotonic clocks are
what they are, as on a machine whose administrator sets the time. A process that forks others sets the variable to
nothing; each of them then calls `use`.
"""

import datetime
import mmap
import os
import struct
import time

_REAL = time.time, time.time_ns, datetime.datetime


class _Clock:
    """The offset that this process reads."""

    memory = mmap.mmap(-1, 8)


def use(path: str | None) -> None:
    """Read the offset from this file from now on; without one the clock is the machine's, and all is as it was."""
    if not path:
        time.time, time.time_ns, datetime.datetime = _REAL
        return
    with open(path, "r+b") as file:
        _Clock.memory = mmap.mmap(file.fileno(), 8)


def _install() -> None:
    real_time, real_ns, real = _REAL

    def offset() -> float:
        return float(struct.unpack_from("d", _Clock.memory)[0])

    class Kind(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real)

        def __subclasscheck__(cls, other: type) -> bool:
            return issubclass(other, real)

    class Shifted(real, metaclass=Kind):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return real.fromtimestamp(real_time() + offset(), tz)

        @classmethod
        def utcnow(cls) -> datetime.datetime:
            return cls.now(datetime.UTC).replace(tzinfo=None)

        @classmethod
        def today(cls) -> datetime.datetime:
            return cls.now()

    time.time = lambda: real_time() + offset()
    time.time_ns = lambda: real_ns() + int(offset() * 1e9)
    Shifted.__name__ = Shifted.__qualname__ = "datetime"
    datetime.datetime = Shifted


if "CHAOS_CLOCK" in os.environ:
    _install()
    if os.environ["CHAOS_CLOCK"]:
        use(os.environ["CHAOS_CLOCK"])
