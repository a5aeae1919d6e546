"""The journal's tables for SQLAlchemy: what clients list and show is asked through these.

The law: these classes describe, the migrations create; a test compares the two. The engine's hot
statements do not pass here (sql/journal.sql).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    REAL,
    BigInteger,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Interval,
    SmallInteger,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from ..tasks.database import Base

_MOMENT = DateTime(timezone=True)
_OPEN = "('pending', 'running', 'paused')"
_OVER = "('succeeded', 'failed', 'cancelled')"


class DefinitionRow(Base):
    """An immutable definition, under the digest of its content."""

    __tablename__ = "definition"
    __table_args__ = (Index("definition_name", "name", "created_at"),)

    digest: Mapped[str] = mapped_column(Text, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    spec: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(_MOMENT, server_default=text("now()"))


class RunRow(Base):
    """A run. `missing` counts the steps at the end of the graph that are not done; at 0 the run is over."""

    __tablename__ = "run"
    __table_args__ = (
        Index("run_key", "workflow", "key", unique=True, postgresql_where=text("key IS NOT NULL")),
        Index("run_workflow", "workflow", "id"),
        Index("run_state", "state", "id"),
        # Of one expression, which no other index begins with: so no other one, and no sort, is mistaken for this one.
        Index("run_workflow_state", text("((state || ':'::text) || workflow)"), "id"),
        Index(
            "run_finished",
            "workflow",
            "finished_at",
            postgresql_where=text("finished_at IS NOT NULL AND parent_run IS NULL"),
        ),
        Index(
            "run_finished_below",
            "workflow",
            "finished_at",
            postgresql_where=text("finished_at IS NOT NULL AND parent_run IS NOT NULL"),
        ),
        Index("run_parent", "parent_run", postgresql_where=text("parent_run IS NOT NULL")),
        Index("run_origin", "origin", postgresql_where=text("origin IS NOT NULL")),
        Index(
            "run_deadline",
            "deadline_at",
            postgresql_where=text(f"deadline_at IS NOT NULL AND state IN {_OPEN}"),
        ),
        Index(
            "run_single",
            "workflow",
            "single",
            unique=True,
            postgresql_where=text(f"single IS NOT NULL AND state IN {_OPEN}"),
        ),
        Index(
            "run_single_recent",
            "workflow",
            "single",
            "created_at",
            postgresql_where=text("single IS NOT NULL"),
        ),
        Index("run_follow", "finished_at", postgresql_where=text(f"follow AND state IN {_OVER}")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    workflow: Mapped[str] = mapped_column(Text)
    definition: Mapped[str] = mapped_column(Text, ForeignKey("definition.digest"))
    key: Mapped[str | None] = mapped_column(Text)
    correlation_id: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    params: Mapped[dict[str, Any]] = mapped_column(JSONB)
    steps: Mapped[int] = mapped_column(Integer)
    missing: Mapped[int] = mapped_column(Integer)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(_MOMENT, server_default=text("now()"))
    started_at: Mapped[datetime | None] = mapped_column(_MOMENT)
    finished_at: Mapped[datetime | None] = mapped_column(_MOMENT)
    parent_run: Mapped[UUID | None]  # the run whose step waits for this one, until that is deleted
    parent_idx: Mapped[int | None] = mapped_column(Integer)
    origin: Mapped[UUID | None]  # the run that this one repeats or undoes
    origin_kind: Mapped[str | None] = mapped_column(Text)
    deadline_at: Mapped[datetime | None] = mapped_column(_MOMENT)
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    tenant: Mapped[str | None] = mapped_column(Text)
    single: Mapped[str | None] = mapped_column(Text)  # at most one open run of the workflow has it
    gates: Mapped[list[str] | None] = mapped_column(
        ARRAY(Text)
    )  # limits that the run itself holds a permit of
    hooks: Mapped[dict[str, Any] | None] = mapped_column(JSONB)  # what follows its end
    follow: Mapped[bool] = mapped_column(server_default=text("false"))  # and is still to be done
    edits: Mapped[dict[str, Any] | None] = mapped_column(JSONB)  # inputs of steps that a rerun replaced


class RunTagRow(Base):
    """A tag of a run: found by tag, newest first, since a run's id begins with its time."""

    __tablename__ = "run_tag"
    __table_args__ = (Index("run_tag_run", "run_id"),)

    tag: Mapped[str] = mapped_column(Text, primary_key=True)
    run_id: Mapped[UUID] = mapped_column(primary_key=True)


class StepRow(Base):
    """A step of a run. Its place in the graph is `dependents`: the steps that wait for it."""

    __tablename__ = "step"
    __table_args__ = (
        Index("step_ready", "queue", "sent", "due_at", postgresql_where=text("state = 'ready'")),
        Index("step_running", "lease_until", postgresql_where=text("state = 'running'")),
        Index(
            "step_parked",
            "waits_for",
            "fair",
            text("priority DESC"),
            "run_id",
            "idx",
            postgresql_where=text("state = 'parked'"),
        ),
        Index(
            "step_timer",
            "due_at",
            postgresql_where=text("state = 'parked' AND wait IS NOT NULL AND due_at < 'infinity'"),
        ),
        Index(
            "step_overdue",
            "lease_until",
            postgresql_where=text("state = 'ready' AND lease_until IS NOT NULL"),
        ),
        Index(
            "step_ranked",
            "run_id",
            "queue",
            text("priority DESC"),
            text("rank DESC"),
            "idx",
            postgresql_where=text("state = 'ready' AND rank IS NOT NULL"),
        ),
    )

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    idx: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    queue: Mapped[str] = mapped_column(Text)
    priority: Mapped[int] = mapped_column(SmallInteger)
    state: Mapped[str] = mapped_column(Text)
    missing: Mapped[int] = mapped_column(Integer)
    blocked: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    sent: Mapped[bool] = mapped_column(server_default=text("false"))
    suspect: Mapped[bool] = mapped_column(server_default=text("false"))
    attempt: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    failures: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    due_at: Mapped[datetime] = mapped_column(_MOMENT, server_default=text("now()"))
    lease: Mapped[UUID | None]
    lease_until: Mapped[datetime | None] = mapped_column(_MOMENT)
    started_at: Mapped[datetime | None] = mapped_column(_MOMENT)
    finished_at: Mapped[datetime | None] = mapped_column(_MOMENT)
    worker: Mapped[str | None] = mapped_column(Text)
    dependents: Mapped[list[int]] = mapped_column(ARRAY(Integer))
    refs: Mapped[list[int] | None] = mapped_column(ARRAY(Integer))
    inputs: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    bindings: Mapped[list[Any] | None] = mapped_column(JSONB)
    options: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    progress: Mapped[Any | None] = mapped_column(JSONB)
    result: Mapped[Any | None] = mapped_column(JSONB)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    rank: Mapped[float | None] = mapped_column(REAL)  # seconds of the longest path that begins with it
    expect: Mapped[float | None] = mapped_column(REAL)  # seconds that it is expected to take
    waits_for: Mapped[str | None] = mapped_column(Text)  # what wakes it while it is parked
    wait: Mapped[dict[str, Any] | None] = mapped_column(JSONB)  # what its action must know when it is woken
    fair: Mapped[str | None] = mapped_column(Text)  # the tenant whose turn it is to be
    intent: Mapped[int | None] = mapped_column(SmallInteger)  # the attempt that announced an effect


class SignalRow(Base):
    """Something that the outside world told a run, kept until a step takes it."""

    __tablename__ = "signal"
    __table_args__ = (
        Index("signal_key", "run_id", "name", "key", unique=True),
        Index("signal_open", "run_id", "name", "id", postgresql_where=text("taken_by IS NULL")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    run_id: Mapped[UUID]
    name: Mapped[str] = mapped_column(Text)
    key: Mapped[str] = mapped_column(Text)
    payload: Mapped[Any | None] = mapped_column(JSONB)
    at: Mapped[datetime] = mapped_column(_MOMENT, server_default=text("clock_timestamp()"))
    taken_by: Mapped[int | None] = mapped_column(Integer)


class GateRow(Base):
    """A limit that steps pass one after the other: when its next rate slot is, and whose turn was last."""

    __tablename__ = "gate"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    next_at: Mapped[datetime | None] = mapped_column(_MOMENT)
    turn: Mapped[str | None] = mapped_column(Text)


class PermitRow(Base):
    """A place in a limit, held by a step (or a run: idx -1) for as long as that is not over."""

    __tablename__ = "permit"
    __table_args__ = (Index("permit_step", "run_id", "idx"),)

    gate: Mapped[str] = mapped_column(Text, primary_key=True)
    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    idx: Mapped[int] = mapped_column(Integer, primary_key=True)


class PauseRow(Base):
    """A workflow or a queue that is paused."""

    __tablename__ = "pause"

    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    at: Mapped[datetime] = mapped_column(_MOMENT, server_default=text("clock_timestamp()"))


class DeadLetterRow(Base):
    """A step that failed for good and took its run with it, until somebody replays or discards it."""

    __tablename__ = "dead_letter"
    __table_args__ = (
        Index("dead_letter_at", "at", "run_id", "idx"),
        Index("dead_letter_workflow", "workflow", "at", "run_id", "idx"),
    )

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    idx: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[datetime] = mapped_column(_MOMENT, server_default=text("clock_timestamp()"))
    workflow: Mapped[str] = mapped_column(Text)
    step: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB)


class RetentionRow(Base):
    """How long a workflow's runs are kept after their end."""

    __tablename__ = "retention"

    workflow: Mapped[str] = mapped_column(Text, primary_key=True)
    runs: Mapped[timedelta] = mapped_column(Interval)


class RetentionPartRow(Base):
    """What of a workflow's runs is kept for a shorter time than they are: their events, or their artifacts."""

    __tablename__ = "retention_part"

    part: Mapped[str] = mapped_column(Text, primary_key=True)
    workflow: Mapped[str] = mapped_column(Text, primary_key=True)
    keep: Mapped[timedelta] = mapped_column(Interval)
    until: Mapped[datetime | None] = mapped_column(_MOMENT)  # the end of the last run that this was done for


class EventRow(Base):
    """What the states of the steps do not tell: failed attempts, the end of a run before its time."""

    __tablename__ = "event"
    __table_args__ = (Index("event_run", "run_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    run_id: Mapped[UUID]
    at: Mapped[datetime] = mapped_column(_MOMENT, server_default=text("clock_timestamp()"))
    kind: Mapped[str] = mapped_column(Text)
    idx: Mapped[int | None] = mapped_column(Integer)
    attempt: Mapped[int | None] = mapped_column(SmallInteger)
    detail: Mapped[dict[str, Any] | None] = mapped_column(JSONB)


class ActionStatRow(Base):
    """How long an action takes."""

    __tablename__ = "action_stat"

    action: Mapped[str] = mapped_column(Text, primary_key=True)
    runs: Mapped[int] = mapped_column(BigInteger)
    mean_ms: Mapped[float] = mapped_column(Double)
    updated_at: Mapped[datetime] = mapped_column(_MOMENT, server_default=text("now()"))


class HeartbeatRow(Base):
    """When something was last seen alive."""

    __tablename__ = "heartbeat"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    at: Mapped[datetime] = mapped_column(_MOMENT)
    detail: Mapped[dict[str, Any] | None] = mapped_column(JSONB)


class ScheduleRow(Base):
    """When runs of a workflow start by themselves."""

    __tablename__ = "schedule"
    __table_args__ = (
        Index("schedule_due", "due_at", postgresql_where=text("NOT paused AND due_at IS NOT NULL")),
        Index("schedule_queued", "name", postgresql_where=text("queued > 0")),
        Index("schedule_workflow", "workflow", "name"),
    )

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    workflow: Mapped[str] = mapped_column(Text)
    definition: Mapped[str] = mapped_column(Text, ForeignKey("definition.digest"))
    params: Mapped[dict[str, Any]] = mapped_column(JSONB)
    cron: Mapped[str | None] = mapped_column(Text)
    every: Mapped[float | None] = mapped_column(Double)  # seconds
    timezone: Mapped[str] = mapped_column(Text)
    anchor: Mapped[datetime] = mapped_column(_MOMENT)  # from which intervals are counted
    jitter: Mapped[float] = mapped_column(Double)
    overlap: Mapped[str] = mapped_column(Text)
    catch_up: Mapped[float] = mapped_column(Double)
    tick_param: Mapped[str | None] = mapped_column(Text)  # the parameter that says which tick it is
    paused: Mapped[bool] = mapped_column(server_default=text("false"))
    next_at: Mapped[datetime | None] = mapped_column(_MOMENT)  # the next tick
    due_at: Mapped[datetime | None] = mapped_column(_MOMENT)  # and when to handle it
    last_at: Mapped[datetime | None] = mapped_column(_MOMENT)
    last_run: Mapped[UUID | None]
    running: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid), server_default=text("'{}'"))
    queued: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    started: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    skipped: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    missed_at: Mapped[datetime | None] = mapped_column(
        _MOMENT
    )  # the last tick that was too old to make up for
    problem: Mapped[str | None] = mapped_column(Text)  # why a due tick has not started its run
    created_at: Mapped[datetime] = mapped_column(_MOMENT, server_default=text("now()"))


class ScheduleTickRow(Base):
    """A tick that waits until the run of an earlier one is over."""

    __tablename__ = "schedule_tick"

    schedule: Mapped[str] = mapped_column(
        Text, ForeignKey("schedule.name", ondelete="CASCADE"), primary_key=True
    )
    tick: Mapped[datetime] = mapped_column(_MOMENT, primary_key=True)
    by_hand: Mapped[bool] = mapped_column(server_default=text("false"))
