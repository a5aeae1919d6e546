"""The journal: definitions, runs, steps, events; action statistics and heartbeats."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    DO $$ BEGIN
        -- Memories need it later; a journal alone does without, so its absence is not an error here.
        IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector') THEN
            CREATE EXTENSION IF NOT EXISTS vector;
        END IF;
    EXCEPTION WHEN insufficient_privilege THEN
        RAISE NOTICE 'extension vector not created: ask a superuser for CREATE EXTENSION vector';
    END $$
    """,
    """
    CREATE TABLE definition (
        digest text PRIMARY KEY,
        name text NOT NULL,
        spec jsonb NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX definition_name ON definition (name, created_at)",
    """
    CREATE TABLE run (
        id uuid PRIMARY KEY,
        workflow text NOT NULL,
        definition text NOT NULL REFERENCES definition,
        key text,
        correlation_id text NOT NULL,
        state text NOT NULL CHECK (state IN ('pending', 'running', 'succeeded', 'failed', 'cancelled')),
        params jsonb NOT NULL,
        steps integer NOT NULL,
        missing integer NOT NULL,
        error jsonb,
        created_at timestamptz NOT NULL DEFAULT now(),
        started_at timestamptz,
        finished_at timestamptz
    ) WITH (fillfactor = 70)
    """,
    "CREATE UNIQUE INDEX run_key ON run (workflow, key) WHERE key IS NOT NULL",
    "CREATE INDEX run_workflow ON run (workflow, id)",
    "CREATE INDEX run_state ON run (state, id)",
    """
    CREATE TABLE step (
        run_id uuid NOT NULL,
        idx integer NOT NULL,
        name text NOT NULL,
        action text NOT NULL,
        queue text NOT NULL,
        priority smallint NOT NULL,
        state text NOT NULL CHECK (state IN
            ('waiting', 'ready', 'running', 'succeeded', 'failed', 'skipped', 'cancelled', 'parked')),
        missing integer NOT NULL,
        blocked integer NOT NULL DEFAULT 0,
        sent boolean NOT NULL DEFAULT false,
        suspect boolean NOT NULL DEFAULT false,
        attempt smallint NOT NULL DEFAULT 0,
        failures smallint NOT NULL DEFAULT 0,
        due_at timestamptz NOT NULL DEFAULT now(),
        lease uuid,
        lease_until timestamptz,
        started_at timestamptz,
        finished_at timestamptz,
        worker text,
        dependents integer[] NOT NULL,
        refs integer[],
        inputs jsonb,
        bindings jsonb,
        options jsonb,
        progress jsonb,
        result jsonb,
        error jsonb,
        PRIMARY KEY (run_id, idx)
    ) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_limit = 2000)
    """,
    "CREATE INDEX step_ready ON step (queue, sent, due_at) WHERE state = 'ready'",
    "CREATE INDEX step_running ON step (lease_until) WHERE state = 'running'",
    """
    CREATE TABLE event (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        run_id uuid NOT NULL,
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        kind text NOT NULL,
        idx integer,
        attempt smallint,
        detail jsonb
    )
    """,
    "CREATE INDEX event_run ON event (run_id, id)",
    """
    CREATE TABLE action_stat (
        action text PRIMARY KEY,
        runs bigint NOT NULL,
        mean_ms double precision NOT NULL,
        updated_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE TABLE heartbeat (
        name text PRIMARY KEY,
        at timestamptz NOT NULL,
        detail jsonb
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("migrations go forward only: restore a backup to go back")
