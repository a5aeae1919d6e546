"""Working memory, and how far imports of memories are.

The order of use is a sequence: clocks go back, and two uses may share a microsecond. Both tables are behind the same
row-level security as the memories.
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TENANT = "tenant = (SELECT current_setting('trellis.tenant', true))"

STATEMENTS = (
    "ALTER TABLE memory_model ADD COLUMN successor smallint",  # whose vectors took the place of this one's
    "CREATE SEQUENCE working_use",
    """
    CREATE TABLE working (
        tenant text NOT NULL,
        agent text NOT NULL,
        task text NOT NULL,
        key text NOT NULL,
        value jsonb NOT NULL,
        used bigint NOT NULL,
        used_at timestamptz NOT NULL,
        expires_at timestamptz,
        PRIMARY KEY (tenant, agent, task, key)
    ) WITH (fillfactor = 70)
    """,
    "CREATE INDEX working_expires ON working (tenant, expires_at) WHERE expires_at IS NOT NULL",
    "CREATE INDEX working_key ON working (tenant, key)",  # facts that end take back what tasks were handed of them
    """
    CREATE TABLE memory_import (
        tenant text NOT NULL,
        agent text NOT NULL,
        model smallint NOT NULL,
        file bytea NOT NULL,
        owner uuid NOT NULL,
        name text NOT NULL,
        size bigint NOT NULL,
        "offset" bigint NOT NULL DEFAULT 0,
        line bigint NOT NULL DEFAULT 0,
        added bigint NOT NULL DEFAULT 0,
        replaced bigint NOT NULL DEFAULT 0,
        same bigint NOT NULL DEFAULT 0,
        linked bigint NOT NULL DEFAULT 0,
        expired bigint NOT NULL DEFAULT 0,
        bad bigint NOT NULL DEFAULT 0,
        rejected bigint NOT NULL DEFAULT 0,
        started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        finished_at timestamptz,
        PRIMARY KEY (tenant, agent, model, file)
    ) WITH (fillfactor = 70)
    """,
    *(
        statement
        for table in ("working", "memory_import")
        for statement in (
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"CREATE POLICY {table}_tenant ON {table} USING ({TENANT}) WITH CHECK ({TENANT})",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO trellis_memory",
        )
    ),
    "GRANT USAGE ON SEQUENCE working_use TO trellis_memory",
)

# A first load is several times as fast into a partition without its index of vectors, and that index is built faster,
# and better, from all rows at once. Only the owner may do either, so the role asks these functions.
INDEXES = (
    """
    CREATE FUNCTION memory_unindex(wanted smallint) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = {path}, pg_temp SET lock_timeout = '2s' AS $$
    DECLARE
        part text := 'memory_' || wanted;
        empty boolean;
    BEGIN
        PERFORM FROM memory_model WHERE id = wanted;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
        EXECUTE format('SELECT NOT EXISTS (SELECT FROM %I)', part) INTO empty;
        IF NOT empty THEN
            RETURN false;
        END IF;
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', part);  -- then nobody has a row on its way
        EXECUTE format('SELECT NOT EXISTS (SELECT FROM %I)', part) INTO empty;
        IF empty THEN
            EXECUTE format('DROP INDEX IF EXISTS %I', part || '_hnsw');
        END IF;
        RETURN empty;
    EXCEPTION WHEN lock_not_available THEN
        RETURN false;  -- it is in use: searches would wait behind us, and rows go into the index one by one
    END $$
    """,
    """
    CREATE FUNCTION memory_index(wanted smallint) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = {path}, pg_temp AS $$
    DECLARE
        part text := 'memory_' || wanted;
        size integer;
    BEGIN
        SELECT dims INTO size FROM memory_model WHERE id = wanted;
        IF NOT FOUND OR to_regclass(format('%I', part || '_hnsw')) IS NOT NULL THEN
            RETURN false;
        END IF;
        EXECUTE format('LOCK TABLE %I IN SHARE MODE', part);
        IF to_regclass(format('%I', part || '_hnsw')) IS NOT NULL THEN
            RETURN false;  -- another import was first
        END IF;
        EXECUTE format('CREATE INDEX %I ON %I USING hnsw ((embedding::halfvec(%s)) halfvec_ip_ops) '
                       'WITH (m = 16, ef_construction = 64) WHERE valid_to IS NULL', part || '_hnsw', part, size);
        RETURN true;
    END $$
    """,
)


def upgrade() -> None:
    bind = op.get_bind()
    [[path]] = bind.exec_driver_sql(
        "SELECT string_agg(DISTINCT quote_ident(each), ', ') FROM (SELECT current_schema() AS each UNION ALL "
        "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
        "WHERE e.extname = 'vector') s"
    )
    for statement in (*STATEMENTS, *(each.replace("{path}", path) for each in INDEXES)):
        bind.exec_driver_sql(statement.replace("%", "%%"))
    for name in ("memory_unindex", "memory_index"):
        op.execute(f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO trellis_memory")


def downgrade() -> None:
    raise RuntimeError("migrations go forward only: restore a backup to go back")
