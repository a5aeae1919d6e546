"""Indexes whose order is that of the pages that are read along them, to the last column.

With fewer columns than the order has, Postgres sorted, or walked along another index past what the page left out.
Runs that a parent keeps stand in no index of what retention deletes.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STATEMENTS = (
    "DROP INDEX dead_letter_at",
    "CREATE INDEX dead_letter_at ON dead_letter (at, run_id, idx)",
    "DROP INDEX dead_letter_workflow",
    "CREATE INDEX dead_letter_workflow ON dead_letter (workflow, at, run_id, idx)",
    """
    UPDATE run c SET parent_run = NULL
     WHERE parent_run IS NOT NULL AND NOT EXISTS (SELECT FROM run p WHERE p.id = c.parent_run)
    """,
    "DROP INDEX run_workflow_state",
    "CREATE INDEX run_workflow_state ON run ((state || ':' || workflow), id)",
    "DROP INDEX run_finished",
    "CREATE INDEX run_finished ON run (workflow, finished_at) WHERE finished_at IS NOT NULL AND parent_run IS NULL",
    "DROP INDEX run_single_recent",
    "CREATE INDEX run_single_recent ON run (workflow, single, created_at) WHERE single IS NOT NULL",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("migrations go forward only: restore a backup to go back")
