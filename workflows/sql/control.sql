-- What people and programs do to runs from outside: seldom, so these statements may cost what a run is long.
-- Each begins with the run's row, which the end of a run, a retry, a pause and a signal all lock first.

-- name: lock_run
SELECT state, workflow, error->>'step', started_at IS NOT NULL FROM run WHERE id = %(run)s FOR UPDATE

-- name: undone_by
-- The run that compensated this one.
SELECT id FROM run WHERE origin = %(run)s AND origin_kind = 'compensation' LIMIT 1

-- name: plan_whole
-- For this transaction only: the statements below join all steps of a run with each other, once.
SELECT set_config('enable_hashjoin', 'on', true)

-- name: reopen_steps
-- Opens the steps again that were cancelled, or failed and took the run with them (its dead letters, discarded ones
-- too). Each waits for its parents that are open again; the others have counted it down already, a fatal one
-- among them. One with limits goes to its line again, and the next tick asks for it. What came from the parents that stay (`blocked`, a gathering step's inputs) stays.
WITH fatal AS MATERIALIZED (
    SELECT idx FROM dead_letter WHERE run_id = %(run)s
    UNION
    SELECT idx FROM event WHERE run_id = %(run)s AND kind = 'dead.discarded'
), again AS MATERIALIZED (
    SELECT idx, dependents FROM step
     WHERE run_id = %(run)s
       AND (state = 'cancelled' OR state = 'failed' AND (name = %(step)s OR idx IN (SELECT idx FROM fatal)))
), need AS MATERIALIZED (
    SELECT CASE WHEN d < 0 THEN ~d ELSE d END AS idx, count(*)::int AS n
      FROM again, unnest(dependents) AS d GROUP BY 1
), opened AS (
    UPDATE step s
       SET state = CASE WHEN n.n IS NOT NULL THEN 'waiting'
                        WHEN s.options ?| '{gates,rate}' THEN 'parked' ELSE 'ready' END,
           waits_for = coalesce(s.options->'gates'->0->>0, s.options->'rate'->>0), missing = coalesce(n.n, 0),
           attempt = 0, failures = 0, sent = %(sent)s, suspect = false, due_at = clock_timestamp(),
           lease = NULL, lease_until = NULL, worker = NULL, started_at = NULL, finished_at = NULL,
           progress = NULL, result = NULL, error = NULL, wait = NULL
      FROM again a LEFT JOIN need n ON n.idx = a.idx
     WHERE s.run_id = %(run)s AND s.idx = a.idx
    RETURNING s.idx, s.name, s.action, s.queue, s.priority, s.rank, s.expect, s.state, s.dependents
)
SELECT idx, name, action, queue, priority, rank, expect, NULL::int, NULL::int FROM opened WHERE state = 'ready'
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, count(*)::int, (count(*) FILTER (WHERE dependents = '{}'))::int FROM opened

-- name: reopen_run
-- The deadline moves on by the time that has passed since the run was accepted. A run that held places of its own has
-- them again, though others may have taken them meanwhile: it is not sent back to the end of a line.
WITH held AS (
    INSERT INTO permit (gate, run_id, idx)
    SELECT line, id, -1 FROM run, unnest(gates) AS line WHERE id = %(run)s ON CONFLICT DO NOTHING
)
UPDATE run r
   SET state = CASE WHEN EXISTS (SELECT FROM pause WHERE kind = 'workflow' AND name = r.workflow)
                    THEN 'paused' ELSE 'running' END,
       missing = %(missing)s, error = NULL, finished_at = NULL, started_at = coalesce(started_at, clock_timestamp()),
       follow = hooks IS NOT NULL, deadline_at = deadline_at + (clock_timestamp() - created_at)
 WHERE id = %(run)s
RETURNING state

-- name: bring_back
DELETE FROM dead_letter WHERE run_id = %(run)s

-- name: discard
DELETE FROM dead_letter WHERE run_id = %(run)s AND (%(idx)s::int IS NULL OR idx = %(idx)s) RETURNING idx, step

-- name: tell
INSERT INTO event (run_id, kind, idx, detail) VALUES (%(run)s, %(kind)s, %(idx)s, %(detail)s::jsonb)

-- name: to_follow
-- Runs whose end something has still to follow, the oldest first.
SELECT id FROM run
 WHERE follow AND state IN ('succeeded', 'failed', 'cancelled')
 ORDER BY finished_at LIMIT %(limit)s

-- name: take_ended
-- Such a run, for one process at a time.
SELECT id::text, workflow, state, params, error, hooks, correlation_id FROM run
 WHERE id = %(run)s AND follow AND state IN ('succeeded', 'failed', 'cancelled')
   FOR UPDATE SKIP LOCKED

-- name: followed
UPDATE run SET follow = false WHERE id = %(run)s

-- name: outcomes
WITH o AS MATERIALIZED (
    SELECT %(run)s::uuid AS run_id, idx FROM unnest(%(idx)s::int[]) AS t(idx)
)
SELECT s.idx, s.state, s.finished_at FROM o JOIN step s ON s.run_id = o.run_id AND s.idx = o.idx

-- name: open_linked
-- A run that repeats or undoes another one: its definition, parameters, tags and tenant are those of its origin.
WITH opened AS (
    INSERT INTO run (id, workflow, definition, correlation_id, state, params, steps, missing, origin, origin_kind,
                     tags, tenant)
    SELECT %(run)s, %(workflow)s, definition, correlation_id, 'pending', params, %(steps)s, %(missing)s, id, %(kind)s,
           tags, tenant
      FROM run WHERE id = %(origin)s
    RETURNING id, tags
)
INSERT INTO run_tag (tag, run_id) SELECT unnest(tags), id FROM opened

-- name: stand_ins
-- Rows that stand in for finished steps of another run, so that others find results where they always do.
INSERT INTO step (run_id, idx, name, action, queue, priority, state, missing, dependents, result, started_at, finished_at)
SELECT %(run)s, o.place, regexp_replace(s.name, '\[\]$', ''), s.action, s.queue, s.priority,
       CASE WHEN s.result IS NULL THEN 'skipped' ELSE 'succeeded' END, 0, %(dependents)s::int[], s.result,
       s.started_at, s.finished_at
  FROM unnest(%(idx)s::int[], %(place)s::int[]) AS o(idx, place)
  JOIN step s ON s.run_id = %(origin)s AND s.idx = o.idx
