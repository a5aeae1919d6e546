"""The catalogue of what the audit log may say: one code for each kind of action.

The law: a code is written once, here, and never renamed, since rows that are sealed keep it for ever.
"""

from __future__ import annotations

from enum import StrEnum


class AuditAction(StrEnum):
    """What was done: the object, then the verb."""

    DEFINITION_REGISTERED = "definition.registered"
    RUN_STARTED = "run.started"
    RUN_CANCELLED = "run.cancelled"
    RUN_RETRIED = "run.retried"
    RUN_RERUN = "run.rerun"
    RUN_PAUSED = "run.paused"
    RUN_RESUMED = "run.resumed"
    RUN_DELETED = "run.deleted"
    WORKFLOW_PAUSED = "workflow.paused"
    WORKFLOW_RESUMED = "workflow.resumed"
    QUEUE_PAUSED = "queue.paused"
    QUEUE_RESUMED = "queue.resumed"
    SIGNAL_SENT = "signal.sent"
    APPROVAL_GIVEN = "approval.given"
    APPROVAL_REFUSED = "approval.refused"
    DOUBT_RESOLVED = "doubt.resolved"
    DEAD_LETTER_DISCARDED = "dead_letter.discarded"
    SCHEDULE_CREATED = "schedule.created"
    SCHEDULE_CHANGED = "schedule.changed"
    SCHEDULE_DELETED = "schedule.deleted"
    SETTING_CHANGED = "setting.changed"
    ACCESS_REFUSED = "access.refused"
    SECRETS_ROTATED = "secrets.rotated"
    AUDIT_RETIRED = "audit.retired"
    AUDIT_REBASED = "audit.rebased"


class Outcome(StrEnum):
    """How it went."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
