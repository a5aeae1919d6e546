-- What a tenant's memories are, and how large the tables of all tenants have become.

-- name: rows
SELECT g.name, m.agent, m.kind,
       count(*) FILTER (WHERE m.valid_to IS NULL AND (m.expires_at IS NULL OR m.expires_at > now())) AS live,
       count(*) FILTER (WHERE m.valid_to IS NOT NULL) AS past,
       count(*) FILTER (WHERE m.valid_to IS NULL AND m.expires_at <= now()) AS expired,
       count(*) FILTER (WHERE m.embedding IS NULL AND m.text ~ '\S') AS bare,
       max(m.at)
  FROM memory m JOIN memory_model g ON g.id = m.model
 WHERE m.tenant = %(tenant)s::text AND (%(agent)s::text IS NULL OR m.agent = %(agent)s::text)
 GROUP BY g.id, g.name, m.agent, m.kind
 ORDER BY g.id, m.agent, m.kind

-- name: links
SELECT count(*) FROM memory_link
 WHERE tenant = %(tenant)s::text AND (%(agent)s::text IS NULL OR agent = %(agent)s::text)

-- name: uses
SELECT count(*), coalesce(sum(hits), 0)::bigint, max(last_hit) FROM memory_use WHERE tenant = %(tenant)s::text

-- name: working
SELECT count(DISTINCT (agent, task)), count(*) FROM working
 WHERE tenant = %(tenant)s::text AND (%(agent)s::text IS NULL OR agent = %(agent)s::text)
   AND (expires_at IS NULL OR expires_at > now())

-- name: imports
SELECT i.name, i.agent, i."offset", i.size, i.updated_at FROM memory_import i
 WHERE i.tenant = %(tenant)s::text AND (%(agent)s::text IS NULL OR i.agent = %(agent)s::text) AND i.finished_at IS NULL
 ORDER BY i.updated_at DESC

-- Of all tenants, by model: the table with what is stored outside of it, and its indexes.
-- name: sizes
SELECT g.name, g.dims, pg_table_size(p.part),
       coalesce((SELECT sum(pg_relation_size(x.indexrelid)) FROM pg_index x
                  WHERE x.indrelid = p.part AND x.indexrelid = p.hnsw), 0)::bigint,
       coalesce((SELECT sum(pg_relation_size(x.indexrelid)) FROM pg_index x
                  WHERE x.indrelid = p.part AND x.indexrelid IS DISTINCT FROM p.hnsw), 0)::bigint,
       p.hnsw IS NOT NULL
  FROM memory_model g
 CROSS JOIN LATERAL (SELECT to_regclass('memory_' || g.id) AS part, to_regclass('memory_' || g.id || '_hnsw') AS hnsw) p
 WHERE p.part IS NOT NULL
 ORDER BY g.id

-- Keys and agents that may have been meant.
-- name: keys
SELECT DISTINCT key FROM (
    (SELECT key FROM memory WHERE tenant = %(tenant)s::text AND agent = ANY(%(agents)s::text[]) AND kind = 'fact'
        AND valid_to IS NULL ORDER BY at DESC LIMIT 2000)
    UNION ALL
    (SELECT key FROM memory_link WHERE tenant = %(tenant)s::text AND agent = ANY(%(agents)s::text[]) LIMIT 500)
) k

-- name: agents
WITH RECURSIVE walk AS (
    (SELECT agent FROM memory WHERE tenant = %(tenant)s::text AND valid_to IS NULL ORDER BY agent LIMIT 1)
    UNION ALL
    SELECT (SELECT m.agent FROM memory m WHERE m.tenant = %(tenant)s::text AND m.valid_to IS NULL AND m.agent > w.agent
             ORDER BY m.agent LIMIT 1)
      FROM walk w WHERE w.agent IS NOT NULL
)
SELECT agent FROM walk WHERE agent IS NOT NULL LIMIT 1000
