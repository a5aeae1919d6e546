"""How waiting is written in Python: the part of `Workflow` that adds steps which wait.

The law: sugar alone. Each method adds an ordinary step of one of the engine's kinds, which YAML and JSON name by
`action:`; what it means stands with the kind.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from ..tasks.errors import DefinitionError
from . import kinds, votes
from .references import Ref, StepRef
from .spec import CHILD, Default, WorkflowSpec

OnFailure = Literal["fail", "skip"] | Default | None


class _Unset:
    """No default given; None is one."""


UNSET = _Unset()


class Waits:
    """Steps that wait and hold no worker."""

    name: str

    @abstractmethod
    def step(self, name: str, action: Any, /, **options: Any) -> StepRef:
        """Add a step."""

    def wait_for(
        self,
        name: str,
        signal: Any,
        /,
        *,
        timeout: Any = None,
        default: Any = UNSET,
        after: Any = (),
        when: str | None = None,
        on_failure: OnFailure = None,
    ) -> StepRef:
        """Add a step that waits for a signal; its result is the signal's payload.

        signal: the name under which `client.signal(run, name, payload)` sends it. One that came before is kept.
        timeout: seconds to wait, from when the step's turn came. Then the step gives `default`, or without one fails
            with WaitExpired, and `on_failure` decides.
        Two steps that wait for the same name get different signals, the older one the older signal.
        """
        inputs: dict[str, Any] = {"signal": signal}
        if timeout is not None:
            inputs["timeout"] = timeout
        if not isinstance(default, _Unset):
            inputs["default"] = default
            if timeout is None:
                raise DefinitionError(
                    "default= without timeout= is never used: say after how many seconds it is",
                    workflow=self.name,
                    step=name,
                )
        return self.step(name, kinds.WAIT_FOR, inputs=inputs, after=after, when=when, on_failure=on_failure)

    def approve(
        self,
        name: str,
        /,
        message: Any = "",
        *,
        show: Mapping[str, Any] | Ref | None = None,
        who: Sequence[str] | Ref | None = None,
        needed: int = 1,
        expires: float | None = None,
        escalate_after: float | None = None,
        escalate_to: Sequence[str] | Ref | None = None,
        after: Any = (),
        when: str | None = None,
        on_failure: OnFailure = None,
    ) -> StepRef:
        """Add a step that waits for people to approve.

        message, show: what they are shown; a vote counts only for that.
        who: the names of those who may; anybody without it. needed: how many different ones must say yes.
        expires: seconds after which it fails with WaitExpired. escalate_after, escalate_to: seconds after which these
            may approve as well. One rejection fails the step with ApprovalRejected.
        The result is {"approved": true, "by": [names], "comments": {name: comment}}.
        """
        given = {
            "message": message or None,
            "show": show,
            "who": who,
            "needed": None if needed == 1 else needed,
            "expires": expires,
            "escalate_after": escalate_after,
            "escalate_to": escalate_to,
        }
        inputs = {each: value for each, value in given.items() if value is not None}
        if not any(isinstance(value, Ref) for value in inputs.values()):
            problem = votes.contradiction(inputs)
            if problem is not None:
                raise DefinitionError(f"{problem[0]}: {problem[1]}", workflow=self.name, step=name)
        return self.step(name, kinds.APPROVE, inputs=inputs, after=after, when=when, on_failure=on_failure)

    def sleep(self, name: str, seconds: Any, /, *, after: Any = (), when: str | None = None) -> StepRef:
        """Add a step that waits so many seconds, from when its turn came."""
        return self.step(name, kinds.SLEEP, inputs={"seconds": seconds}, after=after, when=when)

    def until(
        self, name: str, moment: datetime | Ref | str, /, *, after: Any = (), when: str | None = None
    ) -> StepRef:
        """Add a step that waits for a moment: an aware datetime, ISO 8601 with an offset, or a reference to one."""
        return self.step(name, kinds.UNTIL, inputs={"moment": moment}, after=after, when=when)

    def child(
        self,
        name: str,
        workflow: Any,
        /,
        *,
        after: Any = (),
        when: str | None = None,
        retry: Any = None,
        on_failure: OnFailure = None,
        params: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> StepRef:
        """Add a child run as a step; its result is a mapping of the child's last steps to their results.

        workflow: a Workflow, whose definition becomes part of this one; or the name of one, looked up when its turn
            comes. Parameters are given as keywords, or in `params`; references are allowed.
        Cancelling or pausing the run does it to the child; one that does not succeed fails the step with ChildFailed.
        It has the tenant of the run, unless its `fair_key` says another.
        """
        spec = getattr(workflow, "spec", workflow)
        if not isinstance(spec, str | WorkflowSpec):
            raise DefinitionError(
                f"a child run is one of a Workflow, or of the name of one, not of {workflow!r}",
                workflow=self.name,
                step=name,
            )
        body = spec if isinstance(spec, str) else spec.model_dump(mode="json", exclude_defaults=True)
        inputs = {"workflow": body, "params": {**(params or {}), **more}}
        return self.step(
            name, CHILD, inputs=inputs, after=after, when=when, retry=retry, on_failure=on_failure
        )
