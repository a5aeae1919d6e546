"""Schedules: when runs start by themselves, and the ticks that wait for their turn.

The index on `run` is partial: a run without `singleton=` or `debounce=` is not in it.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE schedule (
        name text PRIMARY KEY,
        workflow text NOT NULL,
        definition text NOT NULL REFERENCES definition (digest),
        params jsonb NOT NULL,
        cron text,
        every double precision,
        timezone text NOT NULL,
        anchor timestamptz NOT NULL,
        jitter double precision NOT NULL,
        overlap text NOT NULL CHECK (overlap IN ('skip', 'queue', 'cancel', 'allow')),
        catch_up double precision NOT NULL,
        tick_param text,
        paused boolean NOT NULL DEFAULT false,
        next_at timestamptz,
        due_at timestamptz,
        last_at timestamptz,
        last_run uuid,
        running uuid[] NOT NULL DEFAULT '{}',
        queued integer NOT NULL DEFAULT 0,
        started bigint NOT NULL DEFAULT 0,
        skipped bigint NOT NULL DEFAULT 0,
        missed_at timestamptz,
        problem text,
        created_at timestamptz NOT NULL DEFAULT now(),
        CHECK ((cron IS NULL) <> (every IS NULL))
    )
    """,
    "CREATE INDEX schedule_due ON schedule (due_at) WHERE NOT paused AND due_at IS NOT NULL",
    "CREATE INDEX schedule_queued ON schedule (name) WHERE queued > 0",
    "CREATE INDEX schedule_workflow ON schedule (workflow, name)",
    """
    CREATE TABLE schedule_tick (
        schedule text REFERENCES schedule (name) ON DELETE CASCADE,
        tick timestamptz,
        by_hand boolean NOT NULL DEFAULT false,
        PRIMARY KEY (schedule, tick)
    )
    """,
    "CREATE INDEX run_single_recent ON run (workflow, single, id) WHERE single IS NOT NULL",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("migrations go forward only: restore a backup to go back")
