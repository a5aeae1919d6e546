-- Links: keys that say what another row says. They are answered, and are no rows of any index.
--
-- A fact becomes a link only to a row that every search finds which would have found the fact: so searches look at rows
-- alone, whatever their conditions are. What a linked key said before is a row of its history, as of any other key.

-- Whether the row `m` is found by all that the fact `s` is found by. Without a time of its own (`said_at`) what is said
-- again is of the time at which it was said first: else nothing that is stored later would ever be a link. (covering.py
-- says the same of facts of one batch.)
-- name: part_covers
m.trust >= s.trust AND m.source = s.source AND m.metadata @> s.metadata AND (s.actor IS NULL OR m.actor = s.actor)
AND (s.run_id IS NULL OR m.run_id = s.run_id) AND (s.said_at IS NULL OR m.at = s.said_at)

-- name: part_fact
(SELECT %(trust)s::smallint AS trust, %(source)s::text AS source, %(metadata)s::jsonb AS metadata, %(actor)s::text AS actor,
        %(run)s::uuid AS run_id, %(said_at)s::timestamptz AS said_at) s

-- A link as `part_shown` shows a row.
-- name: part_shown_link
l.id, l.key, l.kind, l.agent, l.value, l.text, l.metadata, l.importance, l.source, l.trust, l.actor, NULL::text, NULL::bigint,
l.at, l.valid_from, NULL::timestamptz, l.expires_at, l.run_id, l.step, l.hash

-- Links that `ended` become rows, with the vector of the row that they pointed to.
-- name: part_as_rows
INSERT INTO memory (model, id, tenant, agent, kind, key, value, text, hash, embedding, tsv, metadata, importance, source,
                    trust, actor, at, valid_from, valid_to, expires_at, run_id, step)
SELECT coalesce(m.model, l.model), l.id, l.tenant, l.agent, l.kind, l.key, l.value, l.text, l.hash, m.embedding,
       setweight(to_tsvector('english', left(l.text, 100000)), 'A')
       || setweight(to_tsvector('english', to_char(l.at AT TIME ZONE 'UTC', 'FMDay FMDD FMMonth YYYY')), 'D'),
       l.metadata, l.importance, l.source, l.trust, l.actor, l.at, l.valid_from, l.valid_to, l.expires_at, l.run_id, l.step
  FROM ended l LEFT JOIN memory m ON m.id = l.target AND m.tenant = %(tenant)s::text
 WHERE coalesce(m.model, l.model) IS NOT NULL AND (l.expires_at IS NULL OR l.expires_at > now())

-- name: link
INSERT INTO memory_link (tenant, agent, kind, key, id, target, value, text, hash, metadata, importance, source, trust,
                         actor, at, expires_at, run_id, step)
VALUES (%(tenant)s::text, %(agent)s::text, 'fact', %(key)s::text, %(id)s::uuid, %(target)s::uuid, %(value)s::jsonb,
        %(text)s::text, %(hash)s::bytea, %(metadata)s::jsonb, %(importance)s::real, %(source)s::text,
        %(trust)s::smallint, %(actor)s::text, %(at)s::timestamptz,
        now() + %(ttl)s::float8 * interval '1 second', %(run)s::uuid, %(step)s::integer)

-- name: refresh_link
UPDATE memory_link
   SET expires_at = now() + %(ttl)s::float8 * interval '1 second',
       importance = coalesce(%(importance)s::real, importance), metadata = coalesce(%(metadata)s::jsonb, metadata)
 WHERE id = %(id)s::uuid AND tenant = %(tenant)s::text AND agent = %(agent)s::text
RETURNING {part_handed}

-- A contradiction, as `close` is for rows. Should the row have gone this moment, its vector is made by `mend`.
-- name: close_link
WITH ended AS (
    DELETE FROM memory_link
     WHERE tenant = %(tenant)s::text AND agent = %(agent)s::text AND kind = 'fact' AND key = %(key)s::text
    RETURNING *, %(model)s::smallint AS model, clock_timestamp() AS valid_to
), kept AS (
    {part_as_rows}
)
SELECT {part_handed} FROM ended

-- Links whose row ends, or (`staying`) has other metadata now, become rows: of each row's the most trusted, then the newest;
-- the others follow it if it covers them, and are rows of their own if not.
-- name: promote
WITH orphans AS MATERIALIZED (
    SELECT l.id, l.target, l.trust, l.source, l.metadata, l.actor, l.run_id, l.at,
           CASE WHEN l.at = (SELECT m.at FROM memory m WHERE m.id = l.target AND m.tenant = %(tenant)s::text LIMIT 1)
                THEN l.at END AS said_at
      FROM memory_link l
     WHERE l.target = ANY(%(ids)s::uuid[]) AND l.tenant = %(tenant)s::text AND (l.expires_at IS NULL OR l.expires_at > now())
       AND NOT (%(staying)s::boolean AND EXISTS (
            SELECT FROM memory m WHERE m.id = l.target AND m.tenant = %(tenant)s::text AND m.metadata @> l.metadata))
), chosen AS (
    SELECT DISTINCT ON (target) * FROM orphans ORDER BY target, trust DESC, at DESC, id
), followers AS (
    SELECT s.id, m.id AS heir FROM orphans s JOIN chosen m ON m.target = s.target AND m.id <> s.id WHERE {part_covers}
), moved AS (
    UPDATE memory_link l SET target = f.heir FROM followers f
     WHERE l.id = f.id AND l.target = ANY(%(ids)s::uuid[]) AND l.tenant = %(tenant)s::text
), ended AS (
    DELETE FROM memory_link l USING orphans o
     WHERE l.id = o.id AND l.target = ANY(%(ids)s::uuid[]) AND l.tenant = %(tenant)s::text
       AND NOT EXISTS (SELECT FROM followers f WHERE f.id = o.id)
    RETURNING l.*, NULL::smallint AS model, NULL::timestamptz AS valid_to
)
{part_as_rows}

-- name: unlink
DELETE FROM memory_link
 WHERE tenant = %(tenant)s::text AND agent = %(agent)s::text AND kind = ANY(%(kinds)s::text[])
   AND key = %(key)s::text
RETURNING {part_handed}

-- name: unlink_ids
DELETE FROM memory_link
 WHERE tenant = %(tenant)s::text AND agent = %(agent)s::text AND kind = ANY(%(kinds)s::text[])
   AND id = ANY(%(ids)s::uuid[])
RETURNING {part_handed}

-- name: unlink_filtered
DELETE FROM memory_link l
 USING (SELECT id AS link, tenant, agent, kind, metadata, source, trust, actor, NULL::text AS episode, run_id, at
          FROM memory_link) m
 WHERE l.id = m.link AND l.tenant = m.tenant AND m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text
   AND m.kind = ANY(%(kinds)s::text[]) {part_filters}
RETURNING l.agent, l.key, sha256(convert_to(l.value::text, 'UTF8'))

-- name: unlink_expired
DELETE FROM memory_link WHERE tenant = %(tenant)s::text AND expires_at <= now() RETURNING {part_handed}
