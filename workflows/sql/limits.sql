-- Limits: who may begin, and what began too late. None of these statements runs for a workflow without limits.
--
-- A word on order: admission happens under one advisory lock, one transaction after the other, so it may look first and
-- write later, and needs no order among gates. It touches only parked steps, which no completion touches, and takes
-- only those that nobody else has locked; so it never waits for a row.
--
-- A word on loss: a place is a row of `permit`. It counts for as long as its step is not over (or its run, where idx is
-- -1); who completes steps takes away their places, and `forget` finds those that nobody took away.

-- name: turn
-- One after the other. That an admission is lost in a crash of Postgres harms nothing: then the step is parked as before.
SELECT set_config('synchronous_commit', 'off', true), pg_advisory_xact_lock(7816392541)

-- name: leave
-- The places of steps that are over.
DELETE FROM permit p
 USING unnest(%(run)s::uuid[], %(idx)s::int[]) AS o(run_id, idx)
 WHERE p.run_id = o.run_id AND p.idx = o.idx

-- name: forget
-- Places in these gates whose step or run is over: their holder was cancelled, or died before it could say so.
DELETE FROM permit p
 USING unnest(%(lines)s::text[]) AS o(line)
 WHERE p.gate = o.line
   AND CASE WHEN p.idx < 0
            THEN NOT EXISTS (SELECT FROM run r WHERE r.id = p.run_id AND r.state || '' IN ('pending', 'running', 'paused'))
            ELSE NOT EXISTS (SELECT FROM step s WHERE s.run_id = p.run_id AND s.idx = p.idx
                                AND (s.state IN ('ready', 'running')
                                     OR s.state = 'parked' AND NOT starts_with(s.waits_for, 'gate:')
                                        AND s.waits_for <> 'pause')) END

-- name: forget_some
-- The same for some neighbouring places of any gates, so that none outlives its gate. Answers with the
-- last of them, and how many they were.
WITH chosen AS MATERIALIZED (
    SELECT gate, run_id, idx FROM permit
     WHERE (gate, run_id, idx) > (%(after)s, %(run)s::uuid, %(idx)s)
     ORDER BY gate, run_id, idx LIMIT %(limit)s
), gone AS (
    DELETE FROM permit p
     USING chosen o
     WHERE p.gate = o.gate AND p.run_id = o.run_id AND p.idx = o.idx
       AND CASE WHEN p.idx < 0
                THEN NOT EXISTS (SELECT FROM run r WHERE r.id = p.run_id AND r.state || '' IN ('pending', 'running', 'paused'))
                ELSE NOT EXISTS (SELECT FROM step s WHERE s.run_id = p.run_id AND s.idx = p.idx
                                    AND (s.state IN ('ready', 'running')
                                         OR s.state = 'parked' AND NOT starts_with(s.waits_for, 'gate:')
                                            AND s.waits_for <> 'pause')) END
    RETURNING 1
)
SELECT gate, run_id, idx, (SELECT count(*) FROM chosen)::int FROM chosen ORDER BY gate DESC, run_id DESC, idx DESC LIMIT 1

-- name: cursor
-- Where the last sweep ended.
SELECT turn FROM gate WHERE name = %(name)s

-- name: remember
INSERT INTO gate (name, turn) VALUES (%(name)s, %(at)s) ON CONFLICT (name) DO UPDATE SET turn = excluded.turn

-- name: look
-- The gates with those whose turn it is. The room in front of a gate comes from its first waiter's own limit; the walk
-- goes from tenant to tenant, beginning behind the one that was last, and takes an equal share of each. Within a run of
-- which paths are known the longest goes first, as in a queue without a limit: of the `window` steps that stand in front.
-- The last column says whose run is paused: those step out of the line.
SELECT o.line, u.used, greatest(0.0, extract(epoch FROM g.next_at - t.moment))::float8 AS wait, t.moment,
       w.run_id, w.idx, w.fair, w.gates, w.rate, w.entry,
       -- By its key: `state` alone would invite an index that has it, and begins with something else.
       (SELECT r.state = 'paused' AND r.steps IS NOT NULL FROM run r WHERE r.id = w.run_id)
  FROM (SELECT clock_timestamp() AS moment) t
 CROSS JOIN unnest(%(lines)s::text[]) AS o(line)
  LEFT JOIN gate g ON g.name = o.line
 CROSS JOIN LATERAL (SELECT count(*)::int AS used FROM permit p WHERE p.gate = o.line) u
  LEFT JOIN LATERAL (
    SELECT least(%(batch)s, coalesce(CASE
               WHEN starts_with(o.line, 'gate:rate:')
               THEN ceil((%(horizon)s - greatest(0.0, extract(epoch FROM g.next_at - t.moment)))
                         * (s.options->'rate'->>1)::float8 / (s.options->'rate'->>2)::float8)
               WHEN starts_with(o.line, 'gate:runs:') THEN (s.options->'entry'->>1)::float8 - u.used
               ELSE (SELECT max((e->>1)::float8) FROM jsonb_array_elements(s.options->'gates') e WHERE e->>0 = o.line)
                    - u.used END, 0))::int AS room, s.rank IS NOT NULL AS ranked
      FROM step s WHERE s.state = 'parked' AND s.waits_for = o.line
     ORDER BY s.fair, s.priority DESC, s.run_id, s.idx LIMIT 1
  ) h ON true
  LEFT JOIN LATERAL (
    WITH RECURSIVE later AS (
        (SELECT s.fair, 1 AS n FROM step s
          WHERE h.room > 0 AND s.state = 'parked' AND s.waits_for = o.line AND s.fair > coalesce(g.turn, '')
          ORDER BY s.fair LIMIT 1)
        UNION ALL
        SELECT (SELECT s.fair FROM step s
                 WHERE s.state = 'parked' AND s.waits_for = o.line AND s.fair > l.fair ORDER BY s.fair LIMIT 1), l.n + 1
          FROM later l WHERE l.fair IS NOT NULL AND l.n < h.room
    ), sooner AS (
        (SELECT s.fair, 1 AS n FROM step s
          WHERE h.room > 0 AND s.state = 'parked' AND s.waits_for = o.line AND s.fair <= coalesce(g.turn, '')
          ORDER BY s.fair LIMIT 1)
        UNION ALL
        SELECT (SELECT s.fair FROM step s
                 WHERE s.state = 'parked' AND s.waits_for = o.line AND s.fair > l.fair AND s.fair <= coalesce(g.turn, '')
                 ORDER BY s.fair LIMIT 1), l.n + 1
          FROM sooner l WHERE l.fair IS NOT NULL AND l.n < h.room
    ), tenants AS (
        SELECT fair, row_number() OVER (ORDER BY lap, n) AS place, count(*) OVER () AS every
          FROM (SELECT fair, 0 AS lap, n FROM later WHERE fair IS NOT NULL
                UNION ALL
                SELECT fair, 1, n FROM sooner WHERE fair IS NOT NULL
                ORDER BY lap, n LIMIT greatest(h.room, 0)) both_laps
    )
    SELECT x.*, row_number() OVER (PARTITION BY t.fair) AS nth, t.place
      FROM tenants t CROSS JOIN LATERAL (
        SELECT s.run_id, s.idx, s.fair, s.options->'gates' AS gates, s.options->'rate' AS rate, s.options->'entry' AS entry
          FROM (SELECT f.run_id, f.idx FROM step f
                 WHERE f.state = 'parked' AND f.waits_for = o.line AND f.fair = t.fair
                 ORDER BY f.priority DESC, f.run_id, f.idx
                 LIMIT greatest(ceil(h.room::float8 / t.every), CASE WHEN h.ranked THEN %(window)s::int END)) f
          JOIN step s ON s.run_id = f.run_id AND s.idx = f.idx
         -- What is asked once more, when the row is locked, must not look as if it chose few: the planner would begin with it.
         WHERE CASE WHEN s.state = 'parked' THEN s.waits_for = o.line END
         ORDER BY s.priority DESC, s.run_id, s.rank DESC NULLS LAST, s.idx
         LIMIT ceil(h.room::float8 / t.every) FOR NO KEY UPDATE OF s SKIP LOCKED
      ) x
  ) w ON h.room > 0
 ORDER BY o.line, w.nth, w.place

-- name: counts
-- Gates alone.
SELECT o.line, (SELECT count(*) FROM permit p WHERE p.gate = o.line)::int,
       coalesce((SELECT greatest(0.0, extract(epoch FROM g.next_at - %(moment)s::timestamptz))::float8
                   FROM gate g WHERE g.name = o.line), 0.0)
  FROM unnest(%(lines)s::text[]) AS o(line)

-- name: enter
-- Runs that may begin: each holds a place from now on, and its roots go on to their own limits, or are ready.
-- OFFSET 0 keeps the planner from walking all that is parked, once for each run.
WITH o AS MATERIALIZED (
    SELECT * FROM unnest(%(run)s::uuid[], %(idx)s::int[], %(line)s::text[]) AS t(run_id, idx, line)
), roots AS MATERIALIZED (
    SELECT run_id, idx FROM o
    UNION ALL
    SELECT s.run_id, s.idx FROM o CROSS JOIN LATERAL (
           SELECT run_id, idx FROM step WHERE state = 'parked' AND waits_for = 'entry:' || o.run_id::text OFFSET 0) s
), next AS MATERIALIZED (
    SELECT s.run_id, s.idx, coalesce(s.options->'gates'->0->>0, s.options->'rate'->>0) AS line
      FROM roots r JOIN step s ON s.run_id = r.run_id AND s.idx = r.idx
     WHERE s.state || '' = 'parked' FOR NO KEY UPDATE OF s
), held AS (
    INSERT INTO permit (gate, run_id, idx) SELECT line, run_id, -1 FROM o ON CONFLICT DO NOTHING
)
UPDATE step s
   SET state = CASE WHEN n.line IS NULL THEN 'ready' ELSE 'parked' END, waits_for = n.line, sent = true,
       due_at = clock_timestamp(),
       lease_until = CASE WHEN n.line IS NULL
            THEN clock_timestamp() + interval '1 second' * (s.options->>'queue_timeout')::float8 END
  FROM next n
 WHERE s.run_id = n.run_id AND s.idx = n.idx
RETURNING s.run_id, (SELECT workflow FROM run WHERE id = s.run_id), s.idx, s.name, s.action, s.queue, s.priority,
          s.attempt, s.failures, s.rank, s.expect, s.waits_for

-- name: admit
-- Steps that are let in hold their places from now on and are ready, some of them for a later moment; others
-- change their line.
WITH o AS MATERIALIZED (
    SELECT * FROM unnest(%(run)s::uuid[], %(idx)s::int[], %(line)s::text[], %(delay)s::float8[])
        AS t(run_id, idx, line, delay)
), moved AS (
    UPDATE step s
       SET state = CASE WHEN o.line IS NULL THEN 'ready' ELSE 'parked' END, waits_for = o.line, sent = true,
           due_at = %(moment)s::timestamptz + interval '1 second' * o.delay,
           lease_until = CASE WHEN o.line IS NULL THEN %(moment)s::timestamptz + interval '1 second'
                * (o.delay + (s.options->>'queue_timeout')::float8) END
      FROM o
     WHERE s.run_id = o.run_id AND s.idx = o.idx AND s.state || '' = 'parked'
    RETURNING s.run_id, s.idx, s.name, s.action, s.queue, s.priority, s.attempt, s.failures, s.rank, s.expect, s.state,
              s.options, o.delay
), held AS (
    INSERT INTO permit (gate, run_id, idx)
    SELECT e->>0, run_id, idx FROM moved, jsonb_array_elements(options->'gates') e WHERE state = 'ready'
        ON CONFLICT DO NOTHING
), turned AS (
    INSERT INTO gate (name, turn, next_at)
    SELECT name, turn, %(moment)s::timestamptz + interval '1 second' * slot
      FROM unnest(%(names)s::text[], %(turns)s::text[], %(slots)s::float8[]) AS t(name, turn, slot)
        ON CONFLICT (name) DO UPDATE
       SET turn = coalesce(excluded.turn, gate.turn), next_at = coalesce(excluded.next_at, gate.next_at)
)
SELECT run_id, (SELECT workflow FROM run WHERE id = run_id), idx, name, action, queue, priority, attempt, failures,
       rank, expect, delay
  FROM moved WHERE state = 'ready'

-- name: lines
-- The gates that somebody waits for, a bounded walk from one to the next.
WITH RECURSIVE q AS (
    (SELECT waits_for, 1 AS n FROM step
      WHERE state = 'parked' AND waits_for > %(after)s AND waits_for >= 'gate:' AND waits_for < 'gate;'
      ORDER BY waits_for LIMIT 1)
    UNION ALL
    SELECT (SELECT s.waits_for FROM step s
             WHERE s.state = 'parked' AND s.waits_for > q.waits_for AND s.waits_for < 'gate;'
             ORDER BY s.waits_for LIMIT 1), q.n + 1
      FROM q WHERE q.waits_for IS NOT NULL AND q.n < %(limit)s
)
SELECT waits_for FROM q WHERE waits_for IS NOT NULL

-- name: take_overdue
-- Takes ready steps that nobody claimed in time, under a lease of our own, so that what becomes of them goes through the
-- same fence as any outcome. Only steps with a queue timeout stand in the index that this reads; now() and not
-- clock_timestamp(), which no index knows: every tick would read all of them.
WITH late AS (
    SELECT s.run_id, s.idx FROM step s JOIN run r ON r.id = s.run_id
     WHERE s.state = 'ready' AND s.lease_until IS NOT NULL AND s.lease_until <= now()
       AND r.state IN ('pending', 'running')
     ORDER BY s.lease_until LIMIT %(limit)s
     FOR NO KEY UPDATE OF s SKIP LOCKED
), begun AS (
    UPDATE run SET state = 'running', started_at = clock_timestamp()
     WHERE id IN (SELECT run_id FROM late) AND state = 'pending'
)
UPDATE step s
   SET state = 'running', attempt = s.attempt + 1, lease = %(lease)s, lease_until = clock_timestamp() + interval '15 seconds',
       started_at = clock_timestamp(), worker = 'tick', suspect = false
  FROM late
 WHERE s.run_id = late.run_id AND s.idx = late.idx
RETURNING s.run_id, (SELECT workflow FROM run WHERE id = s.run_id), s.idx, s.name, s.attempt, s.failures, s.options,
          s.worker, 0.0::float8 AS ran

-- name: late_runs
-- now() for the same reason.
SELECT id, extract(epoch FROM deadline_at - created_at)::float8 FROM run
 WHERE deadline_at <= now() AND state IN ('pending', 'running', 'paused')
 ORDER BY deadline_at LIMIT %(limit)s

-- name: pace
-- The moment at which a body under a rate may begin: now, or as long behind the last one as the rate wants. Answers with
-- the seconds until then.
WITH quick AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true) AS done
)
INSERT INTO gate AS g (name, next_at)
SELECT %(name)s, clock_timestamp() + interval '1 second' * %(interval)s FROM quick WHERE done IS NOT NULL
    ON CONFLICT (name) DO UPDATE
   SET next_at = greatest(g.next_at, clock_timestamp()) + interval '1 second' * %(interval)s
RETURNING extract(epoch FROM g.next_at - clock_timestamp())::float8 - %(interval)s
