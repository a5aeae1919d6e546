"""Things that must not cross a fork: models, clients, threads.

The law: what `get` gives was made in this process, once, by whichever thread asked first. After a fork the child makes
its own; what it inherited is neither used nor closed, since its sockets and threads are the parent's.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_all: weakref.WeakSet[PerProcess[Any]] = weakref.WeakSet()
_inherited: list[Any] = []  # kept alive: their destructors would say goodbye on the parent's connections


class PerProcess(Generic[T]):
    """One value a process, made when it is first needed."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: list[T] = []
        _all.add(self)

    def get(self) -> T:
        """The value of this process. What `make` raises is raised again, and the next call tries again."""
        if not self._made:
            with self._lock:
                if not self._made:
                    self._made.append(self._make())
        return self._made[0]

    def peek(self) -> T | None:
        """The value, if this process has made one."""
        return self._made[0] if self._made else None

    def forget(self) -> T | None:
        """Give the value up; the next `get` makes another one."""
        with self._lock:
            return self._made.pop() if self._made else None

    def _after_fork(self) -> None:
        _inherited.extend(self._made)
        self._made = []
        self._lock = threading.Lock()  # another thread of the parent may have held it


def _after_fork() -> None:
    for each in list(_all):
        each._after_fork()


os.register_at_fork(after_in_child=_after_fork)
