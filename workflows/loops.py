"""How loops are written in Python: the part of `Workflow` that adds steps which repeat.

The law: a loop has a bound, always. Each turn is a step of its own, `refine[0]`, `refine[1]`, …, journalled,
retried and recovered like any other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from ..tasks.errors import DefinitionError
from ..tasks.retry import Retry
from .guests import either
from .references import StepRef
from .spec import Default, Rate
from .validate import OPTIONS

LOOP_OPTIONS = (*OPTIONS, "until", "limit", "start", "on_limit")


class Loops:
    """Steps that repeat."""

    name: str

    @abstractmethod
    def _add(
        self,
        name: str,
        action: Any,
        inputs: Mapping[str, Any] | None,
        more: Mapping[str, Any],
        options: dict[str, Any],
        repeated: dict[str, Any] | None,
        allowed: tuple[str, ...],
    ) -> StepRef:
        """Add a step of any kind."""

    @abstractmethod
    def _encoded(self, value: Any, step: str, key: str, mapped: bool) -> Any:
        """A value in the notation of definitions."""

    def loop(
        self,
        name: str,
        action: Any = None,
        /,
        *,
        until: str,
        limit: int,
        start: Any = None,
        on_limit: Literal["fail", "stop"] = "fail",
        task: Any = ...,
        args: Any = ...,
        kwargs: Any = ...,
        inputs: Mapping[str, Any] | None = None,
        after: Any = (),
        when: str | None = None,
        join: Literal["all", "any"] = "all",
        retry: Retry | int | None = None,
        timeout: float | None = None,
        queue: str | None = None,
        priority: int | None = None,
        expect: float | None = None,
        on_failure: Literal["fail", "skip"] | Default | None = None,
        concurrency_key: Any = None,
        rate: Rate | None = None,
        queue_timeout: float | None = None,
        heartbeat: float | None = None,
        **more: Any,
    ) -> StepRef:
        """Add a step that runs its action again and again; its result is that of the last turn.

        until: a condition, asked after each turn, on `result` (of this turn), `index` (its number, from 0), params and
            steps, e.g. `"result.score > 0.9"`: the loop ends where it is true.
        limit: turns at most (1 to 100,000).
        start: what `wf.previous` is in the first turn: a literal or a reference.
        on_limit: what follows when the last turn is over and `until` is not true: "fail" with LoopLimit, or "stop", and
            the result of the last turn counts.
        on_failure: of the loop as a whole; with a `Default` a turn that fails ends the loop with that value.
        The inputs may use `wf.previous` (the result of the turn before, also `wf.previous["field"]`) and `wf.index`;
        `retry`, `timeout`, `expect` and limits are those of each turn, and all else is as in `step`. The `limit` of a
        loop is its turns: with a `concurrency_key` one turn at a time has the key.

        Raises DefinitionError.
        """
        if not isinstance(until, str) or "\x00" in until:
            raise DefinitionError(
                '`until` takes a plain text, e.g. until="result.score > 0.9"', workflow=self.name, step=name
            )
        options = {
            "after": after,
            "when": when,
            "join": None if join == "all" else join,
            "retry": retry,
            "timeout": timeout,
            "queue": queue,
            "priority": priority,
            "expect": expect,
            "on_failure": on_failure,
            "concurrency_key": concurrency_key,
            "rate": rate,
            "queue_timeout": queue_timeout,
            "heartbeat": heartbeat,
        }
        asked = {"task": task, "args": args, "kwargs": kwargs}
        action, inputs, more = either(self.name, name, action, asked, options, inputs, more)
        looped = {
            "until": until,
            "limit": limit,
            "start": self._encoded(start, name, "start", False),
            "on_limit": on_limit,
        }
        return self._add(name, action, inputs, more, options, {"loop": looped}, LOOP_OPTIONS)
