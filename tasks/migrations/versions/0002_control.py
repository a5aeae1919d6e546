"""Waiting, limits and control: parked steps, signals, gates, dead letters, pauses, tags, linked runs.

Every column that only some workflows use is null for the others, and every index on it is partial, so that a
plain step pays for none of them.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATEMENTS = (
    "ALTER TABLE run DROP CONSTRAINT run_state_check",
    """
    ALTER TABLE run
        ADD CONSTRAINT run_state_check
            CHECK (state IN ('pending', 'running', 'paused', 'succeeded', 'failed', 'cancelled')),
        ADD COLUMN parent_run uuid,
        ADD COLUMN parent_idx integer,
        ADD COLUMN origin uuid,
        ADD COLUMN origin_kind text,
        ADD COLUMN deadline_at timestamptz,
        ADD COLUMN tags text[] NOT NULL DEFAULT '{}',
        ADD COLUMN tenant text,
        ADD COLUMN single text,
        ADD COLUMN gates text[],
        ADD COLUMN hooks jsonb,
        ADD COLUMN follow boolean NOT NULL DEFAULT false,
        ADD COLUMN edits jsonb
    """,
    "CREATE INDEX run_workflow_state ON run (workflow, state, id)",
    "CREATE INDEX run_finished ON run (workflow, finished_at) WHERE finished_at IS NOT NULL",
    "CREATE INDEX run_parent ON run (parent_run) WHERE parent_run IS NOT NULL",
    "CREATE INDEX run_origin ON run (origin) WHERE origin IS NOT NULL",
    """
    CREATE INDEX run_deadline ON run (deadline_at)
     WHERE deadline_at IS NOT NULL AND state IN ('pending', 'running', 'paused')
    """,
    """
    CREATE UNIQUE INDEX run_single ON run (workflow, single)
     WHERE single IS NOT NULL AND state IN ('pending', 'running', 'paused')
    """,
    """
    CREATE INDEX run_follow ON run (finished_at)
     WHERE follow AND state IN ('succeeded', 'failed', 'cancelled')
    """,
    "CREATE TABLE run_tag (tag text, run_id uuid, PRIMARY KEY (tag, run_id))",
    "CREATE INDEX run_tag_run ON run_tag (run_id)",
    """
    ALTER TABLE step
        ADD COLUMN rank real,
        ADD COLUMN expect real,
        ADD COLUMN waits_for text COLLATE "C",
        ADD COLUMN wait jsonb,
        ADD COLUMN fair text COLLATE "C",
        ADD COLUMN intent smallint
    """,
    "CREATE INDEX step_parked ON step (waits_for, fair, priority DESC, run_id, idx) WHERE state = 'parked'",
    """
    CREATE INDEX step_timer ON step (due_at)
     WHERE state = 'parked' AND wait IS NOT NULL AND due_at < 'infinity'::timestamptz
    """,
    "CREATE INDEX step_overdue ON step (lease_until) WHERE state = 'ready' AND lease_until IS NOT NULL",
    """
    CREATE INDEX step_ranked ON step (run_id, queue, priority DESC, rank DESC, idx)
     WHERE state = 'ready' AND rank IS NOT NULL
    """,
    """
    CREATE TABLE signal (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        run_id uuid NOT NULL,
        name text NOT NULL,
        key text NOT NULL,
        payload jsonb,
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        taken_by integer
    )
    """,
    "CREATE UNIQUE INDEX signal_key ON signal (run_id, name, key)",
    "CREATE INDEX signal_open ON signal (run_id, name, id) WHERE taken_by IS NULL",
    """
    CREATE FUNCTION trellis_wake_parent() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE step
           SET state = 'ready', sent = false, due_at = clock_timestamp(),
               wait = coalesce(wait, '{}') || '{"woken": "run"}'
         WHERE run_id = NEW.parent_run AND idx = NEW.parent_idx AND state = 'parked'
           AND waits_for = 'run:' || NEW.id;
        RETURN NULL;
    END $$
    """,
    # A trigger, because a run ends in several statements, and each must wake the parent in its own transaction.
    # Runs without a parent do not enter it.
    """
    CREATE TRIGGER run_wakes_parent AFTER UPDATE OF state ON run FOR EACH ROW
      WHEN (NEW.parent_run IS NOT NULL AND NEW.state IN ('succeeded', 'failed', 'cancelled'))
      EXECUTE FUNCTION trellis_wake_parent()
    """,
    """
    CREATE TABLE gate (
        name text PRIMARY KEY,
        next_at timestamptz,
        turn text
    )
    """,
    "CREATE TABLE permit (gate text, run_id uuid, idx integer, PRIMARY KEY (gate, run_id, idx))",
    "CREATE INDEX permit_step ON permit (run_id, idx)",
    """
    CREATE TABLE pause (
        kind text CHECK (kind IN ('workflow', 'queue')),
        name text,
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (kind, name)
    )
    """,
    """
    CREATE TABLE dead_letter (
        run_id uuid,
        idx integer,
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        workflow text NOT NULL,
        step text NOT NULL,
        action text NOT NULL,
        error jsonb,
        PRIMARY KEY (run_id, idx)
    )
    """,
    "CREATE INDEX dead_letter_at ON dead_letter (at)",
    "CREATE INDEX dead_letter_workflow ON dead_letter (workflow, at)",
    """
    CREATE TABLE retention (
        workflow text PRIMARY KEY,
        runs interval NOT NULL
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("migrations go forward only: restore a backup to go back")
