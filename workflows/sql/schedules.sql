-- Schedules and the ticks that wait for their turn. Whoever moves a schedule on holds the lock of its row, so each
-- tick is decided once; what it decides (runs, queue, the next tick) is one transaction.
-- Whether a run is open is asked by its key alone (OFFSET 0 is the fence): else the planner walks all open runs.

-- name: now
SELECT clock_timestamp()

-- name: lock
-- For a person's command: waits for whoever has the row.
SELECT s.name, s.workflow, s.definition, s.params, s.cron, s.every, s.timezone, s.anchor, s.jitter, s.overlap,
       s.catch_up, s.tick_param, s.paused, s.next_at, s.last_at, s.last_run, s.queued, s.started, s.skipped,
       s.missed_at, s.problem, s.running, clock_timestamp()
  FROM schedule s WHERE s.name = %(name)s
   FOR UPDATE

-- name: take
-- For a tick: somebody else's schedule is left alone.
SELECT s.name, s.workflow, s.definition, s.params, s.cron, s.every, s.timezone, s.anchor, s.jitter, s.overlap,
       s.catch_up, s.tick_param, s.paused, s.next_at, s.last_at, s.last_run, s.queued, s.started, s.skipped,
       s.missed_at, s.problem, s.running, clock_timestamp()
  FROM schedule s WHERE s.name = %(name)s
   FOR UPDATE SKIP LOCKED

-- name: one
SELECT s.name, s.workflow, s.definition, s.params, s.cron, s.every, s.timezone, s.anchor, s.jitter, s.overlap,
       s.catch_up, s.tick_param, s.paused, s.next_at, s.last_at, s.last_run, s.queued, s.started, s.skipped,
       s.missed_at, s.problem
  FROM schedule s WHERE s.name = %(name)s

-- name: read_of
-- Those of a workflow.
SELECT s.name, s.workflow, s.definition, s.params, s.cron, s.every, s.timezone, s.anchor, s.jitter, s.overlap,
       s.catch_up, s.tick_param, s.paused, s.next_at, s.last_at, s.last_run, s.queued, s.started, s.skipped,
       s.missed_at, s.problem
  FROM schedule s WHERE s.workflow = %(workflow)s ORDER BY s.workflow, s.name

-- name: read
-- All of them: as many as people have made.
SELECT s.name, s.workflow, s.definition, s.params, s.cron, s.every, s.timezone, s.anchor, s.jitter, s.overlap,
       s.catch_up, s.tick_param, s.paused, s.next_at, s.last_at, s.last_run, s.queued, s.started, s.skipped,
       s.missed_at, s.problem
  FROM schedule s
 ORDER BY s.name

-- name: due
-- Schedules whose next tick is due, and those with ticks in the queue of which no run is open any more. By hand
-- queued ticks (a backfill) run although the schedule is paused.
(SELECT name FROM schedule
  WHERE due_at <= now() AND NOT paused ORDER BY due_at LIMIT %(limit)s)
UNION
(SELECT s.name FROM schedule s
  WHERE s.queued > 0
    AND (NOT s.paused OR (SELECT bool_or(t.by_hand) FROM schedule_tick t WHERE t.schedule = s.name))
    AND (s.overlap = 'allow' OR NOT EXISTS (
         SELECT FROM unnest(s.running) AS o(id),
              LATERAL (SELECT state FROM run WHERE run.id = o.id OFFSET 0) AS r
          WHERE r.state IN ('pending', 'running', 'paused')))
  LIMIT %(limit)s)

-- name: doomed
-- The open runs of a schedule whose next tick is due: one snapshot, so what it lists was started by earlier ticks.
SELECT o.id
  FROM schedule s, unnest(s.running) AS o(id), LATERAL (SELECT state FROM run WHERE run.id = o.id OFFSET 0) AS r
 WHERE s.name = %(name)s AND s.due_at <= clock_timestamp() AND NOT s.paused AND s.overlap = 'cancel'
   AND r.state IN ('pending', 'running', 'paused')

-- name: open
SELECT o.id
  FROM unnest(%(running)s::uuid[]) AS o(id), LATERAL (SELECT state FROM run WHERE run.id = o.id OFFSET 0) AS r
 WHERE r.state IN ('pending', 'running', 'paused')

-- name: insert
INSERT INTO schedule (name, workflow, definition, params, cron, every, timezone, anchor, jitter, overlap, catch_up,
                      tick_param, paused, next_at, due_at)
VALUES (%(name)s, %(workflow)s, %(definition)s, %(params)s::jsonb, %(cron)s, %(every)s, %(timezone)s, %(anchor)s,
        %(jitter)s, %(overlap)s, %(catch_up)s, %(tick_param)s, %(paused)s, %(next_at)s, %(due_at)s)
    ON CONFLICT DO NOTHING
RETURNING name

-- name: replace
UPDATE schedule
   SET workflow = %(workflow)s, definition = %(definition)s, params = %(params)s::jsonb, cron = %(cron)s,
       every = %(every)s, timezone = %(timezone)s, anchor = %(anchor)s, jitter = %(jitter)s, overlap = %(overlap)s,
       catch_up = %(catch_up)s, tick_param = %(tick_param)s, next_at = %(next_at)s, due_at = %(due_at)s, problem = NULL
 WHERE name = %(name)s

-- name: move
-- What a tick has decided.
UPDATE schedule
   SET next_at = %(next_at)s, due_at = %(due_at)s, running = %(running)s::uuid[], problem = NULL,
       queued = (SELECT count(*) FROM schedule_tick WHERE schedule = %(name)s),
       last_at = coalesce(%(last_at)s, last_at), last_run = coalesce(%(last_run)s::uuid, last_run),
       started = started + %(started)s, skipped = skipped + %(skipped)s,
       missed_at = coalesce(%(missed_at)s, missed_at)
 WHERE name = %(name)s

-- name: triggered
UPDATE schedule
   SET started = started + 1, last_run = %(run)s::uuid, running = %(running)s::uuid[] || %(run)s::uuid
 WHERE name = %(name)s

-- name: fail
-- A tick that cannot start its run stays due; others look at it again in a while, and mind their own meanwhile.
UPDATE schedule SET problem = %(problem)s, due_at = clock_timestamp() + interval '1 second' * %(seconds)s
 WHERE name = %(name)s

-- name: pause
-- What became due while it was paused is not made up for: it goes on with the next tick from now.
UPDATE schedule SET paused = %(paused)s, next_at = coalesce(%(next_at)s, next_at), due_at = coalesce(%(due_at)s, due_at)
 WHERE name = %(name)s AND paused <> %(paused)s
RETURNING name

-- name: delete
DELETE FROM schedule WHERE name = %(name)s RETURNING name

-- name: queue
INSERT INTO schedule_tick (schedule, tick, by_hand)
SELECT %(name)s, t, %(by_hand)s FROM unnest(%(ticks)s::timestamptz[]) AS t
    ON CONFLICT DO NOTHING
RETURNING tick

-- name: unqueue
DELETE FROM schedule_tick
 WHERE schedule = %(name)s AND tick IN (
       SELECT tick FROM schedule_tick WHERE schedule = %(name)s AND (by_hand OR NOT %(paused)s) ORDER BY tick LIMIT %(limit)s)
RETURNING tick

-- name: count_queue
UPDATE schedule SET queued = (SELECT count(*) FROM schedule_tick WHERE schedule = %(name)s) WHERE name = %(name)s
