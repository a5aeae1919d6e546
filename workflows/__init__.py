"""Durable workflows: define a DAG of actions, start it from anywhere, and it ends.

    from trellis.workflows import Client, Workflow, action

The journal in Postgres is the truth, Celery carries the work, and every accepted run reaches its end.
"""

if not __name__.startswith("trellis."):
    raise ImportError("import trellis.workflows, not workflows: the repository's root is on sys.path")

from ..tasks.retry import Retry
from .action import Action, action
from .aio import AsyncClient
from .artifacts import Artifact
from .client import Client
from .context import Context
from .definition import Param, Workflow
from .fragment import Fragment
from .records import (
    Approval,
    DeadLetter,
    Event,
    Progress,
    Reason,
    Run,
    Step,
    StepResult,
)
from .spec import Default, Rate
from .states import RunState, StepState

__all__ = [
    "Action",
    "Approval",
    "Artifact",
    "AsyncClient",
    "Client",
    "Context",
    "DeadLetter",
    "Default",
    "Event",
    "Fragment",
    "Param",
    "Progress",
    "Rate",
    "Reason",
    "Retry",
    "Run",
    "RunState",
    "Step",
    "StepResult",
    "StepState",
    "Workflow",
    "action",
]
