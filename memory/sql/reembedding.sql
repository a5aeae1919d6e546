-- From one generation of vectors to the next, for all tenants: run by the owner of the tables, whom no policy holds.

-- name: mine
SELECT NOT row_security_active('memory') AND pg_has_role(c.relowner, 'MEMBER') FROM pg_class c WHERE c.oid = 'memory'::regclass

-- A name that was left for another one begins anew.
-- name: revive
DELETE FROM memory_model WHERE name = %(name)s::text AND successor IS NOT NULL

-- name: open
SELECT id, dims FROM memory_open_model(%(name)s::text, %(dims)s::integer)

-- name: others
SELECT id, name, dims FROM memory_model WHERE id <> %(model)s::smallint AND successor IS NULL ORDER BY id

-- name: count
SELECT count(*) FROM memory WHERE model = ANY(%(models)s::smallint[]) AND (expires_at IS NULL OR expires_at > now())

-- What is not in the new generation, along the ids, with the text before each as it is embedded with it.
-- name: part_missing
  FROM memory m
 WHERE m.model = %(old)s::smallint AND (m.expires_at IS NULL OR m.expires_at > now())
   AND NOT EXISTS (SELECT FROM memory n WHERE n.model = %(model)s::smallint AND n.id = m.id)
   AND (m.valid_to IS NOT NULL OR NOT EXISTS (
        SELECT FROM memory n
         WHERE n.model = %(model)s::smallint AND n.tenant = m.tenant AND n.agent = m.agent AND n.kind = m.kind
           AND n.key = m.key AND n.valid_to IS NULL))

-- Of any generation: the next one is not complete, and would have another text before an entry.
-- name: part_before
(SELECT e.text FROM memory e
  WHERE e.tenant = m.tenant AND e.agent = m.agent AND e.episode = m.episode AND e.seq < m.seq
  ORDER BY e.seq DESC LIMIT 1)

-- name: missing
SELECT m.id, m.text, {part_before}
{part_missing} AND (%(after)s::uuid IS NULL OR m.id > %(after)s::uuid)
 ORDER BY m.id LIMIT %(most)s::integer

-- name: any_missing
SELECT EXISTS (SELECT {part_missing}) OR EXISTS (
    SELECT FROM memory m WHERE m.model = %(model)s::smallint AND m.embedding IS NULL AND m.text ~ '\S')

-- Whoever writes waits for a batch, and a batch for whoever writes: so what is deleted, closed or refreshed by id is that
-- in both generations, and nothing that goes comes back with its copy.
-- name: still
LOCK TABLE ONLY memory IN SHARE MODE

-- Only what is as it was embedded: the text before an entry may be forgotten meanwhile, and then its words are, too.
-- name: copy
INSERT INTO memory (model, id, tenant, agent, kind, key, value, text, hash, embedding, tsv, metadata, importance, source,
                    trust, actor, episode, seq, at, valid_from, valid_to, expires_at, run_id, step)
SELECT %(model)s::smallint, m.id, m.tenant, m.agent, m.kind, m.key, m.value, m.text, m.hash, g.embedding, m.tsv, m.metadata,
       m.importance, m.source, m.trust, m.actor, m.episode, m.seq, m.at, m.valid_from, m.valid_to, m.expires_at,
       m.run_id, m.step
  FROM unnest(%(ids)s::uuid[], %(befores)s::text[], %(vectors)s::text[]::halfvec[]) AS g(id, before, embedding)
  JOIN memory m ON m.model = %(old)s::smallint AND m.id = g.id
 WHERE coalesce({part_before}, '') = g.before
ON CONFLICT DO NOTHING

-- Rows of the new generation that lost their context to somebody who forgot it: their vectors went with it.
-- name: bare
SELECT m.id, m.text, {part_before}
  FROM memory m WHERE m.model = %(model)s::smallint AND m.embedding IS NULL AND m.text ~ '\S' LIMIT %(most)s::integer

-- name: dress
UPDATE memory m SET embedding = g.embedding
  FROM unnest(%(ids)s::uuid[], %(befores)s::text[], %(vectors)s::text[]::halfvec[]) AS g(id, before, embedding)
 WHERE m.model = %(model)s::smallint AND m.id = g.id AND m.embedding IS NULL AND coalesce({part_before}, '') = g.before

-- Nobody reads or writes while it is looked whether all is there, and the old generation goes.
-- name: alone
LOCK TABLE memory IN ACCESS EXCLUSIVE MODE

-- name: leave
WITH gone AS (
    UPDATE memory_model SET successor = %(model)s::smallint WHERE id = %(old)s::smallint RETURNING id
), sizes AS (
    DELETE FROM memory_size s USING gone WHERE s.model = gone.id
)
DELETE FROM memory_word w USING gone WHERE w.model = gone.id
