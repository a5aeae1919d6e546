"""The journal's tables for SQLAlchemy: what clients list and show is asked through these.

The law: these classes describe, the migrations create; a test compares the two. The engine's hot
statements do not pass here (sql/journal.sql).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from ..tasks.database import Base

_MOMENT = DateTime(timezone=True)


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


class StepRow(Base):
    """A step of a run. Its place in the graph is `dependents`: the steps that wait for it."""

    __tablename__ = "step"
    __table_args__ = (
        Index("step_ready", "queue", "sent", "due_at", postgresql_where=text("state = 'ready'")),
        Index("step_running", "lease_until", postgresql_where=text("state = 'running'")),
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
