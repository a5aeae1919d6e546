"""What a rerun changes, as a command line says it: of one run, and of many.

The law: texts become values by what the definition of a run says of its parameters, and its actions of their inputs.
Where many runs are meant, the newest of them says it; a run that takes other values refuses them for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import typer

from . import arguments
from .spec import WorkflowSpec

FromStep = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="STEP",
        help="Of a rerun: compute this step again and all behind it; without it, what did not succeed.",
        show_default=False,
    ),
]
ChangedParams = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        "-p",
        metavar="KEY=VALUE",
        help="Of a rerun: a parameter to change; lists and objects as JSON.",
    ),
]
ChangedInputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        metavar="STEP.INPUT=VALUE",
        help="Of a rerun: an input of a step to change, as a plain value.",
    ),
]


class Changes(NamedTuple):
    """The options of a rerun, unread."""

    from_step: str | None
    params: Sequence[str]
    inputs: Sequence[str]

    @property
    def given(self) -> list[str]:
        """The options that are there."""
        named = (
            ("--from", self.from_step),
            ("--param", self.params or None),
            ("--input", self.inputs or None),
        )
        return [name for name, value in named if value is not None]

    def read(self, spec: WorkflowSpec) -> dict[str, Any]:
        """The same as `Client.rerun` takes them. Raises ParameterError."""
        return {
            "from_step": self.from_step,
            "params": arguments.parse(spec, self.params) if self.params else None,
            "inputs": arguments.inputs(spec, self.inputs) if self.inputs else None,
        }
