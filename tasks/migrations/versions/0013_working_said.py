"""What is said of a value of working memory: its text, metadata, importance, source, trust, and whose fact gave it.

With it a value of a task is searched and filtered as facts and entries are. A hash tells texts that say the same.
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    ALTER TABLE working
        ADD COLUMN id uuid NOT NULL DEFAULT gen_random_uuid(),
        ADD COLUMN text text NOT NULL DEFAULT '',
        ADD COLUMN hash bytea NOT NULL DEFAULT '',
        ADD COLUMN metadata jsonb NOT NULL DEFAULT '{}',
        ADD COLUMN importance real NOT NULL DEFAULT 0.5 CHECK (importance BETWEEN 0 AND 1),
        ADD COLUMN source text NOT NULL DEFAULT 'agent' CHECK (source IN ('user', 'tool', 'web', 'agent')),
        ADD COLUMN trust smallint NOT NULL DEFAULT 2 CHECK (trust BETWEEN 0 AND 3),
        ADD COLUMN actor text,
        ADD COLUMN at timestamptz NOT NULL DEFAULT clock_timestamp(),
        ADD COLUMN run_id uuid,
        ADD COLUMN step integer,
        ADD COLUMN owner text
    """,
    # Of what is there the text is the value's own, or its JSON: a line for each leaf is made by the code that stores.
    """
    UPDATE working
       SET text = CASE jsonb_typeof(value) WHEN 'string' THEN value #>> '{}' ELSE value::text END, at = used_at
    """,
    "UPDATE working SET hash = sha256(convert_to(text, 'UTF8'))",
    *(
        f"ALTER TABLE working ALTER COLUMN {name} DROP DEFAULT"
        for name in ("id", "text", "hash", "source", "trust", "at")
    ),
)


def upgrade() -> None:
    bind = op.get_bind()
    for statement in STATEMENTS:
        bind.exec_driver_sql(statement)


def downgrade() -> None:
    raise RuntimeError("migrations go forward only: restore a backup to go back")
