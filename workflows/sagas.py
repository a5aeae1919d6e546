"""How compensation is written in Python: the part of `Workflow` that says what follows a bad end.

The law: sugar alone, as for steps. What is collected here are `UndoSpec`s, the same that YAML and JSON give under
`on_failure:` and `on_cancel:`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from ..tasks.retry import Retry
from .guests import either
from .references import StepRef

UNDO_OPTIONS = ("of", "retry", "timeout", "queue", "priority", "inputs")


class Sagas:
    """Steps that run after a run has failed or was cancelled."""

    name: str

    def on_failure(
        self,
        name: str,
        action: Any = None,
        /,
        *,
        of: StepRef | str | None = None,
        task: Any = ...,
        args: Any = ...,
        kwargs: Any = ...,
        inputs: Mapping[str, Any] | None = None,
        retry: Retry | int | None = None,
        timeout: float | None = None,
        queue: str | None = None,
        priority: int | None = None,
        **more: Any,
    ) -> None:
        """Add a step that runs after the run has failed.

        of: the step that it undoes: it runs only if that one succeeded, and the step that finished last is undone
            first. Those without `of` run after them, in any case.
        task, args, kwargs: in place of an action a Celery task by its name, as in `step`.
        The inputs may use parameters and results; that of a step which has none is null. All else is as in `step`.
        The steps run one after the other, in a run of their own (`NAME.on_failure`) whose origin is this one; where
        one fails for good the rest waits until that run is retried.

        Raises DefinitionError.
        """
        options = {"retry": retry, "timeout": timeout, "queue": queue, "priority": priority}
        asked = {"task": task, "args": args, "kwargs": kwargs}
        action, inputs, more = either(self.name, name, action, asked, options, inputs, more)
        self._add_undo("on_failure", name, action, of, inputs, more, options)

    def on_cancel(
        self,
        name: str,
        action: Any = None,
        /,
        *,
        of: StepRef | str | None = None,
        task: Any = ...,
        args: Any = ...,
        kwargs: Any = ...,
        inputs: Mapping[str, Any] | None = None,
        retry: Retry | int | None = None,
        timeout: float | None = None,
        queue: str | None = None,
        priority: int | None = None,
        **more: Any,
    ) -> None:
        """Add a step that runs after the run was cancelled. All else is as in `on_failure`."""
        options = {"retry": retry, "timeout": timeout, "queue": queue, "priority": priority}
        asked = {"task": task, "args": args, "kwargs": kwargs}
        action, inputs, more = either(self.name, name, action, asked, options, inputs, more)
        self._add_undo("on_cancel", name, action, of, inputs, more, options)

    @abstractmethod
    def _add_undo(
        self,
        option: str,
        name: str,
        action: Any,
        of: StepRef | str | None,
        inputs: Mapping[str, Any] | None,
        more: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        """What the class that this is a part of does."""
