"""The async edge of the memories: each verb for coroutines, on a thread.

The law: a coroutine takes what its verb takes and answers what that answers, whichever class defines the verb anew. The
event loop goes on meanwhile, and the verb sees the caller's context variables. Who is cancelled hears of it at once; a
verb that has begun is finished by its thread, as a whole or, where it fails, not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

Own = TypeVar("Own")
Taken = ParamSpec("Taken")
Given = TypeVar("Given")


def threaded(
    verb: Callable[Concatenate[Own, Taken], Given],
) -> Callable[Concatenate[Own, Taken], Coroutine[Any, Any, Given]]:
    """The coroutine of a method; the method is looked for by its name, so that a subclass may have its own."""
    name = verb.__name__

    @wraps(verb)
    async def call(self: Own, /, *args: Taken.args, **kwargs: Taken.kwargs) -> Given:
        own: Callable[Taken, Given] = getattr(self, name)
        return await asyncio.to_thread(own, *args, **kwargs)

    call.__name__ = f"a{name}"
    call.__qualname__ = f"{verb.__qualname__.removesuffix(name)}a{name}"
    call.__doc__ = f"`{name}` without holding up the event loop."
    return call
