"""Since when a linked key has had its value; and links are found by their text.

What a linked key said becomes a row of its history, which needs to know from when to when it held. What was linked
before counts from the time that was told of it.
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

STATEMENTS = (
    "ALTER TABLE memory_link ADD COLUMN valid_from timestamptz",
    "UPDATE memory_link SET valid_from = least(at, now())",
    # Workers of the last release name no such column.
    "ALTER TABLE memory_link ALTER COLUMN valid_from SET DEFAULT clock_timestamp()",
    "ALTER TABLE memory_link ALTER COLUMN valid_from SET NOT NULL",
    "CREATE INDEX memory_link_hash ON memory_link (hash, tenant, agent)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("migrations go forward only: restore a backup to go back")
