"""How far episodes were distilled to facts.

An entry was read where neither its number nor the time at which it was written lies behind the mark: numbers are used
again where the end of an episode was forgotten. Behind the same row-level security as the memories.
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TENANT = "tenant = (SELECT current_setting('trellis.tenant', true))"

STATEMENTS = (
    """
    CREATE TABLE memory_distilled (
        tenant text NOT NULL,
        agent text NOT NULL,
        episode text NOT NULL,
        seq bigint NOT NULL,
        until timestamptz NOT NULL,
        PRIMARY KEY (tenant, agent, episode)
    ) WITH (fillfactor = 70)
    """,
    "ALTER TABLE memory_distilled ENABLE ROW LEVEL SECURITY",
    f"CREATE POLICY memory_distilled_tenant ON memory_distilled USING ({TENANT}) WITH CHECK ({TENANT})",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON memory_distilled TO trellis_memory",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("migrations go forward only: restore a backup to go back")
