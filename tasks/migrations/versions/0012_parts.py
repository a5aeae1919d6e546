"""What goes before its run: events and artifacts that are kept for a shorter time.

`until`: the end of the last run of the workflow that this was done for, so that the next purge goes on from there. Runs
with a parent have an index of their own, for theirs is not what retention deletes runs along.
"""

from alembic import op
from sqlalchemy import text

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE retention_part (
        part text NOT NULL,
        workflow text NOT NULL,
        keep interval NOT NULL,
        until timestamptz,
        PRIMARY KEY (part, workflow)
    )
    """,
    """
    CREATE INDEX run_finished_below ON run (workflow, finished_at)
      WHERE finished_at IS NOT NULL AND parent_run IS NOT NULL
    """,
    """
    CREATE FUNCTION audit_retention_part() RETURNS trigger
      LANGUAGE plpgsql SECURITY DEFINER SET search_path = {path} AS $$
    DECLARE
        told record := CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
        was interval := CASE WHEN TG_OP <> 'INSERT' THEN OLD.keep END;
        becomes interval := CASE WHEN TG_OP <> 'DELETE' THEN NEW.keep END;
    BEGIN
        IF was IS DISTINCT FROM becomes THEN
            PERFORM audit_write('setting.changed', 'retention:' || told.workflow,
                                jsonb_build_object('part', told.part, 'was', was, 'is', becomes));
        END IF;
        RETURN NULL;
    END $$
    """,
    # Not when a purge notes how far it came: only what people say.
    """
    CREATE TRIGGER audit AFTER INSERT OR UPDATE OF keep OR DELETE ON retention_part FOR EACH ROW
      EXECUTE FUNCTION audit_retention_part()
    """,
)


def upgrade() -> None:
    schema = op.get_bind().execute(text("SELECT quote_ident(current_schema())")).scalar_one()
    for statement in STATEMENTS:
        op.execute(statement.replace("{path}", f"{schema}, pg_temp"))


def downgrade() -> None:
    raise RuntimeError("migrations go forward only: restore a backup to go back")
