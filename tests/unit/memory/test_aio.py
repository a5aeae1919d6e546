"""Verbs for coroutines: typed as their verbs are, on a thread, with the caller's context."""

from __future__ import annotations

import asyncio
import inspect
import threading
from contextvars import ContextVar

import pytest

from trellis.memory.aio import threaded
from trellis.tasks.errors import EntryError

WHO: ContextVar[str] = ContextVar("who", default="nobody")


class Slow:
    """A verb that waits until it is let go, and writes down what it did."""

    def __init__(self) -> None:
        self.begun, self.free = threading.Event(), threading.Event()
        self.done: list[str] = []

    def write(self, text: str, *, times: int = 1) -> str:
        """Write a text."""
        self.begun.set()
        assert self.free.wait(30)
        self.done += [text] * times
        return f"{WHO.get()} wrote {text}"

    def refuse(self) -> None:
        raise EntryError("text", "is refused")

    awrite = threaded(write)
    arefuse = threaded(refuse)


class Loud(Slow):
    def write(self, text: str, *, times: int = 1) -> str:
        return super().write(text.upper(), times=times)


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 30)


@pytest.mark.parametrize(("kind", "text"), [(Slow, "a"), (Loud, "A")])
def test_a_coroutine_does_what_the_verb_of_its_class_does(kind: type[Slow], text: str) -> None:
    """In the caller's context, while the loop goes on."""

    async def use() -> None:
        WHO.set("ann")
        slow = kind()
        writing = asyncio.create_task(slow.awrite("a", times=2))
        await until(slow.begun)
        assert slow.done == []
        slow.free.set()
        assert await writing == f"ann wrote {text}"
        assert slow.done == [text, text]

    asyncio.run(use())


def test_who_is_cancelled_hears_at_once_and_what_has_begun_is_finished() -> None:
    slow = Slow()

    async def use() -> None:
        writing = asyncio.create_task(slow.awrite("a"))
        await until(slow.begun)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert slow.done == []
        slow.free.set()

    asyncio.run(use())  # which waits for the thread
    assert slow.done == ["a"]


def test_errors_come_as_they_are() -> None:
    with pytest.raises(EntryError, match="is refused"):
        asyncio.run(Slow().arefuse())


def test_a_coroutine_is_named_and_taken_for_one() -> None:
    assert inspect.iscoroutinefunction(Slow.awrite)
    assert (Slow.awrite.__name__, Slow.awrite.__qualname__) == ("awrite", "Slow.awrite")
    assert inspect.signature(Slow.awrite) == inspect.signature(Slow.write)
    assert Slow.write.__doc__ == "Write a text."
