"""Python's cycle collector, paused while a large structure is built.

The law: only for short, bounded work that makes no garbage cycles. The collector walks everything that
is alive again and again while 100,000 rows come into being; measured, a plan of that size takes 2.0 s
with it and 1.1 s without.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Switch the collector off and, if it was on, on again."""
    if not gc.isenabled():  # the caller's choice, or another thread in here, which will switch it on
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
