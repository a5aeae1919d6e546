-- What memories ask of Postgres, one verb each. A `part_…` is no statement: others name it in braces.
--
-- `importance >= 0` is true of every row, and opens the index of the scope: who looks for a key leaves it out.
-- Every statement names its tenant, although row-level security does so as well. `{dims}` is the number of dimensions of a
-- model: the HNSW index of its partition is on `embedding::halfvec(dims)`, so a statement that leaves the cast out cannot
-- use that index, and that is how a plan is chosen here: an exact search by a b-tree of its scope, or an approximate one.

-- name: part_reach
m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text AND m.agent = ANY(%(agents)s::text[])
AND m.kind = ANY(%(kinds)s::text[]) AND m.valid_to IS NULL AND m.importance >= 0
AND (m.expires_at IS NULL OR m.expires_at > now())

-- Conditions of a search: `{part_filters}` is those that were asked for, and no word of the others, which would be looked at
-- for each row and sent with each search (a third of what a search costs this process).
-- name: part_if_metadata
AND m.metadata @> %(metadata)s::jsonb

-- name: part_if_sources
AND m.source = ANY(%(sources)s::text[])

-- name: part_if_trust
AND m.trust >= %(trust)s::smallint

-- name: part_if_by
AND m.actor = ANY(%(by)s::text[])

-- name: part_if_episode
AND m.episode = %(episode)s::text

-- name: part_if_run
AND m.run_id = %(run)s::uuid

-- name: part_if_since
AND m.at >= %(since)s::timestamptz

-- name: part_if_until
AND m.at < %(until)s::timestamptz

-- name: part_given
%(model)s::smallint, %(agents)s::text[], %(kinds)s::text[], %(metadata)s::jsonb, %(sources)s::text[],
%(trust)s::smallint, %(by)s::text[], %(episode)s::text, %(run)s::uuid, %(since)s::timestamptz, %(until)s::timestamptz

-- name: part_shown
m.id, m.key, m.kind, m.agent, m.value, m.text, m.metadata, m.importance, m.source, m.trust, m.actor, m.episode, m.seq,
m.at, m.valid_from, m.valid_to, m.expires_at, m.run_id, m.step, m.hash

-- What tasks may have been handed: `hand_back` takes it.
-- name: part_handed
agent, key, sha256(convert_to(value::text, 'UTF8'))

-- name: part_tsv
setweight(to_tsvector('english', left(%(text)s::text, 100000)), 'A')
|| setweight(to_tsvector('english', left(%(before)s::text, 1000)), 'B')
|| setweight(to_tsvector('english', left(%(before_that)s::text, 1000)), 'C')
|| setweight(to_tsvector('english', to_char(%(at)s::timestamptz AT TIME ZONE 'UTC', 'FMDay FMDD FMMonth YYYY')), 'D')

-- Which people of a scope a query names.
-- name: people
SELECT actor FROM memory_actor
 WHERE tenant = %(tenant)s::text AND agent = ANY(%(agents)s::text[])
   AND position(lower(actor) IN lower(%(query)s::text)) > 0

-- name: nearest_exact
SELECT {part_shown}, -(m.embedding <#> %(vector)s) AS similarity
  FROM memory m
 WHERE {part_reach} {part_filters} AND m.embedding IS NOT NULL
 ORDER BY m.embedding <#> %(vector)s, m.id LIMIT %(depth)s::integer

-- These two set their tenant themselves, so that a search is one statement and no transaction around it: what follows
-- depends on the row that `set_config` gives, and so comes after it. (Were it not so, nothing would be found.)
-- name: part_tenant
(SELECT set_config('trellis.tenant', %(tenant)s::text, true) AS tenant OFFSET 0) t

-- The order of an iterative scan is only nearly right, hence the second sort; `+ 0` keeps it from being dropped.
-- name: nearest_index
SELECT near.*
  FROM {part_tenant}
 CROSS JOIN LATERAL (
    SELECT {part_shown}, -(m.embedding::halfvec({dims}) <#> %(vector)s::halfvec({dims})) AS similarity
      FROM memory m
     WHERE m.tenant = t.tenant AND {part_reach} {part_filters}
     ORDER BY m.embedding::halfvec({dims}) <#> %(vector)s::halfvec({dims}) LIMIT %(depth)s::integer
 ) near
 ORDER BY similarity + 0 DESC, id

-- A condition that leaves few rows of a large scope: all of them are looked at, along the condition's own index, which
-- only a function of the owner may use (`@>` might leak). With each row the number that was looked at.
-- name: nearest_among
SELECT near.*
  FROM {part_tenant}
 CROSS JOIN LATERAL (
    SELECT {part_shown}, -a.distance AS similarity, a.looked
      FROM memory_among({part_given}, %(vector)s, %(depth)s::integer,
                        CASE WHEN t.tenant IS NOT NULL THEN %(most)s::integer END) a
      JOIN memory m
        ON m.model = %(model)s::smallint AND m.id = a.id AND m.tenant = t.tenant AND m.tenant = %(tenant)s::text
    OFFSET 0
 ) near
 ORDER BY similarity + 0 DESC, id

-- The newest, for a query without a word.
-- name: newest
SELECT {part_shown}
  FROM memory m
 WHERE {part_reach} {part_filters}
 ORDER BY m.at DESC, m.seq DESC NULLS LAST, m.id LIMIT %(depth)s::integer

-- The lists of a hybrid search. First the words: each lexeme of the query as a tsquery of its own.
-- name: part_words
words AS MATERIALIZED (
    SELECT lexeme, ('''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''')::tsquery AS tq
      FROM unnest(to_tsvector('english', %(text)s::text)) LIMIT 64
)

-- Of a small scope: every row that has a word is scored, so that the document frequencies are exact and cost nothing.
-- name: part_lexical_exact
anyof AS MATERIALIZED (
    SELECT string_agg(tq::text, ' | ')::tsquery AS tq FROM words
), matched AS MATERIALIZED (
    SELECT m.id, m.tsv, length(m.tsv)::float8 AS len
      FROM memory m, anyof WHERE {part_reach} {part_filters} AND m.tsv @@ anyof.tq
), sizes AS MATERIALIZED (
    SELECT count(*)::float8 AS n, greatest(avg(length(m.tsv)), 1)::float8 AS len FROM memory m WHERE {part_reach} {part_filters}
), weighed AS MATERIALIZED (
    SELECT w.tq, ln(1 + (s.n - d.rows + 0.5) / (d.rows + 0.5)) AS idf
      FROM words w, sizes s, LATERAL (SELECT count(*)::float8 AS rows FROM matched WHERE tsv @@ w.tq) d
     WHERE d.rows > 0
), lexical AS MATERIALIZED (
    SELECT m.id, sum(w.idf * r.rank * 2 / (r.rank + 1 - %(b)s::float8 + %(b)s::float8 * m.len / s.len)) AS score
      FROM matched m CROSS JOIN sizes s CROSS JOIN weighed w
     CROSS JOIN LATERAL (SELECT ts_rank(%(weights)s::float4[], m.tsv, w.tq)::float8 AS rank) r
     GROUP BY m.id ORDER BY score DESC, m.id LIMIT %(depth)s::integer
)

-- Of a large one: frequencies come from a sample that is a day old at most, the rarest words choose the candidates,
-- and all words score them. A word that the sample did not meet counts as the rarest.
-- name: part_lexical_large
sizes AS MATERIALIZED (
    SELECT greatest(sum(rows), 1)::float8 AS n, greatest(sum(rows * length) / greatest(sum(rows), 1), 1)::float8 AS len
      FROM memory_size
     WHERE model = %(model)s::smallint AND tenant = %(tenant)s::text AND agent = ANY(%(agents)s::text[])
       AND kind = ANY(%(kinds)s::text[])
), counted AS MATERIALIZED (
    SELECT w.tq, w.lexeme, least(greatest(coalesce(d.rows, 1), 1), s.n) AS rows, s.n
      FROM words w CROSS JOIN sizes s
      LEFT JOIN LATERAL (SELECT sum(m.rows) AS rows FROM memory_word m
                          WHERE m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text
                            AND m.agent = ANY(%(agents)s::text[]) AND m.kind = ANY(%(kinds)s::text[])
                            AND m.word = w.lexeme) d ON true
), weighed AS (
    SELECT tq, ln(1 + (n - rows + 0.5) / (rows + 0.5)) AS idf FROM counted
), rare AS MATERIALIZED (
    SELECT string_agg(tq::text, ' | ')::tsquery AS tq
      FROM (SELECT tq, sum(rows) OVER along AS total, row_number() OVER along AS place
              FROM counted WINDOW along AS (ORDER BY rows, lexeme)) each_word
     WHERE place = 1 OR total <= %(budget)s::integer
), lexical AS MATERIALIZED (
    SELECT f.id, f.score
      FROM (SELECT array_agg(tq::text) AS words, array_agg(idf) AS idf FROM weighed) c
     CROSS JOIN sizes s CROSS JOIN rare
     CROSS JOIN LATERAL memory_lexical({part_given}, rare.tq, c.words, c.idf, s.len, %(weights)s::float4[],
                                       %(b)s::float8, %(depth)s::integer, %(budget)s::integer) f
     WHERE rare.tq IS NOT NULL
)

-- name: part_dense_exact
dense AS MATERIALIZED (
    SELECT m.id, 0::bigint AS looked FROM memory m
     WHERE {part_reach} {part_filters} AND m.embedding IS NOT NULL
     ORDER BY m.embedding <#> %(vector)s LIMIT %(depth)s::integer
)

-- name: part_dense_index
dense AS MATERIALIZED (
    SELECT m.id, 0::bigint AS looked FROM memory m
     WHERE {part_reach} {part_filters}
     ORDER BY m.embedding::halfvec({dims}) <#> %(vector)s::halfvec({dims}) LIMIT %(depth)s::integer
)

-- name: part_dense_among
dense AS MATERIALIZED (
    SELECT id, looked FROM memory_among({part_given}, %(vector)s, %(depth)s::integer, %(most)s::integer)
)

-- What a task holds by itself, without what a fact gave it: few values, so their words are looked at as they are. They have
-- no vectors, and are found by words as rows without one are.
-- name: part_desk
desk AS MATERIALIZED (
    SELECT m.*, setweight(to_tsvector('english', left(m.text, 100000)), 'A')
                || setweight(to_tsvector('english', to_char(m.at AT TIME ZONE 'UTC', 'FMDay FMDD FMMonth YYYY')), 'D') AS tsv
      FROM (SELECT *, NULL::text AS episode FROM working) m
     WHERE m.tenant = %(tenant)s::text AND m.agent = %(owner)s::text AND m.task = %(task)s::text AND m.owner IS NULL
       AND (m.expires_at IS NULL OR m.expires_at > now()) {part_filters}
)

-- name: part_spoken
spoken AS MATERIALIZED (
    SELECT d.id, sum(coalesce(g.idf, ln(1 + (s.n + 0.5) / 0.5)) * r.rank * 2
                     / (r.rank + 1 - %(b)s::float8 + %(b)s::float8 * length(d.tsv) / s.len)) AS score
      FROM desk d CROSS JOIN sizes s CROSS JOIN words w LEFT JOIN weighed g ON g.tq = w.tq
     CROSS JOIN LATERAL (SELECT ts_rank(%(weights)s::float4[], d.tsv, w.tq)::float8 AS rank) r
     WHERE d.tsv @@ w.tq
     GROUP BY d.id
)

-- A value of a task as `part_shown` shows a row.
-- name: part_desk_shown
d.id, d.key, 'working', d.agent, d.value, d.text, d.metadata, d.importance, d.source, d.trust, d.actor, NULL::text,
NULL::bigint, d.at, d.at, NULL::timestamptz, d.expires_at, d.run_id, d.step, d.hash

-- name: newest_task
WITH {part_desk}
SELECT found.*
  FROM ((SELECT {part_shown} FROM memory m
          WHERE {part_reach} {part_filters}
          ORDER BY m.at DESC, m.seq DESC NULLS LAST, m.id LIMIT %(depth)s::integer)
        UNION ALL SELECT {part_desk_shown} FROM desk d) found
 ORDER BY found.at DESC, found.seq DESC NULLS LAST, found.id LIMIT %(depth)s::integer

-- name: part_found_rows
SELECT m.id, m.hash, l.score AS said, -(m.embedding <#> %(vector)s) AS cosine, m.actor, m.at, m.importance, m.trust
  FROM (SELECT id FROM lexical UNION SELECT id FROM dense) u
  JOIN memory m ON m.model = %(model)s::smallint AND m.id = u.id AND m.tenant = %(tenant)s::text
  LEFT JOIN lexical l ON l.id = u.id

-- name: part_found
found AS ({part_found_rows})

-- name: part_found_task
{part_desk}, {part_spoken}, found AS (
    {part_found_rows}
     UNION ALL
    SELECT d.id, d.hash, p.score, NULL, d.actor, d.at, d.importance, d.trust
      FROM desk d LEFT JOIN spoken p ON p.id = d.id
)

-- The two lists become one: rows whose actor the query names are lifted, ranks are summed as reciprocals (RRF), and what is
-- recent, important and trusted is worth a few ranks. Of rows with the same text the best one stays.
-- name: part_fused
candidates AS (
    SELECT f.id, f.hash,
           coalesce(f.said / nullif(max(f.said) OVER (), 0), 0)
               + %(bonus_text)s::float8 * coalesce(f.actor = ANY(%(actors)s::text[]), false)::int AS lexical,
           coalesce(f.cosine, -1)
               + %(bonus_dense)s::float8 * coalesce(f.actor = ANY(%(actors)s::text[]), false)::int AS dense,
           %(recency)s::float8 * exp(-ln(2) * greatest(extract(epoch FROM now() - f.at), 0)::float8
               / %(half_life)s::float8) AS recency,
           %(importance)s::float8 * (f.importance - 0.5) AS importance,
           %(trusted)s::float8 * f.trust / 3 AS trust
      FROM found f
), ranked AS (
    SELECT *, rank() OVER (ORDER BY lexical DESC) AS text_rank, rank() OVER (ORDER BY dense DESC) AS dense_rank
      FROM candidates
), scored AS (
    SELECT *, text_part + dense_part + recency + importance + trust AS score
      FROM (SELECT *, CASE WHEN lexical > 0 THEN 1 / (%(k)s::float8 + text_rank) ELSE 0 END AS text_part,
                   1 / (%(k)s::float8 + dense_rank) AS dense_part
              FROM ranked) r
), single AS (
    SELECT *, row_number() OVER (PARTITION BY hash ORDER BY score DESC, dense DESC, id) AS copy FROM scored
), best AS MATERIALIZED (
    SELECT * FROM single WHERE copy = 1 ORDER BY score DESC, dense DESC, id LIMIT %(limit)s::integer
)

-- name: part_scores
s.score, s.text_part, s.dense_part, s.recency, s.importance, s.trust, s.text_rank, s.dense_rank, s.dense,
(SELECT max(looked) FROM dense)

-- name: part_answer
SELECT {part_shown}, {part_scores}
  FROM best s
  JOIN memory m ON m.model = %(model)s::smallint AND m.id = s.id AND m.tenant = %(tenant)s::text
 ORDER BY s.score DESC, s.dense DESC, s.id

-- name: part_answer_task
SELECT {part_shown}, {part_scores}
  FROM best s
  JOIN memory m ON m.model = %(model)s::smallint AND m.id = s.id AND m.tenant = %(tenant)s::text
 UNION ALL
SELECT {part_desk_shown}, {part_scores} FROM best s JOIN desk d ON d.id = s.id
 ORDER BY score DESC, dense DESC, id

-- name: search_exact
WITH {part_words}, {part_lexical_exact}, {part_dense_exact}, {part_found}, {part_fused} {part_answer}

-- name: search_index
WITH {part_words}, {part_lexical_large}, {part_dense_index}, {part_found}, {part_fused} {part_answer}

-- name: search_among
WITH {part_words}, {part_lexical_large}, {part_dense_among}, {part_found}, {part_fused} {part_answer}

-- The same with the values of a task.
-- name: search_exact_task
WITH {part_words}, {part_lexical_exact}, {part_dense_exact}, {part_found_task}, {part_fused} {part_answer_task}

-- name: search_index_task
WITH {part_words}, {part_lexical_large}, {part_dense_index}, {part_found_task}, {part_fused} {part_answer_task}

-- name: search_among_task
WITH {part_words}, {part_lexical_large}, {part_dense_among}, {part_found_task}, {part_fused} {part_answer_task}

-- Whether the words of a large scope were counted, and how long ago.
-- name: counted
SELECT a.agent, k.kind
  FROM unnest(%(agents)s::text[]) AS a(agent) CROSS JOIN unnest(%(kinds)s::text[]) AS k(kind)
 WHERE NOT EXISTS (SELECT FROM memory_size s
                    WHERE s.model = %(model)s::smallint AND s.tenant = %(tenant)s::text AND s.agent = a.agent
                      AND s.kind = k.kind AND s.counted_at > now() - interval '1 day')

-- name: count_words
SELECT memory_count_words(%(model)s::smallint, %(agent)s::text, %(kind)s::text, %(sample)s::integer)

-- name: lock
SELECT pg_advisory_xact_lock(%(level)s::integer, hashtext(%(what)s::text))

-- Which lines are memories of their own, and whose: a list of such lines was recalled.
-- name: known_lines
SELECT m.hash, m.kind, m.source FROM memory m
 WHERE m.tenant = %(tenant)s::text AND m.agent = ANY(%(agents)s::text[]) AND m.kind IN ('fact', 'episode')
   AND m.hash = ANY(%(lines)s::bytea[]) AND m.valid_to IS NULL AND (m.expires_at IS NULL OR m.expires_at > now())
UNION
SELECT l.hash, l.kind, l.source FROM memory_link l
 WHERE l.tenant = %(tenant)s::text AND l.agent = ANY(%(agents)s::text[]) AND l.hash = ANY(%(lines)s::bytea[])
   AND (l.expires_at IS NULL OR l.expires_at > now())

-- What is there already, when a fact comes under a key: the key's row, its link, a row of the same text that every search
-- finds which would find the fact. What is trusted less than the fact says nothing in its place: else whoever says a thing
-- first on a web page hides it from searches that ask for more trust.
-- name: look
SELECT k.id, k.model, k.same, k.alive, l.id, l.target, l.alive AND l.same, l.alive, t.id
  FROM (SELECT) nothing
  LEFT JOIN LATERAL (
      SELECT m.id, m.model, m.value = %(value)s::jsonb AND m.trust >= %(trust)s::smallint AS same,
             m.expires_at IS NULL OR m.expires_at > now() AS alive
        FROM memory m
       WHERE m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text AND m.kind = 'fact' AND m.key = %(key)s::text
         AND m.valid_to IS NULL
       ORDER BY (m.model = %(model)s::smallint) DESC LIMIT 1) k ON true
  LEFT JOIN LATERAL (
      SELECT id, target, value = %(value)s::jsonb AND trust >= %(trust)s::smallint AS same,
             expires_at IS NULL OR expires_at > now() AS alive
        FROM memory_link
       WHERE tenant = %(tenant)s::text AND agent = %(agent)s::text AND kind = 'fact' AND key = %(key)s::text) l ON true
  LEFT JOIN LATERAL (
      SELECT m.id
        FROM (SELECT m.id, m.trust, m.source, m.metadata, m.actor, m.run_id, m.at FROM memory m
               WHERE m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text
                 AND m.kind = 'fact' AND m.hash = ANY(%(hashes)s::bytea[]) AND m.key <> %(key)s::text AND m.valid_to IS NULL
                 AND (m.expires_at IS NULL OR m.expires_at > now())
               LIMIT 1000) m, {part_fact}
       WHERE {part_covers} LIMIT 1) t ON true

-- The nearest other facts of the scope that every search finds which would find this one: near enough, and one of them
-- says the same.
-- name: near_exact
SELECT m.id, m.text, -(m.embedding <#> %(vector)s) AS similarity FROM memory m, {part_fact}
 WHERE {part_reach} AND m.key <> %(key)s::text AND {part_covers} AND m.embedding IS NOT NULL
 ORDER BY m.embedding <#> %(vector)s LIMIT 5

-- Of the nearest, behind the index: were they conditions of its scan, it would go on and on where no row fulfils them, as
-- with each store of a new run.
-- name: near_index
SELECT m.id, m.text, m.similarity
  FROM (SELECT m.id, m.text, m.trust, m.source, m.metadata, m.actor, m.run_id, m.at,
               -(m.embedding::halfvec({dims}) <#> %(vector)s::halfvec({dims})) AS similarity
          FROM memory m
         WHERE {part_reach} AND m.key <> %(key)s::text AND m.trust >= %(trust)s::smallint
         ORDER BY m.embedding::halfvec({dims}) <#> %(vector)s::halfvec({dims}) LIMIT 50) m, {part_fact}
 WHERE {part_covers}
 ORDER BY m.similarity DESC LIMIT 5

-- name: insert
INSERT INTO memory (model, id, tenant, agent, kind, key, value, text, hash, embedding, tsv, metadata, importance, source,
                    trust, actor, episode, seq, at, expires_at, run_id, step)
VALUES (%(model)s::smallint, %(id)s::uuid, %(tenant)s::text, %(agent)s::text, %(kind)s::text, %(key)s::text,
        %(value)s::jsonb, %(text)s::text, %(hash)s::bytea, %(vector)s, {part_tsv}, %(metadata)s::jsonb,
        %(importance)s::real, %(source)s::text, %(trust)s::smallint, %(actor)s::text, %(episode)s::text,
        %(seq)s::bigint, %(at)s::timestamptz, now() + %(ttl)s::float8 * interval '1 second',
        %(run)s::uuid, %(step)s::integer)

-- name: actor
INSERT INTO memory_actor (tenant, agent, actor) VALUES (%(tenant)s::text, %(agent)s::text, %(actor)s::text)
ON CONFLICT DO NOTHING

-- The same value again: its row stays where it is, and its vector with it.
-- name: refresh
UPDATE memory
   SET expires_at = now() + %(ttl)s::float8 * interval '1 second',
       importance = coalesce(%(importance)s::real, importance), metadata = coalesce(%(metadata)s::jsonb, metadata)
 WHERE id = %(id)s::uuid AND tenant = %(tenant)s::text
   AND (%(ttl)s::float8 IS NOT NULL OR expires_at IS NOT NULL OR importance <> %(importance)s::real
        OR metadata <> %(metadata)s::jsonb)
RETURNING {part_handed}

-- What an entry's key has, where it was given one.
-- name: entry
SELECT m.id, m.model, m.value = %(value)s::jsonb AND m.trust >= %(trust)s::smallint,
       m.expires_at IS NULL OR m.expires_at > now()
  FROM memory m
 WHERE m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text AND m.kind = 'episode' AND m.key = %(key)s::text
   AND m.valid_to IS NULL
 ORDER BY (m.model = %(model)s::smallint) DESC LIMIT 1

-- A contradiction: it held until now, and is kept as what held then.
-- name: close
UPDATE memory SET valid_to = clock_timestamp()
 WHERE tenant = %(tenant)s::text AND agent = %(agent)s::text AND kind = ANY(%(kinds)s::text[]) AND key = %(key)s::text
   AND valid_to IS NULL
RETURNING {part_handed}

-- name: retrieve
SELECT found.* FROM (
    SELECT {part_shown}, (m.model = %(model)s::smallint)::int AS mine
      FROM memory m
     WHERE m.tenant = %(tenant)s::text AND m.agent = ANY(%(agents)s::text[]) AND m.kind = ANY(%(kinds)s::text[])
       AND m.key = %(key)s::text AND m.valid_to IS NULL AND (m.expires_at IS NULL OR m.expires_at > now())
    UNION ALL
    SELECT {part_shown_link}, 1
      FROM memory_link l
     WHERE l.tenant = %(tenant)s::text AND l.agent = ANY(%(agents)s::text[]) AND l.kind = ANY(%(kinds)s::text[])
       AND l.key = %(key)s::text AND (l.expires_at IS NULL OR l.expires_at > now())
) found
 ORDER BY array_position(%(agents)s::text[], found.agent), found.mine DESC, found.kind DESC LIMIT 1

-- name: history
SELECT DISTINCT ON (found.valid_from, found.id) found.* FROM (
    SELECT {part_shown}
      FROM memory m
     WHERE m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text AND m.kind = ANY(%(kinds)s::text[])
       AND m.key = %(key)s::text AND (m.expires_at IS NULL OR m.expires_at > now())
    UNION ALL
    SELECT {part_shown_link}
      FROM memory_link l
     WHERE l.tenant = %(tenant)s::text AND l.agent = %(agent)s::text AND l.kind = ANY(%(kinds)s::text[])
       AND l.key = %(key)s::text AND (l.expires_at IS NULL OR l.expires_at > now())
) found
 ORDER BY found.valid_from, found.id

-- Rows that are to go, some at a time: by key, by conditions, or since their time is over.
-- name: keyed
SELECT m.id, m.agent, m.episode FROM memory m
 WHERE m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text AND m.kind = ANY(%(kinds)s::text[])
   AND m.key = %(key)s::text
 ORDER BY m.id LIMIT %(most)s::integer

-- name: filtered
SELECT m.id, m.agent, m.episode FROM memory m
 WHERE m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text AND m.kind = ANY(%(kinds)s::text[])
   AND m.valid_to IS NULL AND m.importance >= 0 {part_filters}
UNION ALL
SELECT m.id, m.agent, m.episode FROM memory m
 WHERE m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text AND m.kind = ANY(%(kinds)s::text[])
   AND m.valid_to IS NOT NULL {part_filters}
 LIMIT %(most)s::integer

-- name: expired
SELECT m.id, m.agent, m.episode FROM memory m
 WHERE m.tenant = %(tenant)s::text AND m.expires_at <= now()
 ORDER BY m.expires_at LIMIT %(most)s::integer FOR UPDATE SKIP LOCKED

-- Of entries only those that are no context of one that lives: neither of the two behind it does.
-- name: expired_alone
SELECT m.id, m.agent, m.episode FROM memory m
 WHERE m.tenant = %(tenant)s::text AND m.expires_at <= now()
   AND NOT EXISTS (
       SELECT FROM (SELECT n.expires_at FROM memory n
                     WHERE n.model = m.model AND n.tenant = m.tenant AND n.agent = m.agent AND n.episode = m.episode
                       AND n.seq > m.seq
                     ORDER BY n.seq LIMIT 2) behind
        WHERE behind.expires_at IS NULL OR behind.expires_at > now())
 ORDER BY m.expires_at LIMIT %(most)s::integer FOR UPDATE OF m SKIP LOCKED

-- Tenants that have something with a time, in order, and whether of one the time is over. For the tick, which has no tenant:
-- to the role of memories it tells nothing.
-- name: expiring
SELECT tenant, expired FROM memory_expired(%(after)s::text, %(most)s::integer)

-- Those beyond a capacity: what has expired, then the least used, where a use counts half after a week without another
-- one. A link counts as one that was never used: what it says stays, under the key that it points to.
-- name: surplus
SELECT h.id, h.agent, h.episode, h.linked
  FROM (SELECT m.id, m.agent, m.episode, false AS linked, m.expires_at, m.valid_from AS since, u.hits, u.last_hit
          FROM memory m LEFT JOIN memory_use u ON u.id = m.id AND u.tenant = %(tenant)s::text
         WHERE m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text AND m.agent = ANY(%(agents)s::text[])
           AND m.kind = ANY(%(kinds)s::text[]) AND m.valid_to IS NULL AND m.importance >= 0
         UNION ALL
        SELECT l.id, l.agent, NULL, true, l.expires_at, l.at, NULL, NULL
          FROM memory_link l
         WHERE l.tenant = %(tenant)s::text AND l.agent = ANY(%(agents)s::text[]) AND l.kind = ANY(%(kinds)s::text[])) h
 WHERE h.id <> ALL(%(spared)s::uuid[])
 ORDER BY (h.expires_at IS NOT NULL AND h.expires_at <= now()) DESC,
          (1 + coalesce(h.hits, 0)) * exp(-ln(2) * greatest(extract(epoch FROM now() - coalesce(h.last_hit, h.since)), 0)::float8
          / %(half_life)s::float8), h.since, h.id
 LIMIT %(most)s::integer

-- How many rows a scope has, up to a bound: an index-only walk.
-- name: size
SELECT count(*) FROM (SELECT FROM memory m WHERE m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text
                         AND m.agent = ANY(%(agents)s::text[]) AND m.kind = ANY(%(kinds)s::text[])
                         AND m.valid_to IS NULL AND m.importance >= 0 LIMIT %(most)s::integer) counted

-- How many rows and links a scope has: what a capacity bounds.
-- name: held
SELECT (SELECT count(*) FROM memory m
         WHERE m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text AND m.agent = ANY(%(agents)s::text[])
           AND m.kind = ANY(%(kinds)s::text[]) AND m.valid_to IS NULL AND m.importance >= 0)
       + (SELECT count(*) FROM memory_link l
           WHERE l.tenant = %(tenant)s::text AND l.agent = ANY(%(agents)s::text[]) AND l.kind = ANY(%(kinds)s::text[]))

-- The two entries behind each that goes: their context is made anew.
-- name: followers
SELECT DISTINCT f.id
  FROM memory gone
 CROSS JOIN LATERAL (
     SELECT n.id FROM memory n
      WHERE n.model = gone.model AND n.tenant = %(tenant)s::text AND n.agent = gone.agent AND n.episode = gone.episode
        AND n.seq > gone.seq AND n.id <> ALL(%(ids)s::uuid[])
      ORDER BY n.seq LIMIT 2) f
 WHERE gone.id = ANY(%(ids)s::uuid[]) AND gone.tenant = %(tenant)s::text AND gone.episode IS NOT NULL

-- Facts that are about to go: from here on no task is handed one of them (working.sql).
-- name: hold
SELECT {part_handed} FROM memory
 WHERE id = ANY(%(ids)s::uuid[]) AND tenant = %(tenant)s::text AND kind = 'fact'
 ORDER BY id FOR UPDATE

-- What tasks were handed of facts and links that end: their working memories would go on giving it. A statement of its
-- own, behind the one that holds, changes or deletes them: so it sees what was handed while that one waited.
-- name: hand_back
DELETE FROM working w
 USING unnest(%(owners)s::text[], %(keys)s::text[], %(prints)s::bytea[]) AS g(owner, key, print)
 WHERE w.tenant = %(tenant)s::text AND w.key = g.key AND (g.owner = '' OR w.agent = g.owner)
   AND sha256(convert_to(w.value::text, 'UTF8')) = g.print

-- name: delete
WITH gone AS (
    DELETE FROM memory m WHERE m.id = ANY(%(ids)s::uuid[]) AND m.tenant = %(tenant)s::text RETURNING m.id
), unused AS (
    DELETE FROM memory_use u USING gone WHERE u.id = gone.id AND u.tenant = %(tenant)s::text
)
SELECT count(DISTINCT id) FROM gone

-- The context of some entries from those that are left before them. Their vectors are forgotten until somebody embeds
-- them again (`bare`): a vector may tell what it was made of.
-- name: rebuild
UPDATE memory m
   SET embedding = NULL,
       tsv = setweight(to_tsvector('english', left(m.text, 100000)), 'A')
             || setweight(to_tsvector('english', left(coalesce(b.texts[1], ''), 1000)), 'B')
             || setweight(to_tsvector('english', left(coalesce(b.texts[2], ''), 1000)), 'C')
             || setweight(to_tsvector('english', to_char(m.at AT TIME ZONE 'UTC', 'FMDay FMDD FMMonth YYYY')), 'D')
  FROM memory f
 CROSS JOIN LATERAL (
     SELECT array_agg(p.text ORDER BY p.seq DESC) AS texts
       FROM (SELECT DISTINCT e.seq, e.text FROM memory e
              WHERE e.tenant = %(tenant)s::text AND e.agent = f.agent AND e.episode = f.episode AND e.seq < f.seq
              ORDER BY e.seq DESC LIMIT 2) p) b
 WHERE f.id = ANY(%(ids)s::uuid[]) AND f.tenant = %(tenant)s::text AND m.model = f.model AND m.id = f.id
   AND m.tenant = %(tenant)s::text

-- Rows without a vector, each with the text before it.
-- name: bare
SELECT m.id, m.text, (SELECT e.text FROM memory e
                       WHERE e.tenant = m.tenant AND e.agent = m.agent AND e.episode = m.episode
                         AND e.seq < m.seq ORDER BY e.seq DESC LIMIT 1)
  FROM memory m
 WHERE m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text AND m.embedding IS NULL AND m.text <> ''
 LIMIT %(most)s::integer

-- Only if nobody has changed the entry or its neighbour meanwhile.
-- name: dress
UPDATE memory m SET embedding = %(vector)s
 WHERE m.model = %(model)s::smallint AND m.id = %(id)s::uuid AND m.tenant = %(tenant)s::text AND m.embedding IS NULL
   AND m.text = %(text)s::text
   AND coalesce((SELECT e.text FROM memory e
                  WHERE e.tenant = m.tenant AND e.agent = m.agent AND e.episode = m.episode
                    AND e.seq < m.seq ORDER BY e.seq DESC LIMIT 1), '') = %(before)s::text

-- The last two entries of an episode, newest first.
-- name: last
SELECT m.id, m.seq, m.text FROM memory m
 WHERE m.model = %(model)s::smallint AND m.tenant = %(tenant)s::text AND m.agent = %(agent)s::text
   AND m.episode = %(episode)s::text
 ORDER BY m.seq DESC LIMIT 2

-- name: use
INSERT INTO memory_use AS u (id, tenant, hits, last_hit)
SELECT n.id, %(tenant)s::text, n.hits, clock_timestamp()
  FROM unnest(%(ids)s::uuid[], %(hits)s::bigint[]) AS n(id, hits)
 WHERE EXISTS (SELECT FROM memory m WHERE m.id = n.id AND m.tenant = %(tenant)s::text)
ON CONFLICT (id) DO UPDATE SET hits = u.hits + excluded.hits, last_hit = excluded.last_hit
 WHERE u.tenant = excluded.tenant

-- name: uses
SELECT id, hits, last_hit FROM memory_use WHERE tenant = %(tenant)s::text AND id = ANY(%(ids)s::uuid[])
