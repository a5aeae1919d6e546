-- Many memories at once. A batch is one transaction: its rows come by binary COPY into a table of the session, find out
-- what is there already, and are inserted together with the position in the file behind them.

-- name: stage
CREATE TEMPORARY TABLE IF NOT EXISTS memory_staged (
    n bigint NOT NULL, id uuid NOT NULL, kind text NOT NULL, key text NOT NULL, value text NOT NULL, text text NOT NULL,
    hash bytea NOT NULL, embedding halfvec, metadata text NOT NULL, importance real NOT NULL, source text NOT NULL,
    trust smallint NOT NULL, actor text, episode text, seq bigint, at timestamptz NOT NULL, valid_from timestamptz,
    valid_to timestamptz, expires_at timestamptz, run_id uuid, step integer, before text, before_that text, twin bigint,
    linked text, said_at timestamptz, outcome text, target uuid
) ON COMMIT DELETE ROWS

-- name: copy
COPY memory_staged (n, id, kind, key, value, text, hash, embedding, metadata, importance, source, trust, actor, episode,
                    seq, at, valid_from, valid_to, expires_at, run_id, step, before, before_that, twin, linked, said_at)
FROM STDIN (FORMAT BINARY)

-- Which of these are there already: they need no vector.
-- name: known
SELECT g.n
  FROM unnest(%(numbers)s::bigint[], %(kinds)s::text[], %(keys)s::text[], %(values)s::text[], %(texts)s::text[],
              %(trusts)s::smallint[]) AS g(n, kind, key, value, text, trust)
  JOIN memory m
    ON m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text
       AND m.kind = g.kind AND m.key = g.key AND m.valid_to IS NULL AND m.value = g.value::jsonb AND m.text = g.text
       AND m.trust >= g.trust AND (m.expires_at IS NULL OR m.expires_at > now())

-- The two entries of each episode before its first in the batch, the newer one first; and the last number of all.
-- name: before
SELECT g.episode, e.text, (SELECT max(m.seq) FROM memory m
                            WHERE m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text AND m.episode = g.episode)
  FROM unnest(%(episodes)s::text[], %(firsts)s::bigint[]) AS g(episode, seq)
  LEFT JOIN LATERAL (
      SELECT m.text, m.seq FROM memory m
       WHERE m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text
         AND m.episode = g.episode AND m.seq < g.seq
       ORDER BY m.seq DESC LIMIT 2) e ON true
 ORDER BY g.episode, e.seq DESC

-- The key has this value, trusted as much: nothing to insert. What was closed is there if it was closed at the same time.
-- name: match_keys
UPDATE memory_staged s
   SET outcome = f.outcome, target = f.id
  FROM (SELECT g.n, m.id,
               CASE WHEN m.value = g.value::jsonb AND m.text = g.text AND m.trust >= g.trust
                         AND (m.expires_at IS NULL OR m.expires_at > now())
                    THEN 'same' WHEN g.kind = 'episode' THEN 'taken' ELSE 'replaced' END AS outcome
          FROM memory_staged g
         CROSS JOIN LATERAL (
             SELECT m.id, m.value, m.text, m.trust, m.expires_at FROM memory m
              WHERE m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text
                AND m.kind = g.kind AND m.key = g.key AND m.valid_to IS NULL
             OFFSET 0) m  -- without it a table that nobody has analysed is read whole, and compared with each row
         WHERE g.valid_to IS NULL) f
 WHERE f.n = s.n

-- name: match_past
UPDATE memory_staged s SET outcome = 'same'
  FROM memory m
 WHERE m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text
   AND m.kind = s.kind AND m.key = s.key AND m.valid_to = s.valid_to AND m.hash = s.hash AND m.trust >= s.trust

-- A link has this value: it stays, whatever it points to. Or it has another one, which will be history.
-- name: match_links
UPDATE memory_staged s
   SET outcome = CASE WHEN l.value = s.value::jsonb AND l.text = s.text AND l.trust >= s.trust THEN 'same' ELSE 'replaced' END,
       target = l.target
  FROM memory_link l
 WHERE s.kind = 'fact' AND s.valid_to IS NULL AND s.outcome IS DISTINCT FROM 'same' AND l.tenant = %(tenant)s::text
   AND l.agent = %(agent)s::text AND l.kind = 'fact' AND l.key = s.key AND (l.expires_at IS NULL OR l.expires_at > now())

-- Entries of episodes whose key is another one's.
-- name: taken
SELECT n FROM memory_staged WHERE outcome = 'taken' ORDER BY n LIMIT 1

-- Rows that would be inserted without the vector that their text has: what was there is gone meanwhile.
-- name: naked
SELECT n FROM memory_staged
 WHERE embedding IS NULL AND text ~ '\S' AND (outcome IS NULL OR outcome = 'replaced') LIMIT 1

-- A staged record as `part_covers` takes a fact.
-- name: part_staged
(SELECT n, kind, key, hash, trust, source, metadata::jsonb AS metadata, actor, run_id, said_at, valid_to, outcome, linked, twin
   FROM memory_staged)

-- Another key of the scope has the same text, or was named as the one that says the same; and it is found by all that
-- would find this one.
-- name: match_texts
UPDATE memory_staged s SET outcome = 'linked', target = f.id
  FROM (SELECT s.n, m.id
          FROM {part_staged} s
         CROSS JOIN LATERAL (
             SELECT m.id, m.trust, m.source, m.metadata, m.actor, m.run_id, m.at FROM memory m
              WHERE m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text
                AND m.kind = 'fact' AND m.hash = s.hash AND m.key <> s.key AND m.valid_to IS NULL
                AND (m.expires_at IS NULL OR m.expires_at > now())
             LIMIT 1000) m
         WHERE s.kind = 'fact' AND s.valid_to IS NULL AND s.outcome IS DISTINCT FROM 'same' AND {part_covers}) f
 WHERE f.n = s.n

-- name: match_named
UPDATE memory_staged s SET outcome = 'linked', target = f.id
  FROM (SELECT s.n, m.id
          FROM {part_staged} s
         CROSS JOIN LATERAL (
             SELECT m.id, m.trust, m.source, m.metadata, m.actor, m.run_id, m.at FROM memory m
              WHERE m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text
                AND m.kind = 'fact' AND m.key = s.linked AND m.key <> s.key AND m.valid_to IS NULL
                AND (m.expires_at IS NULL OR m.expires_at > now())
             OFFSET 0) m
         WHERE s.linked IS NOT NULL AND s.valid_to IS NULL AND s.outcome IS DISTINCT FROM 'same' AND {part_covers}) f
 WHERE f.n = s.n

-- The same within the batch: the first one is the row. Where that one is none, what it was found to be has to do.
-- name: match_twins
UPDATE memory_staged s SET outcome = 'linked', target = f.id
  FROM (SELECT s.n, CASE WHEN f.outcome IN ('same', 'linked') THEN f.target ELSE f.id END AS id
          FROM {part_staged} s
          JOIN memory_staged f ON f.n = s.twin
          LEFT JOIN memory m
            ON f.outcome IN ('same', 'linked') AND m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text
               AND m.id = f.target
         WHERE s.outcome IS DISTINCT FROM 'same' AND s.outcome IS DISTINCT FROM 'linked'
           AND (coalesce(f.outcome, 'replaced') = 'replaced' OR ({part_covers}))) f
 WHERE f.n = s.n

-- As `store` does: the same value again tells how long it lives, and what else is said of it. With the row, of which links
-- may have to part.
-- name: refresh
UPDATE memory m
   SET expires_at = s.expires_at, importance = s.importance, metadata = s.metadata::jsonb
  FROM memory_staged s
 WHERE s.outcome = 'same' AND s.valid_to IS NULL AND m.id = s.target AND m.tenant = %(tenant)s::text AND m.key = s.key
   AND (m.expires_at, m.importance, m.metadata) IS DISTINCT FROM (s.expires_at, s.importance, s.metadata::jsonb)
RETURNING m.id, m.agent, m.key, sha256(convert_to(m.value::text, 'UTF8'))

-- name: refresh_links
UPDATE memory_link l
   SET expires_at = s.expires_at, importance = s.importance, metadata = s.metadata::jsonb
  FROM memory_staged s
 WHERE s.outcome = 'same' AND s.valid_to IS NULL AND s.kind = 'fact' AND l.tenant = %(tenant)s::text
   AND l.agent = %(agent)s::text AND l.kind = 'fact' AND l.key = s.key AND l.target = s.target
   AND (l.expires_at, l.importance, l.metadata) IS DISTINCT FROM (s.expires_at, s.importance, s.metadata::jsonb)
RETURNING l.target, l.agent, l.key, sha256(convert_to(l.value::text, 'UTF8'))

-- name: link
INSERT INTO memory_link (tenant, agent, kind, key, id, target, value, text, hash, metadata, importance, source, trust,
                         actor, at, valid_from, expires_at, run_id, step)
SELECT %(tenant)s::text, %(agent)s::text, 'fact', s.key, s.id, s.target, s.value::jsonb, s.text, s.hash,
       s.metadata::jsonb, s.importance, s.source, s.trust, s.actor, s.at, coalesce(s.valid_from, clock_timestamp()),
       s.expires_at, s.run_id, s.step
  FROM memory_staged s WHERE s.outcome = 'linked'

-- What linked keys said until now is their history.
-- name: close_links
WITH ended AS (
    DELETE FROM memory_link l
     USING memory_staged s
     WHERE l.tenant = %(tenant)s::text AND l.agent = %(agent)s::text AND l.kind = s.kind AND l.key = s.key
       AND s.valid_to IS NULL AND s.outcome IS DISTINCT FROM 'same'
    RETURNING l.*, %(model)s::smallint AS model, clock_timestamp() AS valid_to
), kept AS (
    {part_as_rows}
)
SELECT agent, key, sha256(convert_to(value::text, 'UTF8')) FROM ended

-- Whatever model the old row is of.
-- name: close
UPDATE memory m SET valid_to = clock_timestamp()
  FROM memory_staged s
 WHERE m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text AND m.kind = 'fact' AND s.kind = 'fact' AND m.key = s.key
   AND m.valid_to IS NULL AND s.valid_to IS NULL AND s.outcome IS DISTINCT FROM 'same'
RETURNING m.id, m.agent, m.key, sha256(convert_to(m.value::text, 'UTF8'))

-- name: insert
INSERT INTO memory (model, id, tenant, agent, kind, key, value, text, hash, embedding, tsv, metadata, importance, source,
                    trust, actor, episode, seq, at, valid_from, valid_to, expires_at, run_id, step)
SELECT %(model)s::smallint, s.id, %(tenant)s::text, %(agent)s::text, s.kind, s.key, s.value::jsonb, s.text, s.hash,
       s.embedding,
       setweight(to_tsvector('english', left(s.text, 100000)), 'A')
       || setweight(to_tsvector('english', left(coalesce(s.before, ''), 1000)), 'B')
       || setweight(to_tsvector('english', left(coalesce(s.before_that, ''), 1000)), 'C')
       || setweight(to_tsvector('english', to_char(s.at AT TIME ZONE 'UTC', 'FMDay FMDD FMMonth YYYY')), 'D'),
       s.metadata::jsonb, s.importance, s.source, s.trust, s.actor, s.episode, s.seq, s.at,
       coalesce(s.valid_from, least(clock_timestamp(), s.valid_to)), s.valid_to, s.expires_at, s.run_id, s.step
  FROM memory_staged s
 WHERE s.outcome IS NULL OR s.outcome = 'replaced'

-- name: actors
INSERT INTO memory_actor (tenant, agent, actor)
SELECT DISTINCT %(tenant)s::text, %(agent)s::text, s.actor FROM memory_staged s WHERE s.actor IS NOT NULL
ON CONFLICT DO NOTHING

-- name: outcomes
SELECT coalesce(outcome, 'added'), count(*) FROM memory_staged GROUP BY 1

-- The file as it is when an import of it begins, or goes on: from now on it belongs to this one.
-- name: begin
INSERT INTO memory_import AS i (tenant, agent, model, file, owner, name, size)
VALUES (%(tenant)s::text, %(agent)s::text, %(model)s::smallint, %(file)s::bytea, %(owner)s::uuid, %(name)s::text,
        %(size)s::bigint)
ON CONFLICT (tenant, agent, model, file) DO UPDATE SET name = excluded.name, owner = excluded.owner
RETURNING "offset", line, added, replaced, same, linked, expired, bad, rejected, finished_at

-- name: restart
DELETE FROM memory_import
 WHERE tenant = %(tenant)s::text AND agent = %(agent)s::text AND model = %(model)s::smallint AND file = %(file)s::bytea

-- name: advance
UPDATE memory_import
   SET "offset" = %(offset)s::bigint, line = %(line)s::bigint, added = %(added)s::bigint, replaced = %(replaced)s::bigint,
       same = %(same)s::bigint, linked = %(linked)s::bigint, expired = %(expired)s::bigint, bad = %(bad)s::bigint,
       rejected = %(rejected)s::bigint, updated_at = clock_timestamp(),
       finished_at = CASE WHEN %(done)s::boolean THEN clock_timestamp() END
 WHERE tenant = %(tenant)s::text AND agent = %(agent)s::text AND model = %(model)s::smallint AND file = %(file)s::bytea
   AND owner = %(owner)s::uuid AND "offset" = %(from)s::bigint AND finished_at IS NULL

-- Where it is, if it is this import that brought it there.
-- name: look
SELECT "offset", line, added, replaced, same, linked, expired, bad, rejected, NULL FROM memory_import
 WHERE tenant = %(tenant)s::text AND agent = %(agent)s::text AND model = %(model)s::smallint AND file = %(file)s::bytea
   AND owner = %(owner)s::uuid AND "offset" = %(offset)s::bigint

-- A first load is faster without the index of vectors, which is built at its end.
-- name: unindex
SELECT memory_unindex(%(model)s::smallint)

-- name: index
SELECT memory_index(%(model)s::smallint)

-- All of a scope: entries of episodes in their order, then facts. What two generations of vectors hold is one memory.
-- name: exported
SELECT m.id, m.key, m.kind, m.agent, m.value, m.text, m.metadata, m.importance, m.source, m.trust, m.actor, m.episode,
       m.seq, m.at, m.valid_from, m.valid_to, m.expires_at, m.run_id, m.step, NULL::text, g.name,
       CASE WHEN %(vectors)s::boolean THEN m.embedding::text END
  FROM memory m JOIN memory_model g ON g.id = m.model
 WHERE m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text AND m.kind = ANY(%(kinds)s::text[])
   AND (m.valid_to IS NULL OR %(history)s::boolean) AND (m.expires_at IS NULL OR m.expires_at > now())
   AND NOT EXISTS (SELECT FROM memory_model o JOIN memory n ON n.model = o.id AND n.id = m.id
                    WHERE o.id > m.model AND n.tenant = %(tenant)s::text)
 ORDER BY m.kind, m.episode, m.seq, m.valid_from, m.id

-- name: exported_links
SELECT l.id, l.key, l.kind, l.agent, l.value, l.text, l.metadata, l.importance, l.source, l.trust, l.actor, NULL::text,
       NULL::bigint, l.at, l.valid_from, NULL::timestamptz, l.expires_at, l.run_id, l.step,
       (SELECT m.key FROM memory m WHERE m.id = l.target AND m.tenant = %(tenant)s::text LIMIT 1), NULL::text, NULL::text
  FROM memory_link l
 WHERE l.tenant = %(tenant)s::text AND l.agent = %(agent)s::text AND l.kind = ANY(%(kinds)s::text[])
   AND (l.expires_at IS NULL OR l.expires_at > now())
 ORDER BY l.at, l.id
