"""A search among the rows that conditions leave: with these conditions alone, on the model's own table, in one look.

Planning for all conditions on the parent, and keeping the rows to count them, was a quarter of such a search (100,000
rows, 1 % of them left: 3.1 ms of Postgres' time became 2.5).
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# The nearest of the rows that conditions leave, each with its place among them; of more than `most` rows only so many
# are looked at, and the last one comes along, whatever its distance: who sees that place knows that there may be more.
# Without `most` all are looked at, and none has a place: 0.
AMONG = """
    CREATE OR REPLACE FUNCTION memory_among(
        the_model smallint, the_agents text[], the_kinds text[], the_metadata jsonb, the_sources text[],
        the_trust smallint, the_by text[], the_episode text, the_run uuid, the_since timestamptz, the_until timestamptz,
        vector halfvec, depth integer, most integer)
    RETURNS TABLE (id uuid, distance double precision, looked bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100 SET search_path = {path}, pg_temp AS $$
    DECLARE
        of_model text := format('FROM %I m', 'memory_' || the_model)
            || ' WHERE m.tenant = $1 AND m.agent = ANY($2) AND m.kind = ANY($3) AND m.valid_to IS NULL'
            || ' AND m.importance >= 0 AND (m.expires_at IS NULL OR m.expires_at > now())'
            || CASE WHEN the_metadata IS NULL THEN '' ELSE ' AND m.metadata @> $4' END
            || CASE WHEN the_sources IS NULL THEN '' ELSE ' AND m.source = ANY($5)' END
            || CASE WHEN the_trust IS NULL THEN '' ELSE ' AND m.trust >= $6' END
            || CASE WHEN the_by IS NULL THEN '' ELSE ' AND m.actor = ANY($7)' END
            || CASE WHEN the_episode IS NULL THEN '' ELSE ' AND m.episode = $8' END
            || CASE WHEN the_run IS NULL THEN '' ELSE ' AND m.run_id = $9' END
            || CASE WHEN the_since IS NULL THEN '' ELSE ' AND m.at >= $10' END
            || CASE WHEN the_until IS NULL THEN '' ELSE ' AND m.at < $11' END
            || ' AND m.embedding IS NOT NULL';
    BEGIN
        RETURN QUERY EXECUTE CASE WHEN most IS NULL THEN
            'SELECT l.id, l.distance, 0::bigint FROM (SELECT m.id, m.embedding <#> $12 AS distance ' || of_model
            || ') l ORDER BY l.distance, l.id LIMIT $13'
        ELSE
            'SELECT l.id, l.distance, l.place FROM (SELECT m.id, m.embedding <#> $12 AS distance,'
            ' row_number() OVER () AS place ' || of_model || ' LIMIT $14) l'
            ' ORDER BY l.place = $14 DESC, l.distance, l.id LIMIT $13'
        END
        USING current_setting('trellis.tenant', true), the_agents, the_kinds, the_metadata, the_sources, the_trust,
              the_by, the_episode, the_run, the_since, the_until, vector, depth, most;
    END $$
"""


def upgrade() -> None:
    bind = op.get_bind()
    # The search path of the function that is replaced: where the tables and the extension are.
    found = bind.exec_driver_sql(
        "SELECT proconfig FROM pg_proc WHERE oid = to_regproc('memory_among')"
    ).scalar_one()
    path = (
        next(each for each in found if each.startswith("search_path="))
        .partition("=")[2]
        .removesuffix(", pg_temp")
    )
    bind.exec_driver_sql(AMONG.replace("{path}", path).replace("%", "%%"))


def downgrade() -> None:
    raise RuntimeError("migrations go forward only: restore a backup to go back")
