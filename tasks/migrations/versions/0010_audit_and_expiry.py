"""What triggers write into the audit log: with the tenant and the correlation id of the run, and without secrets. And
which tenants have memories whose time is over, for the tick.

`audit_redacted` is the rule of `tasks/redaction.py` said once more, since the triggers write by themselves what people
say: a comment, a name, an id. A test holds both to the same cases. Patterns are read in ASCII on both sides, so no
locale of a database changes them.

`memory_expired` runs as the owner, whom no policy holds, so that a worker needs no right of its own. A session in the
role of memories learns nothing from it: there tenants do not know of each other.
"""

from alembic import op
from sqlalchemy import text

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# ruff: noqa: S608 (all that is put into the statements stands in this file)
_NAMES = (
    "passw(or)?d|passphrase|passcode|pwd|secret|token|jwt|authorization|credential|cookie"
    "|(api|access|private|signing|encryption|audit)[-_. ]?keys?"
)
# A bound of a pattern is at most 255 in Postgres, so 500 are said in two halves. "://" is looked for and not behind: a
# megabyte takes 30 ms instead of 5 s.
_ADDRESS = r"(://[^\s:/@]{0,200}):[^\s]{1,250}[^\s]{0,250}@"
_PAIR = rf"((?:^|[?&;,\s])[\w.-]{{0,50}}(?:{_NAMES})=)(?:'[^']*'?|[^\s&;'][^\s&;]*)"
# Where nothing of this stands, nothing is to be taken out: a look of 5 us instead of a walk of 200.
_HINT = "://|=|pass|pwd|secret|token|jwt|authorization|credential|cookie|key|bearer"

REDACTED = (
    rf"""
    CREATE FUNCTION audit_redacted_text(value text) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
    BEGIN
        IF position('://' IN value) > 0 THEN
            value := regexp_replace(value COLLATE "C", $re${_ADDRESS}$re$, '\1:***@', 'g');
        END IF;
        IF position('=' IN value) > 0 THEN
            value := regexp_replace(value COLLATE "C", $re${_PAIR}$re$, '\1***', 'gi');
        END IF;
        RETURN value;
    END $$
    """,
    f"""
    CREATE FUNCTION audit_redacted(value jsonb, name text = '') RETURNS jsonb
        LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
    BEGIN
        IF name = '' AND value::text COLLATE "C" !~* '{_HINT}' THEN
            RETURN value;
        END IF;
        IF jsonb_typeof(value) <> 'null' AND name COLLATE "C" ~* '{_NAMES}|pass$|bearer$' THEN
            RETURN '"***"';
        END IF;
        RETURN CASE jsonb_typeof(value)
            WHEN 'string' THEN to_jsonb(audit_redacted_text(value #>> '{{}}'))
            WHEN 'object' THEN (SELECT coalesce(jsonb_object_agg(e.key, audit_redacted(e.value, e.key)), '{{}}')
                                  FROM jsonb_each(value) e)
            WHEN 'array' THEN (SELECT coalesce(jsonb_agg(audit_redacted(e.value) ORDER BY e.n), '[]')
                                 FROM jsonb_array_elements(value) WITH ORDINALITY e(value, n))
            ELSE value
        END;
    END $$
    """,
)
WRITE = """
    CREATE OR REPLACE FUNCTION audit_write(done text, what text, detail jsonb, run uuid = NULL, tenant text = NULL,
                                           correlation text = NULL, who text = NULL)
        RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO audit_log (actor, tenant, action, target, outcome, correlation_id, run_id, detail)
        VALUES (audit_redacted_text(coalesce(nullif(who, ''), nullif(current_setting('trellis.actor', true), ''),
                                             session_user)),
                tenant, done, audit_redacted_text(what), 'done', correlation, run, audit_redacted(detail));
    END $$
"""

# As they were (0005), but with the run's tenant and correlation id.
TRIGGERS = {
    "signal": """
        IF NEW.name LIKE 'approval:%' THEN
            PERFORM audit_write(CASE NEW.payload->>'vote' WHEN 'approved' THEN 'approval.given'
                                                          ELSE 'approval.refused' END,
                                'step:' || NEW.run_id || '/' || substr(NEW.name, 10),
                                jsonb_build_object('comment', NEW.payload->'comment', 'shown', NEW.payload->'shown')
                                || audit_via(), NEW.run_id, told.tenant, told.correlation_id, NEW.payload->>'by');
        ELSE
            PERFORM audit_write('signal.sent', 'run:' || NEW.run_id,
                                jsonb_build_object('signal', NEW.name, 'id', NEW.key),
                                NEW.run_id, told.tenant, told.correlation_id);
        END IF;
    """,
    "event": """
        PERFORM audit_write(CASE NEW.kind WHEN 'step.resolved' THEN 'doubt.resolved'
                                          ELSE 'dead_letter.discarded' END,
                            'step:' || NEW.run_id || '/'
                            || coalesce((SELECT s.name FROM step s WHERE s.run_id = NEW.run_id AND s.idx = NEW.idx),
                                        NEW.idx::text),
                            CASE NEW.kind WHEN 'step.resolved' THEN jsonb_build_object('answer',
                                CASE WHEN NEW.detail ? 'done' THEN 'done' WHEN NEW.detail ? 'retry' THEN 'retry'
                                     ELSE 'fail' END) || audit_via() END,
                            NEW.run_id, told.tenant, told.correlation_id, NEW.detail->>'by');
    """,
}

# Tenants in order, each found by the index that a time has: as many steps as there are tenants, and not rows.
_TIMED = "memory", "memory_link", "working"
EXPIRED = f"""
    CREATE FUNCTION memory_expired(after text, most integer) RETURNS TABLE (tenant text, expired boolean)
        LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = {{path}} AS $$
    #variable_conflict use_column
    DECLARE
        whose text := after;
    BEGIN
        IF current_setting('role') = 'trellis_memory' THEN
            RETURN;
        END IF;
        FOR n IN 1..most LOOP
            SELECT min(t.tenant) INTO whose FROM ({
    " UNION ALL ".join(
        f"(SELECT m.tenant FROM {table} m WHERE m.expires_at IS NOT NULL AND m.tenant > whose "
        "ORDER BY m.tenant LIMIT 1)"
        for table in _TIMED
    )
}) t;
            EXIT WHEN whose IS NULL;
            RETURN QUERY SELECT whose, {
    " OR ".join(
        f"EXISTS (SELECT FROM {table} m WHERE m.tenant = whose AND m.expires_at <= now())" for table in _TIMED
    )
};
        END LOOP;
    END $$
"""


def upgrade() -> None:
    bind = op.get_bind()
    path = bind.execute(text("SELECT quote_ident(current_schema())")).scalar_one() + ", pg_temp"
    for statement in (*REDACTED, WRITE, EXPIRED.replace("{path}", path)):
        bind.exec_driver_sql(statement.replace("%", "%%"))  # op.execute would take `:name` for a parameter
    for name, body in TRIGGERS.items():
        function = (
            f"CREATE OR REPLACE FUNCTION audit_{name}() RETURNS trigger LANGUAGE plpgsql "
            f"SECURITY DEFINER SET search_path = {path} AS $$ DECLARE told record; BEGIN "
            "SELECT r.tenant, r.correlation_id INTO told FROM run r WHERE r.id = NEW.run_id; "
            f"{body} RETURN NULL; END $$"
        )
        bind.exec_driver_sql(function.replace("%", "%%"))


def downgrade() -> None:
    raise RuntimeError("migrations go forward only: restore a backup to go back")
