"""Durable workflows: define a DAG of actions, start it from anywhere, and it ends.

    from trellis.workflows import Client, Workflow, action

The journal in Postgres is the truth, Celery carries the work, and every accepted run reaches its end.
"""

if not __name__.startswith("trellis."):
    raise ImportError("import trellis.workflows, not workflows: the repository's root is on sys.path")

from ..tasks.retry import Retry
from .action import Action, action
from .aio import AsyncClient
from .almanac import Schedule
from .artifacts import Artifact
from .beginnings import Debounce, Singleton
from .client import Client
from .context import Context
from .definition import Param, Workflow
from .doubts import Doubt
from .effects import Happened
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
from .schedules import Schedules
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
    "Debounce",
    "Default",
    "Doubt",
    "Event",
    "Fragment",
    "Happened",
    "Param",
    "Progress",
    "Rate",
    "Reason",
    "Retry",
    "Run",
    "RunState",
    "Schedule",
    "Schedules",
    "Singleton",
    "Step",
    "StepResult",
    "StepState",
    "Workflow",
    "action",
]
