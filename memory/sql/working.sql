-- Working memory: one statement a verb, right behind `enter` in the same transaction and round trip.
-- The tenant stands in every statement, and row-level security asks for it once more.

-- name: enter
-- Those who use one task take turns. The lock is a statement of its own, since the next one sees what was
-- committed while it waited: in one statement with the verb, it would count the rows as they were before.
SELECT pg_advisory_xact_lock(hashtextextended(concat_ws(chr(31), %(tenant)s::text, %(agent)s::text, %(task)s::text), 7))

-- name: enter_lightly
-- For a use: one that a crash of Postgres forgets is no loss worth a wait for the disk.
SELECT pg_advisory_xact_lock(hashtextextended(concat_ws(chr(31), %(tenant)s::text, %(agent)s::text, %(task)s::text), 7)),
       set_config('synchronous_commit', 'off', true)

-- name: part_mine
m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text AND m.task = %(task)s::text

-- name: part_alive
(m.expires_at IS NULL OR m.expires_at > clock_timestamp())

-- A value as an entry (`part_shown` of memory.sql): `at` is also since when it is there, and `owner` the agent whose fact
-- gave it.
-- name: part_item
m.id, m.key, 'working', coalesce(m.owner, m.agent), m.value, m.text, m.metadata, m.importance, m.source, m.trust, m.actor, NULL::text,
NULL::bigint, m.at, m.at, NULL::timestamptz, m.expires_at, m.run_id, m.step

-- What is said of a value.
-- name: part_said
value, text, hash, metadata, importance, source, trust, actor, at, run_id, step

-- name: part_room
-- The newest is no candidate for eviction, so it cannot be lost to it. A few rows whose time is over go as well,
-- of whichever task of the tenant; the tick takes out those that nobody comes across.
others AS (
    SELECT key, expires_at,
           row_number() OVER (ORDER BY coalesce(expires_at <= clock_timestamp(), false), used DESC) AS place
      FROM working
     WHERE tenant = %(tenant)s::text AND agent = %(agent)s::text AND task = %(task)s::text AND key <> %(key)s::text
), evicted AS (
    DELETE FROM working w
     USING others o
     WHERE w.tenant = %(tenant)s::text AND w.agent = %(agent)s::text AND w.task = %(task)s::text AND w.key = o.key
       AND (o.place >= %(capacity)s::int OR o.expires_at <= clock_timestamp()) AND EXISTS (SELECT FROM stored)
    RETURNING w.key, w.used, w.expires_at
), swept AS (
    DELETE FROM working
     WHERE tenant = %(tenant)s::text AND ctid = ANY (ARRAY(
        SELECT ctid FROM working
         WHERE tenant = %(tenant)s::text AND expires_at <= now() AND (agent, task) <> (%(agent)s::text, %(task)s::text)
         ORDER BY expires_at LIMIT 20
           FOR UPDATE SKIP LOCKED))
)

-- name: part_anew
ON CONFLICT (tenant, agent, task, key) DO UPDATE
   SET (id, owner, used, used_at, expires_at, {part_said})
       = ROW(EXCLUDED.id, EXCLUDED.owner, EXCLUDED.used, EXCLUDED.used_at, EXCLUDED.expires_at, EXCLUDED.value,
             EXCLUDED.text, EXCLUDED.hash, EXCLUDED.metadata, EXCLUDED.importance, EXCLUDED.source, EXCLUDED.trust,
             EXCLUDED.actor, EXCLUDED.at, EXCLUDED.run_id, EXCLUDED.step)
RETURNING id, key

-- The same value again is the same one, with the time, the importance and the metadata that are said now; but one that
-- a fact gave is from now on the task's own.
-- name: store
WITH before AS (
    SELECT m.*, m.value = %(value)s::jsonb AND m.trust >= %(trust)s::smallint AS same FROM working m
     WHERE {part_mine} AND m.key = %(key)s::text AND {part_alive}
), wanted AS (
    SELECT %(id)s::uuid AS id, %(value)s::jsonb AS value, %(text)s::text AS text, %(hash)s::bytea AS hash,
           %(metadata)s::jsonb AS metadata, %(importance)s::real AS importance, %(source)s::text AS source,
           %(trust)s::smallint AS trust, %(actor)s::text AS actor, %(at)s::timestamptz AS at, %(run)s::uuid AS run_id,
           %(step)s::integer AS step
     WHERE NOT EXISTS (SELECT FROM before WHERE same AND owner IS NULL)
     UNION ALL
    SELECT id, value, text, hash, coalesce(%(told_metadata)s::jsonb, metadata),
           coalesce(%(told_importance)s::real, importance), source, trust, actor, at, run_id, step
      FROM before WHERE same AND owner IS NULL
), stored AS (
    INSERT INTO working (tenant, agent, task, key, id, owner, used, used_at, expires_at, {part_said})
    SELECT %(tenant)s::text, %(agent)s::text, %(task)s::text, %(key)s::text, id, NULL, nextval('working_use'),
           clock_timestamp(), clock_timestamp() + make_interval(secs => %(ttl)s::float8), {part_said}
      FROM wanted
    {part_anew}
), {part_room}
SELECT (SELECT id FROM stored),
       coalesce((SELECT CASE WHEN same THEN 'same' ELSE 'replaced' END FROM before), 'added'),
       ARRAY(SELECT key FROM evicted WHERE expires_at IS NULL OR expires_at > clock_timestamp() ORDER BY used)

-- name: hand
-- What a fact says, or a key that is linked to one, until that expires. Whoever is about to end it waits for this, and
-- then takes back what was handed (`hand_back` in memory.sql); who comes behind that finds nothing to hand.
WITH fact AS (
    SELECT id, agent, expires_at, {part_said} FROM memory
     WHERE id = %(id)s::uuid AND tenant = %(tenant)s::text AND agent IN (%(agent)s::text, '') AND kind = 'fact'
       AND key = %(key)s::text AND valid_to IS NULL
       AND (expires_at IS NULL OR expires_at > clock_timestamp())
       FOR SHARE
), link AS (
    SELECT id, agent, expires_at, {part_said} FROM memory_link
     WHERE id = %(id)s::uuid AND tenant = %(tenant)s::text AND agent IN (%(agent)s::text, '') AND kind = 'fact'
       AND key = %(key)s::text
       AND (expires_at IS NULL OR expires_at > clock_timestamp())
       FOR SHARE
), stored AS (
    INSERT INTO working (tenant, agent, task, key, id, owner, used, used_at, expires_at, {part_said})
    SELECT %(tenant)s::text, %(agent)s::text, %(task)s::text, %(key)s::text, f.id, f.agent, nextval('working_use'),
           clock_timestamp(), f.expires_at, {part_said}
      FROM (SELECT * FROM fact UNION ALL SELECT * FROM link LIMIT 1) f
    {part_anew}
), {part_room}
SELECT key FROM stored

-- name: retrieve
UPDATE working m
   SET used = nextval('working_use'), used_at = clock_timestamp()
 WHERE {part_mine} AND m.key = %(key)s::text AND {part_alive}
RETURNING {part_item}

-- The few values that there are, by the share of the query's words (English stems without stop words) that their texts
-- have, importance and trust. A query without such a word gives the newest.
-- name: search
WITH words AS MATERIALIZED (
    SELECT ('''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''')::tsquery AS tq
      FROM unnest(to_tsvector('english', %(text)s::text)) LIMIT 64
), asked AS MATERIALIZED (
    SELECT count(*)::float8 AS words FROM words
), scored AS (
    SELECT m.*, a.words > 0 AS spoken, s.found / nullif(a.words, 0) AS share,
           %(importance)s::float8 * (m.importance - 0.5) AS importance_part, %(trusted)s::float8 * m.trust / 3 AS trusted_part
      FROM (SELECT *, NULL::text AS episode FROM working) m
     CROSS JOIN asked a
     CROSS JOIN LATERAL (SELECT to_tsvector('english', left(m.text, 100000)) AS tsv) t
     CROSS JOIN LATERAL (SELECT count(*)::float8 AS found FROM words w WHERE t.tsv @@ w.tq) s
     WHERE {part_mine} AND {part_alive} {part_filters}
), single AS (
    SELECT *, CASE WHEN spoken THEN share + importance_part + trusted_part ELSE 0 END AS score,
           row_number() OVER (PARTITION BY hash ORDER BY share DESC, importance_part + trusted_part DESC, at DESC, used DESC) AS copy
      FROM scored
)
SELECT {part_item}, m.score, m.spoken, m.share, m.importance_part, m.trusted_part FROM single m
 WHERE m.copy = 1 ORDER BY m.score DESC, m.at DESC, m.used DESC LIMIT %(limit)s::integer

-- name: items
SELECT key, value, used_at, expires_at
  FROM working
 WHERE tenant = %(tenant)s::text AND agent = %(agent)s::text AND task = %(task)s::text
   AND (expires_at IS NULL OR expires_at > clock_timestamp())
 ORDER BY used DESC

-- name: forget
DELETE FROM working m WHERE {part_mine} AND m.key = %(key)s::text AND (m.owner IS NULL OR NOT %(own_only)s::boolean)
RETURNING {part_alive}

-- name: forget_filtered
DELETE FROM working w
 USING (SELECT *, NULL::text AS episode FROM working) m
 WHERE {part_mine} {part_filters} AND (m.owner IS NULL OR NOT %(own_only)s::boolean)
   AND w.tenant = m.tenant AND w.agent = m.agent AND w.task = m.task AND w.key = m.key
RETURNING w.expires_at IS NULL OR w.expires_at > clock_timestamp()

-- name: expired
WITH gone AS (
    DELETE FROM working
     WHERE tenant = %(tenant)s::text AND ctid = ANY (ARRAY(
        SELECT ctid FROM working WHERE tenant = %(tenant)s::text AND expires_at <= now()
         ORDER BY expires_at LIMIT %(most)s::integer FOR UPDATE SKIP LOCKED))
    RETURNING 1
)
SELECT count(*) FROM gone

-- name: clear
WITH gone AS (
    DELETE FROM working
     WHERE tenant = %(tenant)s::text AND agent = %(agent)s::text AND task = %(task)s::text
    RETURNING expires_at
)
SELECT count(*) FILTER (WHERE expires_at IS NULL OR expires_at > clock_timestamp()) FROM gone
