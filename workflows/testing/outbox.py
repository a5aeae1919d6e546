"""What is sent to other applications at the end of a run, and who answers there: stand-ins.

The law: nothing leaves the process. What a stand-in returns goes on along the rest of its chain, as by a worker of
Celery; where there is none, it has been sent, and nobody has done it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

from celery import Celery, states
from celery import signature as as_signature
from celery.result import EagerResult

from ..registry import Actions


class Sent(NamedTuple):
    """A task that was sent."""

    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    queue: str | None


class Outbox(Celery):  # type: ignore[misc]  # Celery has no types
    """A Celery application without a broker."""

    def __init__(self, stand_ins: Mapping[str, Callable[..., Any]], actions: Actions) -> None:
        super().__init__("trellis-testing", broker="memory://", set_as_current=False)
        self.outgoing: list[Sent] = []
        self._stand_ins = stand_ins
        self._known = actions

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Note a task, let who stands in for it do it, and send what follows it in its chain."""
        given, named = tuple(args or ()), dict(kwargs or {})
        queue = options.get("queue")
        self.outgoing.append(Sent(name, given, named, None if queue is None else str(queue)))
        body = self._stand_ins.get(name) or self._action(name)
        value = None
        if body is not None:
            value = body(*given, **named)
            rest = list(options.get("chain") or ())
            if rest:
                following = rest.pop()
                as_signature(following, app=self).apply_async((value,), chain=rest)
        return EagerResult(options.get("task_id") or str(uuid4()), value, states.SUCCESS)

    def _action(self, name: str) -> Callable[..., Any] | None:
        """An action of ours as the plain task that it is as well."""
        info = self._known.get(name)
        if info is None:
            return None
        contract = info.contract

        def call(*args: Any, **kwargs: Any) -> Any:
            given = {**dict(zip(contract.inputs, args, strict=False)), **kwargs}
            return contract.function(**contract.validate(given))

        return call
