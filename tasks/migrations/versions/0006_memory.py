"""Memory: models and their partitions, links, use counts, words; the role behind which tenants do not see each other.

A partition holds the rows of one embedding model, so no index ever mixes two. The role `trellis_memory` owns nothing:
what it reads and writes passes a policy on the tenant. Row-level security keeps Postgres from using an index for an
operator that might leak (`@@`, `@>`), so those of large scopes are asked inside functions of the owner,
which apply the tenant themselves. The tables' owner is not held to the policies, or those functions would be as well.
"""

from alembic import op

from trellis.tasks.errors import MissingExtension

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TENANT = "tenant = (SELECT current_setting('trellis.tenant', true))"

EXTENSION = """
    DO $$ BEGIN
        IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector') THEN
            CREATE EXTENSION IF NOT EXISTS vector;
        END IF;
    EXCEPTION WHEN insufficient_privilege THEN
        NULL;  -- said below, with what to do
    END $$
"""

ROLE = """
    DO $$ BEGIN
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'trellis_memory') THEN
            BEGIN
                CREATE ROLE trellis_memory NOLOGIN;
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;  -- a migration of another database of this server came first
            END;
        END IF;
        IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
            BEGIN
                GRANT trellis_memory TO CURRENT_USER;
            EXCEPTION WHEN insufficient_privilege THEN
                NULL;  -- it may have been granted before; the first use of a memory looks
            END;
        END IF;
    EXCEPTION WHEN insufficient_privilege THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE =
            'the role trellis_memory is missing and this user may not create it: as a superuser run '
            'CREATE ROLE trellis_memory NOLOGIN; GRANT trellis_memory TO the user of TRELLIS_DATABASE_URL';
    END $$
"""

TABLES = (
    """
    CREATE TABLE memory_model (
        id smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text NOT NULL UNIQUE,
        dims integer NOT NULL CHECK (dims BETWEEN 1 AND 4000),
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE TABLE memory (
        model smallint NOT NULL,
        id uuid NOT NULL,
        tenant text NOT NULL,
        agent text NOT NULL,
        kind text NOT NULL CHECK (kind IN ('fact', 'episode')),
        key text NOT NULL,
        value jsonb NOT NULL,
        text text NOT NULL,
        hash bytea NOT NULL,
        embedding halfvec,
        tsv tsvector NOT NULL,
        metadata jsonb NOT NULL DEFAULT '{}',
        importance real NOT NULL DEFAULT 0.5 CHECK (importance BETWEEN 0 AND 1),
        source text NOT NULL CHECK (source IN ('user', 'tool', 'web', 'agent')),
        trust smallint NOT NULL CHECK (trust BETWEEN 0 AND 3),
        actor text,
        episode text,
        seq bigint,
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        valid_from timestamptz NOT NULL DEFAULT clock_timestamp(),
        valid_to timestamptz,
        expires_at timestamptz,
        run_id uuid,
        step integer,
        PRIMARY KEY (id, model),
        CHECK ((kind = 'episode') = (episode IS NOT NULL AND seq IS NOT NULL))
    ) PARTITION BY LIST (model)
    """,
    "CREATE INDEX memory_bare ON memory (tenant) WHERE embedding IS NULL AND text <> ''",
    # Beside the row if there is room: an exact search reads them all, and one that lies elsewhere costs a look-up each.
    "ALTER TABLE memory ALTER COLUMN embedding SET STORAGE MAIN",
    # A fresh table has no statistics, and an index on the scope alone looks as good for one row as the one of its
    # key: each look-up would read the whole scope. So keys and hashes come first, and the index of the scope is only
    # for who names its second condition, which is true of every row.
    "CREATE UNIQUE INDEX memory_key ON memory (key, tenant, agent, kind, model) WHERE valid_to IS NULL",
    "CREATE INDEX memory_past ON memory (tenant, agent, kind, key, valid_from) WHERE valid_to IS NOT NULL",
    "CREATE INDEX memory_scope ON memory (tenant, agent, kind, at) WHERE valid_to IS NULL AND importance >= 0",
    "CREATE INDEX memory_hash ON memory (hash, tenant, agent, kind) WHERE valid_to IS NULL",
    "CREATE INDEX memory_episode ON memory (tenant, agent, episode, seq) WHERE episode IS NOT NULL",
    "CREATE INDEX memory_run ON memory (tenant, run_id, step) WHERE run_id IS NOT NULL",
    "CREATE INDEX memory_expiry ON memory (tenant, expires_at) WHERE expires_at IS NOT NULL",
    "CREATE INDEX memory_tsv ON memory USING gin (tsv) WITH (fastupdate = off) WHERE valid_to IS NULL",
    """
    CREATE INDEX memory_metadata ON memory USING gin (metadata jsonb_path_ops) WITH (fastupdate = off)
     WHERE valid_to IS NULL
    """,
    """
    CREATE TABLE memory_link (
        tenant text NOT NULL,
        agent text NOT NULL,
        kind text NOT NULL,
        key text NOT NULL,
        id uuid NOT NULL,
        target uuid NOT NULL,
        value jsonb NOT NULL,
        text text NOT NULL,
        hash bytea NOT NULL,
        metadata jsonb NOT NULL,
        importance real NOT NULL,
        source text NOT NULL,
        trust smallint NOT NULL,
        actor text,
        at timestamptz NOT NULL,
        expires_at timestamptz,
        run_id uuid,
        step integer,
        PRIMARY KEY (tenant, agent, kind, key)
    )
    """,
    "CREATE INDEX memory_link_target ON memory_link (target)",
    "CREATE INDEX memory_link_expiry ON memory_link (tenant, expires_at) WHERE expires_at IS NOT NULL",
    # How often a row was found changes with every search: beside the vectors it would rewrite their index.
    """
    CREATE TABLE memory_use (
        id uuid PRIMARY KEY,
        tenant text NOT NULL,
        hits bigint NOT NULL,
        last_hit timestamptz NOT NULL
    ) WITH (fillfactor = 70)
    """,
    """
    CREATE TABLE memory_actor (
        tenant text NOT NULL,
        agent text NOT NULL,
        actor text NOT NULL,
        PRIMARY KEY (tenant, agent, actor)
    )
    """,
    # Of large scopes: how many rows there are, how long they are in words, and in how many of them a word stands.
    """
    CREATE TABLE memory_size (
        model smallint NOT NULL,
        tenant text NOT NULL,
        agent text NOT NULL,
        kind text NOT NULL,
        rows bigint NOT NULL,
        length double precision NOT NULL,
        counted_at timestamptz NOT NULL,
        PRIMARY KEY (model, tenant, agent, kind)
    )
    """,
    """
    CREATE TABLE memory_word (
        model smallint NOT NULL,
        tenant text NOT NULL,
        agent text NOT NULL,
        kind text NOT NULL,
        word text NOT NULL,
        rows double precision NOT NULL,
        PRIMARY KEY (model, tenant, agent, kind, word)
    )
    """,
)

PARTITION = """
    CREATE FUNCTION memory_open_model(wanted text, size integer) RETURNS memory_model
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = {path}, pg_temp AS $$
    DECLARE
        made memory_model;
        part text;
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtextextended('trellis.memory.model', 0));
        SELECT * INTO made FROM memory_model WHERE name = wanted;
        IF FOUND THEN
            RETURN made;
        END IF;
        INSERT INTO memory_model (name, dims) VALUES (wanted, size) RETURNING * INTO made;
        part := 'memory_' || made.id;
        -- Made apart and attached: searches of other models go on meanwhile.
        EXECUTE format('CREATE TABLE %I (LIKE memory INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE) '
                       'WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02)', part);
        EXECUTE format('ALTER TABLE %I ADD CHECK (model = %s), ADD CHECK (vector_dims(embedding) = %s)',
                       part, made.id, size);
        -- With no policy: only through the parent.
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', part);
        EXECUTE format('CREATE INDEX %I ON %I USING hnsw ((embedding::halfvec(%s)) halfvec_ip_ops) '
                       'WITH (m = 16, ef_construction = 64) WHERE valid_to IS NULL', part || '_hnsw', part, size);
        EXECUTE format('ALTER TABLE memory ATTACH PARTITION %I FOR VALUES IN (%s)', part, made.id);
        RETURN made;
    END $$
"""

# ruff: noqa: S608 (all that is put into the statements stands in this file)
# What a search may ask for besides its scope, in the order in which the functions below take it.
GIVEN = """
    the_model smallint, the_agents text[], the_kinds text[], the_metadata jsonb, the_sources text[], the_trust smallint,
    the_by text[], the_episode text, the_run uuid, the_since timestamptz, the_until timestamptz
"""
REACHED = """
    m.model = the_model AND m.tenant = current_setting('trellis.tenant', true) AND m.agent = ANY(the_agents)
    AND m.kind = ANY(the_kinds) AND m.valid_to IS NULL AND m.importance >= 0
    AND (m.expires_at IS NULL OR m.expires_at > now())
    AND (the_metadata IS NULL OR m.metadata @> the_metadata)
    AND (the_sources IS NULL OR m.source = ANY(the_sources))
    AND (the_trust IS NULL OR m.trust >= the_trust)
    AND (the_by IS NULL OR m.actor = ANY(the_by))
    AND (the_episode IS NULL OR m.episode = the_episode)
    AND (the_run IS NULL OR m.run_id = the_run)
    AND (the_since IS NULL OR m.at >= the_since)
    AND (the_until IS NULL OR m.at < the_until)
"""
FUNCTIONS = (
    # The nearest of all rows that conditions leave, if they leave no more than `most`; with the number of them.
    f"""
    CREATE FUNCTION memory_among({GIVEN}, vector halfvec, depth integer, most integer)
    RETURNS TABLE (id uuid, distance double precision, looked bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100 SET search_path = {{path}}, pg_temp
    SET plan_cache_mode = force_custom_plan AS $$
    #variable_conflict use_column
    BEGIN
        RETURN QUERY
        WITH left_over AS MATERIALIZED (
            SELECT m.id, m.embedding <#> vector AS distance FROM memory m
             WHERE {REACHED} AND m.embedding IS NOT NULL LIMIT most
        )
        SELECT l.id, l.distance, (SELECT count(*) FROM left_over)
          FROM left_over l ORDER BY l.distance, l.id LIMIT depth;
    END $$
    """,
    # The rows with the words `chosen`, at most `budget` of them, scored by all words of a query.
    f"""
    CREATE FUNCTION memory_lexical({GIVEN}, chosen tsquery, words text[], idf double precision[],
                                   length double precision, weights real[], b double precision, depth integer,
                                   budget integer)
    RETURNS TABLE (id uuid, score double precision)
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100 SET search_path = {{path}}, pg_temp
    SET plan_cache_mode = force_custom_plan AS $$
    #variable_conflict use_column
    BEGIN
        RETURN QUERY
        WITH matched AS MATERIALIZED (
            SELECT m.id, m.tsv, pg_catalog.length(m.tsv)::double precision AS len FROM memory m
             WHERE {REACHED} AND m.tsv @@ chosen LIMIT budget
        ), weighed AS MATERIALIZED (
            SELECT w.word::tsquery AS tq, w.idf FROM unnest(words, idf) AS w(word, idf)
        )
        SELECT m.id, sum(w.idf * r.rank * 2 / (r.rank + 1 - b + b * m.len / length)) AS score
          FROM matched m CROSS JOIN weighed w
         CROSS JOIN LATERAL (SELECT ts_rank(weights, m.tsv, w.tq)::double precision AS rank) r
         GROUP BY m.id ORDER BY 2 DESC, 1 LIMIT depth;
    END $$
    """,
    # How often each word stands in a scope, by a sample in the order of the hashes of texts, which is no order at all.
    """
    CREATE FUNCTION memory_count_words(the_model smallint, the_agent text, the_kind text, sample integer)
    RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = {path}, pg_temp AS $$
    DECLARE
        the_tenant text := current_setting('trellis.tenant', true);
        total bigint;
        mean double precision;
        part text;
    BEGIN
        IF NOT pg_try_advisory_xact_lock(hashtextextended(concat_ws(E'\\n', 'trellis.memory.words', the_model,
                                                                    the_tenant, the_agent, the_kind), 0)) THEN
            RETURN false;  -- somebody else is at it
        END IF;
        SELECT count(*) INTO total FROM memory
         WHERE model = the_model AND tenant = the_tenant AND agent = the_agent AND kind = the_kind AND valid_to IS NULL
           AND importance >= 0;
        part := format('SELECT tsv FROM memory WHERE model = %s AND tenant = %L AND agent = %L AND kind = %L
                        AND valid_to IS NULL ORDER BY hash LIMIT %s',
                       the_model, the_tenant, the_agent, the_kind, sample);
        EXECUTE format('SELECT coalesce(avg(length(tsv)), 0) FROM (%s) s', part) INTO mean;
        DELETE FROM memory_word
         WHERE model = the_model AND tenant = the_tenant AND agent = the_agent AND kind = the_kind;
        INSERT INTO memory_word (model, tenant, agent, kind, word, rows)
        SELECT the_model, the_tenant, the_agent, the_kind, w.word,
               w.ndoc * greatest(total::double precision / sample, 1)
          FROM ts_stat(part) w WHERE w.ndoc > 1 AND octet_length(w.word) <= 200;
        INSERT INTO memory_size (model, tenant, agent, kind, rows, length, counted_at)
        VALUES (the_model, the_tenant, the_agent, the_kind, total, mean, clock_timestamp())
        ON CONFLICT (model, tenant, agent, kind)
        DO UPDATE SET rows = excluded.rows, length = excluded.length, counted_at = excluded.counted_at;
        RETURN true;
    END $$
    """,
)


def upgrade() -> None:
    bind = op.get_bind()
    op.execute(EXTENSION)
    schema = bind.exec_driver_sql(
        "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
        "WHERE e.extname = 'vector'"
    ).scalar()
    if schema is None:
        raise MissingExtension("vector", "memories keep their vectors in it")
    own = bind.exec_driver_sql("SELECT quote_ident(current_schema())").scalar()
    path = ", ".join(dict.fromkeys((str(own), str(schema))))
    for statement in (ROLE, *TABLES, *(each.replace("{path}", path) for each in (PARTITION, *FUNCTIONS))):
        bind.exec_driver_sql(statement.replace("%", "%%"))  # op.execute would take `:name` for a parameter
    for table in ("memory", "memory_link", "memory_use", "memory_actor", "memory_size", "memory_word"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY {table}_tenant ON {table} USING ({TENANT}) WITH CHECK ({TENANT})")
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO trellis_memory")
    op.execute("GRANT SELECT ON memory_model TO trellis_memory")
    op.execute(f"GRANT USAGE ON SCHEMA {own} TO trellis_memory")
    for name in ("memory_open_model", "memory_among", "memory_lexical", "memory_count_words"):
        op.execute(f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO trellis_memory")


def downgrade() -> None:
    raise RuntimeError("migrations go forward only: restore a backup to go back")
