"""The audit log: append-only by the database itself, in partitions by month, and the seals over it.

What the engine has to say there is written by triggers: in the transaction of what it records, whoever's statement
that was, without a round trip. `trellis.actor`, which every connection of ours sets, says who acts. The triggers write
with the rights of who migrated, so that who may start a run needs no right on the log, and with a search path of
their own, so that no table of a session's stands in for it.
"""

from alembic import op
from sqlalchemy import text

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TABLES = (
    # A row's place is the number of its transaction, and `audit_done` the first number that is not over. A database
    # that was restored into another cluster counts from a lower one; then `audit_rebase` adds the difference to both.
    "CREATE FUNCTION audit_tx() RETURNS xid8 LANGUAGE sql STABLE AS 'SELECT pg_current_xact_id()'",
    "CREATE FUNCTION audit_done() RETURNS xid8 LANGUAGE sql STABLE AS 'SELECT pg_snapshot_xmin(pg_current_snapshot())'",
    """
    CREATE TABLE audit_log (
        id bigint GENERATED ALWAYS AS IDENTITY,
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        tx xid8 NOT NULL DEFAULT audit_tx(),
        actor text NOT NULL,
        tenant text,
        action text NOT NULL,
        target text,
        outcome text NOT NULL CHECK (outcome IN ('done', 'refused', 'failed')),
        correlation_id text,
        run_id uuid,
        detail jsonb
    ) PARTITION BY RANGE (at)
    """,
    # The order in which rows are sealed; all others are for who reads, the newest first.
    "CREATE INDEX audit_log_order ON audit_log (tx, id)",
    "CREATE INDEX audit_log_at ON audit_log (at, id)",
    "CREATE INDEX audit_log_action ON audit_log (action, at, id)",
    "CREATE INDEX audit_log_actor ON audit_log (actor, at, id)",
    "CREATE INDEX audit_log_run ON audit_log (run_id, at, id) WHERE run_id IS NOT NULL",
    "CREATE INDEX audit_log_target ON audit_log (target, at, id) WHERE target !~ '^(run|step):'",
    "CREATE INDEX audit_log_tenant ON audit_log (tenant, at, id) WHERE tenant IS NOT NULL",
    "CREATE INDEX audit_log_outcome ON audit_log (outcome, at, id) WHERE outcome <> 'done'",
    """
    CREATE TABLE audit_seal (
        seq bigint PRIMARY KEY,
        month date NOT NULL,
        last_tx xid8 NOT NULL,
        last_id bigint NOT NULL,
        ids bigint[] NOT NULL,
        digests bytea NOT NULL,
        previous bytea NOT NULL,
        key text NOT NULL,
        mac bytea NOT NULL,
        sealed_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    """
    CREATE TABLE audit_retired (
        month date PRIMARY KEY,
        rows bigint NOT NULL,
        last_seal bigint NOT NULL,
        key text NOT NULL,
        mac bytea NOT NULL,
        at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
)

# {path}: the schema of these tables, and temporary tables after it.
FUNCTIONS = (
    """
    CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'insufficient_privilege',
              HINT = 'Retention detaches whole months: trellis audit retire';
    END $$
    """,
    # Makes the partition of a month; false where it is there, where somebody is making it, and where rows of that
    # month lie in `audit_log_rest` already, which a partition could not take from it. Nobody waits for this for long:
    # it locks the log, and whoever writes would wait behind it.
    """
    CREATE FUNCTION audit_partition(whole date) RETURNS boolean
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = {path} SET lock_timeout = '1s' AS $$
    DECLARE
        first timestamptz := whole::timestamp AT TIME ZONE 'UTC';
        next timestamptz := (whole + interval '1 month') AT TIME ZONE 'UTC';
        name text := 'audit_log_' || to_char(whole, 'YYYY_MM');
    BEGIN
        IF to_regclass(name) IS NOT NULL OR NOT pg_try_advisory_xact_lock(7205759403792797)
           OR EXISTS (SELECT FROM audit_log_rest WHERE at >= first AND at < next) THEN
            RETURN false;
        END IF;
        EXECUTE format('CREATE TABLE %I PARTITION OF audit_log FOR VALUES FROM (%L) TO (%L)', name, first, next);
        EXECUTE format('CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON %I EXECUTE FUNCTION audit_refuse()', name);
        RETURN true;
    END $$
    """,
    # Detaches a month if it holds exactly so many rows; answers with how many it holds.
    """
    CREATE FUNCTION audit_detach(whole date, expected bigint) RETURNS bigint
        LANGUAGE plpgsql SET search_path = {path} SET lock_timeout = '5s' AS $$
    DECLARE
        name text := 'audit_log_' || to_char(whole, 'YYYY_MM');
        held bigint;
    BEGIN
        EXECUTE format('SELECT count(*) FROM %I', name) INTO held;
        IF held = expected THEN
            EXECUTE format('ALTER TABLE audit_log DETACH PARTITION %I', name);
        END IF;
        RETURN held;
    END $$
    """,
    # Answers with how far the numbers were moved: 0 where they go on after those of the log by themselves.
    """
    CREATE FUNCTION audit_rebase() RETURNS numeric LANGUAGE plpgsql SET search_path = {path} AS $$
    DECLARE
        here numeric := pg_snapshot_xmin(pg_current_snapshot())::text::numeric;  -- the lowest that still may write
        highest numeric;
        shift numeric;
    BEGIN
        LOCK TABLE audit_log, audit_seal IN EXCLUSIVE MODE;
        SELECT greatest((SELECT tx FROM audit_log ORDER BY tx DESC, id DESC LIMIT 1),
                        (SELECT last_tx FROM audit_seal ORDER BY seq DESC LIMIT 1))::text::numeric INTO highest;
        IF highest IS NULL OR highest < audit_tx()::text::numeric THEN
            RETURN 0;
        END IF;
        shift := highest - here + 1;
        EXECUTE format('CREATE OR REPLACE FUNCTION audit_tx() RETURNS xid8 LANGUAGE sql STABLE AS %L',
            format('SELECT (pg_current_xact_id()::text::numeric + %s)::text::xid8', shift));
        EXECUTE format('CREATE OR REPLACE FUNCTION audit_done() RETURNS xid8 LANGUAGE sql STABLE AS %L',
            format('SELECT (pg_snapshot_xmin(pg_current_snapshot())::text::numeric + %s)::text::xid8', shift));
        RETURN shift;
    END $$
    """,
    """
    CREATE FUNCTION audit_write(done text, what text, detail jsonb, run uuid = NULL, tenant text = NULL,
                                correlation text = NULL, who text = NULL) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO audit_log (actor, tenant, action, target, outcome, correlation_id, run_id, detail)
        VALUES (coalesce(nullif(who, ''), nullif(current_setting('trellis.actor', true), ''), session_user),
                tenant, done, what, 'done', correlation, run, detail);
    END $$
    """,
    "REVOKE EXECUTE ON FUNCTION audit_write FROM PUBLIC",
    # Whoever decides says who they are (`by`); the connection over which it came is kept beside it.
    """
    CREATE FUNCTION audit_via() RETURNS jsonb LANGUAGE sql STABLE AS $$
        SELECT jsonb_build_object('via', coalesce(nullif(current_setting('trellis.actor', true), ''), session_user))
    $$
    """,
)

# What each trigger writes: its name, what it declares, what it does.
TRIGGERS = (
    (
        "run",
        "told record := CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;"
        "detail jsonb := jsonb_build_object('workflow', told.workflow);",
        """
        IF TG_OP = 'INSERT' THEN
            detail := detail || jsonb_strip_nulls(jsonb_build_object(
                'definition', told.definition, 'parent', told.parent_run, 'origin', told.origin));
        END IF;
        PERFORM audit_write(TG_ARGV[0], 'run:' || told.id, detail, told.id, told.tenant, told.correlation_id);
        """,
    ),
    (
        "definition",
        "",
        """
        PERFORM audit_write('definition.registered', 'workflow:' || NEW.name,
                            jsonb_build_object('digest', NEW.digest));
        """,
    ),
    (
        "signal",
        "",
        """
        IF NEW.name LIKE 'approval:%' THEN
            PERFORM audit_write(CASE NEW.payload->>'vote' WHEN 'approved' THEN 'approval.given'
                                                          ELSE 'approval.refused' END,
                                'step:' || NEW.run_id || '/' || substr(NEW.name, 10),
                                jsonb_build_object('comment', NEW.payload->'comment', 'shown', NEW.payload->'shown')
                                || audit_via(), NEW.run_id, who => NEW.payload->>'by');
        ELSE
            PERFORM audit_write('signal.sent', 'run:' || NEW.run_id,
                                jsonb_build_object('signal', NEW.name, 'id', NEW.key), NEW.run_id);
        END IF;
        """,
    ),
    # How a doubt was resolved; not with which result, which may be anything.
    (
        "event",
        "name text := (SELECT s.name FROM step s WHERE s.run_id = NEW.run_id AND s.idx = NEW.idx);",
        """
        PERFORM audit_write(CASE NEW.kind WHEN 'step.resolved' THEN 'doubt.resolved'
                                          ELSE 'dead_letter.discarded' END,
                            'step:' || NEW.run_id || '/' || coalesce(name, NEW.idx::text),
                            CASE NEW.kind WHEN 'step.resolved' THEN jsonb_build_object('answer',
                                CASE WHEN NEW.detail ? 'done' THEN 'done' WHEN NEW.detail ? 'retry' THEN 'retry'
                                     ELSE 'fail' END) || audit_via() END,
                            NEW.run_id, who => NEW.detail->>'by');
        """,
    ),
    (
        "pause",
        "told record := CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;",
        """
        PERFORM audit_write(told.kind || CASE TG_OP WHEN 'DELETE' THEN '.resumed' ELSE '.paused' END,
                            told.kind || ':' || told.name, NULL);
        """,
    ),
    (
        "retention",
        "told record := CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;"
        "was interval := CASE WHEN TG_OP <> 'INSERT' THEN OLD.runs END;"
        "becomes interval := CASE WHEN TG_OP <> 'DELETE' THEN NEW.runs END;",
        """
        IF was IS DISTINCT FROM becomes THEN
            PERFORM audit_write('setting.changed', 'retention:' || told.workflow,
                                jsonb_build_object('was', was, 'is', becomes));
        END IF;
        """,
    ),
    (
        "schedule",
        "told record := CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;",
        """
        PERFORM audit_write('schedule.' || CASE TG_OP WHEN 'INSERT' THEN 'created' WHEN 'UPDATE' THEN 'changed'
                                                      ELSE 'deleted' END,
                            'schedule:' || told.name, jsonb_strip_nulls(jsonb_build_object(
                                'workflow', told.workflow, 'cron', told.cron, 'every', told.every,
                                'timezone', told.timezone, 'overlap', told.overlap, 'paused', told.paused)));
        """,
    ),
)

# A change of a run's state, as the action that it is: the trigger, when it looks, and when it writes.
RUNS = (
    ("started", "INSERT", "NEW.origin_kind IS DISTINCT FROM 'rerun'"),
    ("rerun", "INSERT", "NEW.origin_kind = 'rerun'"),
    ("deleted", "DELETE", "true"),
    ("cancelled", "UPDATE OF state", "NEW.state = 'cancelled' AND OLD.state <> 'cancelled'"),
    ("paused", "UPDATE OF state", "NEW.state = 'paused' AND OLD.state <> 'paused'"),
    ("resumed", "UPDATE OF state", "OLD.state = 'paused' AND NEW.state IN ('pending', 'running')"),
    (
        "retried",
        "UPDATE OF state",
        "OLD.state IN ('failed', 'cancelled') AND NEW.state IN ('pending', 'running', 'paused')",
    ),
)

ATTACHED = (
    *(
        f"CREATE TRIGGER audit_{name} AFTER {when} ON run FOR EACH ROW WHEN ({condition}) "
        f"EXECUTE FUNCTION audit_run('run.{name}')"
        for name, when, condition in RUNS
    ),
    "CREATE TRIGGER audit AFTER INSERT ON definition FOR EACH ROW EXECUTE FUNCTION audit_definition()",
    """
    CREATE TRIGGER audit AFTER INSERT ON signal FOR EACH ROW WHEN (NEW.name NOT LIKE 'task:%')
      EXECUTE FUNCTION audit_signal()
    """,
    """
    CREATE TRIGGER audit AFTER INSERT ON event FOR EACH ROW WHEN (NEW.kind IN ('step.resolved', 'dead.discarded'))
      EXECUTE FUNCTION audit_event()
    """,
    "CREATE TRIGGER audit AFTER INSERT OR DELETE ON pause FOR EACH ROW EXECUTE FUNCTION audit_pause()",
    """
    CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON retention FOR EACH ROW
      EXECUTE FUNCTION audit_retention()
    """,
    "CREATE TRIGGER audit AFTER INSERT OR DELETE ON schedule FOR EACH ROW EXECUTE FUNCTION audit_schedule()",
    # Not when one fires: only what people say about a schedule.
    """
    CREATE TRIGGER audit_changed AFTER UPDATE ON schedule FOR EACH ROW
      WHEN ((OLD.definition, OLD.params, OLD.cron, OLD.every, OLD.timezone, OLD.jitter, OLD.overlap, OLD.catch_up,
             OLD.paused) IS DISTINCT FROM
            (NEW.definition, NEW.params, NEW.cron, NEW.every, NEW.timezone, NEW.jitter, NEW.overlap, NEW.catch_up,
             NEW.paused))
      EXECUTE FUNCTION audit_schedule()
    """,
    # A month that nobody made a partition for is kept all the same.
    "CREATE TABLE audit_log_rest PARTITION OF audit_log DEFAULT",
    "SELECT audit_partition((date_trunc('month', now() AT TIME ZONE 'UTC') + n * interval '1 month')::date) "
    "FROM generate_series(0, 3) AS n",
    *(
        statement
        for table in ("audit_log", "audit_seal", "audit_retired")
        for statement in (
            f"CREATE TRIGGER refuse BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION audit_refuse()",
            f"CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON {table} EXECUTE FUNCTION audit_refuse()",
        )
    ),
    "CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON audit_log_rest EXECUTE FUNCTION audit_refuse()",
)


def upgrade() -> None:
    schema = op.get_bind().execute(text("SELECT quote_ident(current_schema())")).scalar_one()
    path = f"{schema}, pg_temp"
    for statement in TABLES:
        op.execute(statement)
    for statement in FUNCTIONS:
        op.execute(statement.replace("{path}", path))
    for name, declared, body in TRIGGERS:
        function = (
            f"CREATE FUNCTION audit_{name}() RETURNS trigger LANGUAGE plpgsql "
            f"SECURITY DEFINER SET search_path = {path} AS $$ DECLARE {declared} BEGIN {body} RETURN NULL; END $$"
        )
        op.execute(function)
    for statement in ATTACHED:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("migrations go forward only: restore a backup to go back")
