-- How far episodes were distilled, and what facts were made of them. Tenants are kept apart by row-level security as well.

-- What came later than this is for the next time: else a run over an episode that is being written would not end.
-- name: now
SELECT clock_timestamp()

-- Episodes that were forgotten leave no name behind.
-- name: tidy
DELETE FROM memory_distilled d
 WHERE d.tenant = %(tenant)s::text AND d.agent = %(agent)s::text
   AND NOT EXISTS (SELECT FROM memory m
                    WHERE m.tenant = d.tenant AND m.agent = d.agent AND m.episode = d.episode)

-- Behind the last entry that was read; or, where the end of an episode was forgotten and its numbers are used again,
-- written after it.
-- name: part_unread
      m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text
  AND m.episode IS NOT NULL AND m.valid_to IS NULL AND (m.expires_at IS NULL OR m.expires_at > now())
  AND m.valid_from <= %(began)s::timestamptz
  AND NOT EXISTS (SELECT FROM memory_distilled d
                   WHERE d.tenant = m.tenant AND d.agent = m.agent AND d.episode = m.episode
                     AND d.seq >= m.seq AND d.until >= m.valid_from)

-- name: count
SELECT count(*) FROM memory m WHERE {part_unread} AND (%(only)s::text IS NULL OR m.episode = %(only)s::text)

-- Along the index of episodes, from where this run is on.
-- name: next
SELECT m.episode FROM memory m
 WHERE {part_unread} AND (m.episode, m.seq) > (%(episode)s::text, %(after)s::bigint)
 ORDER BY m.tenant, m.agent, m.episode, m.seq LIMIT 1

-- name: turns
SELECT m.id, m.text, m.source, m.trust, m.actor, m.at, false, m.seq, m.valid_from FROM memory m
 WHERE {part_unread} AND m.episode = %(episode)s::text AND m.seq > %(after)s::bigint
   AND (%(last)s::bigint IS NULL OR m.seq <= %(last)s::bigint)
 ORDER BY m.seq LIMIT %(most)s::integer

-- name: before
SELECT m.id, m.text, m.source, m.trust, m.actor, m.at, true FROM memory m
 WHERE m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text
   AND m.episode = %(episode)s::text AND m.seq < %(first)s::bigint
   AND (m.expires_at IS NULL OR m.expires_at > now())
 ORDER BY m.seq DESC LIMIT 2

-- The keys of facts that are near to what is read: the model reuses them. Only of facts that are trusted as much as that.
-- name: part_names
SELECT DISTINCT near.key
  FROM memory t
 CROSS JOIN LATERAL (
    SELECT m.key FROM memory m
     WHERE m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text
       AND m.kind = 'fact' AND m.valid_to IS NULL AND m.importance >= 0 AND m.trust >= %(trust)s::smallint
       AND (m.expires_at IS NULL OR m.expires_at > now()) AND starts_with(m.key, %(prefix)s::text)
-- name: part_of_turns
 ) near
 WHERE t.model = %(model)s::smallint AND t.tenant = %(tenant)s::text AND t.id = ANY(%(ids)s::uuid[])
   AND t.embedding IS NOT NULL
 ORDER BY near.key LIMIT %(most)s::integer

-- name: names_exact
{part_names} ORDER BY m.embedding <#> t.embedding LIMIT 3
{part_of_turns}

-- name: names_index
{part_names} ORDER BY m.embedding::halfvec({dims}) <#> t.embedding::halfvec({dims}) LIMIT 3
{part_of_turns}

-- Those that were not forgotten while the model was thinking.
-- name: alive
SELECT m.id FROM memory m
 WHERE m.tenant = %(tenant)s::text AND m.id = ANY(%(ids)s::uuid[]) AND (m.expires_at IS NULL OR m.expires_at > now())

-- How trusted, and of when, is what a key has.
-- name: held
SELECT m.trust, m.at FROM memory m
 WHERE m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text AND m.kind = 'fact' AND m.key = %(key)s::text
   AND m.valid_to IS NULL AND (m.expires_at IS NULL OR m.expires_at > now())
UNION ALL
SELECT m.trust, m.at FROM memory_link m
 WHERE m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text AND m.kind = 'fact' AND m.key = %(key)s::text
   AND (m.expires_at IS NULL OR m.expires_at > now())

-- Only forward: a worker that comes too late moves nothing back.
-- name: mark
INSERT INTO memory_distilled AS d (tenant, agent, episode, seq, until)
VALUES (%(tenant)s::text, %(agent)s::text, %(episode)s::text, %(seq)s::bigint, %(until)s::timestamptz)
ON CONFLICT (tenant, agent, episode) DO UPDATE
   SET seq = excluded.seq, until = greatest(d.until, excluded.until)
 WHERE excluded.seq > d.seq OR excluded.until > d.until
