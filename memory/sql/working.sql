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

-- name: part_room
-- The newest is no candidate for eviction, so it cannot be lost to it. A few rows whose time is over go as well,
-- of whichever task of the tenant: so no chore has to look for them.
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
     WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM working
         WHERE tenant = %(tenant)s::text AND expires_at <= now() AND (agent, task) <> (%(agent)s::text, %(task)s::text)
         ORDER BY expires_at LIMIT 20
           FOR UPDATE SKIP LOCKED))
)

-- name: part_anew
ON CONFLICT (tenant, agent, task, key) DO UPDATE
   SET value = EXCLUDED.value, used = EXCLUDED.used, used_at = EXCLUDED.used_at, expires_at = EXCLUDED.expires_at
RETURNING key

-- name: store
WITH stored AS (
    INSERT INTO working (tenant, agent, task, key, value, used, used_at, expires_at)
    VALUES (%(tenant)s::text, %(agent)s::text, %(task)s::text, %(key)s::text, %(value)s::jsonb,
            nextval('working_use'), clock_timestamp(), clock_timestamp() + make_interval(secs => %(ttl)s::float8))
    {part_anew}
), {part_room}
SELECT key FROM evicted WHERE expires_at IS NULL OR expires_at > clock_timestamp() ORDER BY used

-- name: hand
-- What a fact says, or a key that is linked to one, until that expires. Whoever is about to end it waits for this, and
-- then takes back what was handed (`hand_back` in memory.sql); who comes behind that finds nothing to hand.
WITH fact AS (
    SELECT value, expires_at FROM memory
     WHERE id = %(id)s::uuid AND tenant = %(tenant)s::text AND agent IN (%(agent)s::text, '') AND kind = 'fact'
       AND key = %(key)s::text AND trust >= %(trust)s::smallint AND valid_to IS NULL
       AND (expires_at IS NULL OR expires_at > clock_timestamp())
       FOR SHARE
), link AS (
    SELECT value, expires_at FROM memory_link
     WHERE id = %(id)s::uuid AND tenant = %(tenant)s::text AND agent IN (%(agent)s::text, '') AND kind = 'fact'
       AND key = %(key)s::text AND trust >= %(trust)s::smallint
       AND (expires_at IS NULL OR expires_at > clock_timestamp())
       FOR SHARE
), stored AS (
    INSERT INTO working (tenant, agent, task, key, value, used, used_at, expires_at)
    SELECT %(tenant)s::text, %(agent)s::text, %(task)s::text, %(key)s::text, f.value,
           nextval('working_use'), clock_timestamp(), f.expires_at
      FROM (SELECT * FROM fact UNION ALL SELECT * FROM link LIMIT 1) f
    {part_anew}
), {part_room}
SELECT key FROM stored

-- name: retrieve
UPDATE working
   SET used = nextval('working_use'), used_at = clock_timestamp()
 WHERE tenant = %(tenant)s::text AND agent = %(agent)s::text AND task = %(task)s::text AND key = %(key)s::text
   AND (expires_at IS NULL OR expires_at > clock_timestamp())
RETURNING value

-- name: items
SELECT key, value, used_at, expires_at
  FROM working
 WHERE tenant = %(tenant)s::text AND agent = %(agent)s::text AND task = %(task)s::text
   AND (expires_at IS NULL OR expires_at > clock_timestamp())
 ORDER BY used DESC

-- name: forget
DELETE FROM working
 WHERE tenant = %(tenant)s::text AND agent = %(agent)s::text AND task = %(task)s::text AND key = %(key)s::text
RETURNING expires_at IS NULL OR expires_at > clock_timestamp()

-- name: clear
WITH gone AS (
    DELETE FROM working
     WHERE tenant = %(tenant)s::text AND agent = %(agent)s::text AND task = %(task)s::text
    RETURNING expires_at
)
SELECT count(*) FILTER (WHERE expires_at IS NULL OR expires_at > clock_timestamp()) FROM gone
