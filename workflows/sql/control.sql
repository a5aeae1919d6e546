-- What people and programs do to runs from outside: seldom, so these statements may cost what a run is long.
-- Each begins with the run's row, which the end of a run, a retry, a pause and a signal all lock first.

-- name: lock_run
SELECT state, workflow, error->>'step', missing FROM run WHERE id = %(run)s FOR UPDATE

-- name: undone_by
-- The run that compensated this one.
SELECT id FROM run WHERE origin = %(run)s AND origin_kind = 'compensation' LIMIT 1

-- name: plan_whole
-- For this transaction only: the statements below join all steps of a run with each other, once.
SELECT set_config('enable_hashjoin', 'on', true)

-- name: reopen_steps
-- Opens the steps again that were cancelled, or failed and took the run with them (its dead letters, discarded ones
-- too). Each waits for its parents that are open again; the others have counted it down already, a fatal one
-- among them. One with limits goes to its line again, and the next tick asks for it. What came from the parents that
-- stay (`blocked`, a gathering step's inputs) stays.
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
           lease = NULL, worker = NULL, started_at = NULL, finished_at = NULL,
           lease_until = CASE WHEN n.n IS NULL
               THEN clock_timestamp() + interval '1 second' * (s.options->>'queue_timeout')::float8 END,
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
                      OR EXISTS (SELECT FROM run p WHERE p.id = r.parent_run AND p.state || '' = 'paused')
                    THEN 'paused' ELSE 'running' END,
       missing = %(missing)s, error = NULL, finished_at = NULL, started_at = coalesce(started_at, clock_timestamp()),
       follow = hooks IS NOT NULL, hooks = hooks - 'waits', deadline_at = deadline_at + (clock_timestamp() - created_at)
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
 WHERE id = %(run)s AND follow AND state || '' IN ('succeeded', 'failed', 'cancelled')
   FOR UPDATE SKIP LOCKED

-- name: followed
UPDATE run SET follow = false, hooks = CASE WHEN hooks ? 'waits' THEN hooks - 'waits' ELSE hooks END WHERE id = %(run)s

-- name: postpone
-- Everything but its compensation has followed, and that has to wait for bodies.
UPDATE run SET hooks = hooks || '{"waits": true}' WHERE id = %(run)s

-- name: lingers
-- Of the bodies that were at work when this run, or one below it, ended, and that may still be, the one that may last
-- longest. Its worker tells of its end; where nobody does, its lease ends that.
WITH RECURSIVE below AS (
    SELECT %(run)s::uuid AS id
    UNION ALL
    SELECT c.id FROM below b CROSS JOIN LATERAL (SELECT id FROM run WHERE parent_run = b.id OFFSET 0) c
)
SELECT b.id::text, s.name, s.worker, s.lease_until
  FROM below b CROSS JOIN LATERAL (
       SELECT name, worker, lease_until FROM step
        WHERE run_id = b.id AND state = 'cancelled' AND lease IS NOT NULL AND lease_until > clock_timestamp()
       OFFSET 0) s
 ORDER BY s.lease_until DESC LIMIT 1

-- name: let_go
-- The bodies that were at work under these leases when their run ended are over. Answers with the runs, from this one
-- upwards, whose compensation waited for them.
WITH RECURSIVE over AS (
    UPDATE step SET lease = NULL, lease_until = NULL
     WHERE run_id = %(run)s AND state = 'cancelled' AND reverse(lease::text)::uuid = ANY(%(leases)s::uuid[])
    RETURNING run_id
), above AS (
    SELECT id, parent_run, follow, hooks FROM run WHERE id = %(run)s AND EXISTS (SELECT FROM over)
    UNION ALL
    SELECT p.id, p.parent_run, p.follow, p.hooks FROM above a JOIN run p ON p.id = a.parent_run
)
SELECT id::text FROM above WHERE follow AND hooks ? 'waits'

-- name: outcomes
WITH o AS MATERIALIZED (
    SELECT %(run)s::uuid AS run_id, idx FROM unnest(%(idx)s::int[]) AS t(idx)
)
SELECT s.idx, s.state, s.finished_at, s.name FROM o JOIN step s ON s.run_id = o.run_id AND s.idx = o.idx

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
WITH o AS MATERIALIZED (
    SELECT %(origin)s::uuid AS run_id, t.* FROM unnest(%(idx)s::int[], %(place)s::int[]) AS t(idx, place)
)
INSERT INTO step (run_id, idx, name, action, queue, priority, state, missing, dependents, result, started_at, finished_at)
SELECT %(run)s, o.place, regexp_replace(s.name, '\[\]$', ''), s.action, s.queue, s.priority,
       CASE WHEN s.result IS NULL THEN 'skipped' ELSE 'succeeded' END, 0, %(dependents)s::int[], s.result,
       s.started_at, s.finished_at
  FROM o JOIN step s ON s.run_id = o.run_id AND s.idx = o.idx

-- name: read_origin
SELECT state, finished_at, edits, hooks, steps, tenant FROM run WHERE id = %(run)s

-- name: read_steps
-- Every step of a run, with whether the run did not survive it.
WITH fatal AS MATERIALIZED (
    SELECT idx FROM dead_letter WHERE run_id = %(run)s
    UNION
    SELECT idx FROM event WHERE run_id = %(run)s AND kind = 'dead.discarded'
)
SELECT s.idx, s.name, s.state, s.state = 'failed' AND (s.name = r.error->>'step' OR s.idx IN (SELECT idx FROM fatal))
  FROM run r JOIN step s ON s.run_id = r.id
 WHERE r.id = %(run)s ORDER BY s.idx

-- name: open_rerun
-- A run that repeats another one, with the time limit that that one had. It takes no place in a limit: see `line_up`.
WITH opened AS (
    INSERT INTO run (id, workflow, definition, correlation_id, state, params, steps, missing, origin, origin_kind,
                     tags, tenant, gates, edits, hooks, follow, deadline_at)
    SELECT %(run)s::uuid, workflow, definition,
           CASE WHEN correlation_id = id::text THEN %(run)s::text ELSE correlation_id END,
           CASE WHEN EXISTS (SELECT FROM pause WHERE kind = 'workflow' AND name = workflow) THEN 'paused'
                ELSE 'pending' END,
           %(params)s::jsonb, %(steps)s, %(missing)s, id, 'rerun', tags, %(tenant)s, %(gates)s::text[], %(edits)s::jsonb,
           %(hooks)s::jsonb, %(hooks)s::jsonb IS NOT NULL, clock_timestamp() + (deadline_at - created_at)
      FROM run WHERE id = %(origin)s
    RETURNING id, tags
)
INSERT INTO run_tag (tag, run_id) SELECT unnest(tags), id FROM opened

-- name: read_options
-- How these steps were to be run.
WITH o AS MATERIALIZED (
    SELECT %(run)s::uuid AS run_id, idx FROM unnest(%(idx)s::int[]) AS t(idx)
)
SELECT s.idx, s.options FROM o JOIN step s ON s.run_id = o.run_id AND s.idx = o.idx

-- name: copy_reused
-- The finished steps that a rerun reuses, as they are.
INSERT INTO step (run_id, idx, name, action, queue, priority, state, missing, blocked, attempt, failures, due_at,
                  started_at, finished_at, worker, dependents, refs, inputs, bindings, options, progress, result, error,
                  rank, expect, waits_for, wait, fair)
SELECT %(run)s, s.idx, s.name, s.action, s.queue, s.priority, s.state, s.missing, s.blocked, s.attempt, s.failures, s.due_at,
       s.started_at, s.finished_at, s.worker, s.dependents, s.refs, s.inputs, s.bindings, s.options, s.progress, s.result,
       s.error, s.rank, s.expect, s.waits_for, s.wait, s.fair
  FROM unnest(%(idx)s::int[]) AS o(idx)
  JOIN step s ON s.run_id = %(origin)s AND s.idx = o.idx

-- name: copy_again
-- The steps that a rerun computes again, as they were planned; `changed` says what edits have made of some.
-- They wait for those of their parents that are computed again as well, and are skipped where one that is reused
-- was skipped, or failed with that policy. A line of the run's own (`own`) is that of the new run. Answers with those
-- that may begin, and with those that stand in line before a limit.
WITH o AS MATERIALIZED (
    SELECT idx FROM unnest(%(idx)s::int[]) AS t(idx)
), again AS MATERIALIZED (
    SELECT s.* FROM o JOIN step s ON s.run_id = %(origin)s AND s.idx = o.idx
), edge AS (
    SELECT CASE WHEN d < 0 THEN ~d ELSE d END AS idx, 1 AS open, 0 AS blocks FROM again, unnest(dependents) AS d
    UNION ALL
    SELECT d, 0, 1 FROM step s, unnest(s.dependents) AS d
     WHERE s.run_id = %(run)s AND d >= 0
       AND (s.state = 'skipped' OR s.state = 'failed' AND s.options->>'on_failure' = 'skip')
), need AS MATERIALIZED (
    SELECT idx, sum(open)::int AS open, sum(blocks)::int AS blocks FROM edge GROUP BY idx
), added AS (
    INSERT INTO step (run_id, idx, name, action, queue, priority, state, missing, blocked, sent, lease_until, dependents,
                      refs, inputs, bindings, options, rank, expect, waits_for, fair)
    SELECT %(run)s, a.idx, a.name, a.action, a.queue, a.priority,
           CASE WHEN n.open > 0 THEN 'waiting'
                WHEN n.blocks > 0 AND NOT coalesce(w.options ? 'join', false) THEN 'ready'
                WHEN w.options ?| '{gates,rate}' THEN 'parked' ELSE 'ready' END,
           coalesce(n.open, 0), coalesce(n.blocks, 0), %(sent)s,
           CASE WHEN coalesce(n.open, 0) = 0
                THEN clock_timestamp() + interval '1 second' * (w.options->>'queue_timeout')::float8 END,
           a.dependents,
           CASE WHEN c.idx IS NULL THEN a.refs ELSE c.refs END,
           CASE WHEN c.idx IS NULL THEN a.inputs ELSE c.inputs END,
           CASE WHEN c.idx IS NULL THEN a.bindings ELSE c.bindings END,
           w.options, a.rank, a.expect, coalesce(w.options->'gates'->0->>0, w.options->'rate'->>0),
           CASE WHEN c.idx IS NULL THEN a.fair ELSE c.fair END
      FROM again a
      LEFT JOIN need n ON n.idx = a.idx
      LEFT JOIN jsonb_to_recordset(%(changed)s::jsonb)
             AS c(idx int, refs int[], inputs jsonb, bindings jsonb, options jsonb, fair text)
             ON c.idx = a.idx
     CROSS JOIN LATERAL (
           SELECT CASE WHEN %(own)s THEN replace(o.options::text, 'gate:run:' || %(origin)s, 'gate:run:' || %(run)s)::jsonb
                       ELSE o.options END AS options
             FROM (SELECT CASE WHEN c.options IS NULL THEN a.options ELSE nullif(c.options, '{}') END AS options) o) w
    RETURNING idx, name, action, queue, priority, rank, expect, state, waits_for
)
SELECT idx, name, action, queue, priority, rank, expect, CASE state WHEN 'parked' THEN waits_for END
  FROM added WHERE state IN ('ready', 'parked')

-- name: line_up
-- A rerun of a workflow with a concurrency key waits for its turn like any run: the first of its steps that may begin
-- stands in the line for all of them.
WITH first AS MATERIALIZED (
    SELECT min(idx) AS idx FROM step WHERE run_id = %(run)s AND state IN ('ready', 'parked')
)
UPDATE step s
   SET state = 'parked', lease_until = NULL, fair = coalesce(%(tenant)s, ''),
       waits_for = CASE WHEN s.idx = first.idx THEN %(line)s::text ELSE 'entry:' || %(run)s END,
       options = CASE WHEN s.idx = first.idx
                      THEN coalesce(s.options, '{}') || jsonb_build_object('entry', jsonb_build_array(%(line)s::text, %(limit)s::int))
                      ELSE s.options - 'entry' END
  FROM first
 WHERE s.run_id = %(run)s AND s.state IN ('ready', 'parked')

-- name: pause_run
UPDATE run SET state = 'paused' WHERE id = %(run)s AND state || '' IN ('pending', 'running') RETURNING id

-- name: resume_run
UPDATE run SET state = CASE WHEN started_at IS NULL THEN 'pending' ELSE 'running' END
 WHERE id = %(run)s AND state || '' = 'paused'
RETURNING state

-- name: park_ready
-- Puts the ready steps of a paused run aside, and those in line before a limit, so that nobody has to pass them over
-- (`state || ''`: not along all that is ready anywhere). What they had noted, waited for and were due at is kept
-- under `paused`.
UPDATE step
   SET state = 'parked', sent = false, waits_for = 'pause', due_at = 'infinity', lease_until = NULL,
       wait = coalesce(wait, '{}') || jsonb_build_object('paused', jsonb_build_object(
                  'waits_for', waits_for, 'due', CASE WHEN state = 'ready' AND NOT sent THEN due_at END,
                  'noted', wait IS NOT NULL))
 WHERE run_id = %(run)s AND (state || '' = 'ready' OR state || '' = 'parked' AND starts_with(waits_for, 'gate:'))
RETURNING idx

-- name: give_back
-- The places in limits of the steps that a pause has put aside: only what runs keeps its own. Answers with the gates.
DELETE FROM permit p
 USING step s
 WHERE p.run_id = %(run)s AND p.idx >= 0
   AND s.run_id = p.run_id AND s.idx = p.idx AND s.state || '' = 'parked' AND s.waits_for = 'pause'
RETURNING p.gate

-- name: unpark
-- The reverse; and those that were announced, were refused, and that no tick has met yet. One with a limit in front of
-- it goes to its line again (one that will only be skipped has none), a retry when its time has come: `begin`. The
-- last columns say whether a step may begin now, and the line.
WITH held AS MATERIALIZED (
    SELECT run_id, idx, wait->'paused'->>'waits_for' AS waited, clock_timestamp() AS moment,
           (wait->'paused'->>'due')::timestamptz AS due,
           CASE WHEN (wait->'paused'->>'noted')::boolean THEN wait - 'paused' END AS note,
           CASE WHEN blocked > 0 AND NOT coalesce(options ? 'join', false) THEN NULL
                WHEN starts_with(wait->'paused'->>'waits_for', 'gate:') THEN wait->'paused'->>'waits_for'
                ELSE coalesce(options->'gates'->0->>0, options->'rate'->>0) END AS line
      FROM step
     WHERE run_id = %(run)s AND state = 'parked' AND waits_for = 'pause'
), freed AS (
    UPDATE step s
       SET state = CASE WHEN h.line IS NULL THEN 'ready' ELSE 'parked' END,
           waits_for = CASE WHEN h.line IS NULL THEN h.waited WHEN h.due > h.moment THEN 'start' ELSE h.line END,
           wait = CASE WHEN h.line IS NOT NULL AND h.due > h.moment
                       THEN coalesce(h.note, '{}') || jsonb_build_object('then', h.line) ELSE h.note END,
           sent = h.line IS NULL AND %(sent)s AND coalesce(h.due <= h.moment, true),
           due_at = CASE WHEN h.line IS NULL OR h.due > h.moment THEN greatest(h.due, h.moment) ELSE 'infinity' END,
           lease_until = CASE WHEN h.line IS NULL
               THEN h.moment + interval '1 second' * (s.options->>'queue_timeout')::float8 END
      FROM held h
     WHERE s.run_id = h.run_id AND s.idx = h.idx
    RETURNING s.idx, s.name, s.action, s.queue, s.priority, s.rank, s.expect, s.attempt, s.failures, s.sent, h.line
)
SELECT * FROM freed
UNION ALL
SELECT idx, name, action, queue, priority, rank, expect, attempt, failures, %(sent)s, NULL
  FROM step WHERE run_id = %(run)s AND state || '' = 'ready' AND sent

-- name: paused_itself
-- Whether somebody has paused this very run since it was last resumed, and not only its workflow, or a run that it is a
-- part of: that is what `by` tells.
SELECT kind = 'run.paused' FROM event
 WHERE run_id = %(run)s AND (kind = 'run.resumed' OR kind = 'run.paused' AND NOT coalesce(detail ? 'by', false))
 ORDER BY id DESC LIMIT 1

-- name: open_below
-- The open runs below this one, parents first, locked: ids grow, and a run is opened under the lock of its parent.
-- Along its own children (`state || ''`), not along all that is open.
WITH RECURSIVE below AS (
    SELECT id FROM run WHERE parent_run = %(run)s AND state || '' IN ('pending', 'running', 'paused')
    UNION ALL
    SELECT c.id FROM below b CROSS JOIN LATERAL (
           SELECT id FROM run WHERE parent_run = b.id AND state || '' IN ('pending', 'running', 'paused') OFFSET 0) c
)
SELECT r.id, r.state, r.workflow, r.parent_run FROM below b JOIN run r ON r.id = b.id ORDER BY r.id FOR UPDATE OF r

-- name: paused_above
-- The topmost of the paused runs that this one is a part of.
WITH RECURSIVE above AS (
    SELECT p.id, p.parent_run, 1 AS n FROM run r JOIN run p ON p.id = r.parent_run
     WHERE r.id = %(run)s AND p.state || '' = 'paused'
    UNION ALL
    SELECT p.id, p.parent_run, a.n + 1 FROM above a JOIN run p ON p.id = a.parent_run AND p.state || '' = 'paused'
)
SELECT id FROM above ORDER BY n DESC LIMIT 1

-- name: begin_pause
INSERT INTO pause (kind, name) VALUES (%(kind)s, %(name)s) ON CONFLICT DO NOTHING RETURNING name

-- name: end_pause
DELETE FROM pause WHERE kind = %(kind)s AND name = %(name)s RETURNING name

-- name: pauses
SELECT kind, name, at FROM pause ORDER BY kind, name

-- name: hold_pause
-- Whoever acts on a pause holds it, so that its end waits and then sees what was done.
SELECT name FROM pause WHERE kind = %(kind)s AND name = %(name)s FOR KEY SHARE

-- name: sendable
-- The time, where nobody has paused a queue: who sends something there needs both.
SELECT extract(epoch FROM clock_timestamp())::float8
 WHERE NOT EXISTS (SELECT FROM pause WHERE kind = 'queue' AND name = %(queue)s)

-- name: runs_in
-- As a range of the index of both: with equations the planner would rather walk along all runs, and past the others.
SELECT id FROM run
 WHERE (state || ':' || workflow, id) > (%(state)s::text || ':' || %(workflow)s::text, %(after)s::uuid)
   AND (state || ':' || workflow, id)
       <= (%(state)s::text || ':' || %(workflow)s::text, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
 ORDER BY state || ':' || workflow, id LIMIT %(limit)s

-- name: stray_runs
-- Open runs of paused workflows: mostly there is no such workflow, and nothing is read.
SELECT r.id
  FROM pause p
 CROSS JOIN LATERAL (
       SELECT id FROM run WHERE state || ':' || workflow = 'pending:' || p.name
       UNION ALL
       SELECT id FROM run WHERE state || ':' || workflow = 'running:' || p.name) r
 WHERE p.kind = 'workflow' LIMIT %(limit)s

-- name: expired_runs
-- Runs that are over for longer than their workflow's are kept, the oldest first: a walk from one workflow to the next,
-- not a scan of runs (now() and not clock_timestamp(), which no index knows). A rerun uses what its origin has kept
-- (results, artifacts), and a parent what its children have: those stay as long as that run is there, and one that is
-- still to be compensated stays until that has begun. Children stand
-- in the index when their parent is gone, since a parent of months may have any number.
WITH RECURSIVE w AS (
    (SELECT workflow FROM run WHERE finished_at IS NOT NULL AND parent_run IS NULL ORDER BY workflow, finished_at LIMIT 1)
    UNION ALL
    SELECT (SELECT r.workflow FROM run r
             WHERE r.finished_at IS NOT NULL AND r.parent_run IS NULL AND r.workflow > w.workflow
             ORDER BY r.workflow, r.finished_at LIMIT 1)
      FROM w WHERE w.workflow IS NOT NULL
), kept AS (
    SELECT workflow, coalesce((SELECT t.runs FROM retention t WHERE t.workflow = w.workflow), %(default)s::interval) AS runs
      FROM w WHERE workflow IS NOT NULL
)
SELECT r.id, r.steps FROM kept
 CROSS JOIN LATERAL (
       SELECT id, steps FROM run o
        WHERE o.workflow = kept.workflow AND o.parent_run IS NULL AND o.finished_at < now() - kept.runs
          AND NOT coalesce(o.hooks ? 'waits', false)
          AND NOT EXISTS (SELECT FROM run c WHERE c.origin = o.id AND c.origin_kind = 'rerun' OFFSET 0)
        ORDER BY o.finished_at LIMIT %(limit)s) r
 WHERE kept.runs IS NOT NULL LIMIT %(limit)s

-- name: retains_anything
SELECT EXISTS (SELECT FROM retention)

-- name: needed_by
-- A run that uses what this one has kept.
SELECT c.id, 'repeats it' FROM run c WHERE c.origin = %(run)s AND c.origin_kind = 'rerun'
UNION ALL
SELECT p.id, 'had it as a step' FROM run p WHERE p.id = (SELECT parent_run FROM run WHERE id = %(run)s)
 LIMIT 1

-- name: take_dead
-- Of these runs the ones that are over and that nobody else is deleting, marked, so that nobody opens them again.
WITH o AS MATERIALIZED (
    SELECT r.id FROM run r
     WHERE r.id = ANY(%(runs)s::uuid[]) AND r.state || '' IN ('succeeded', 'failed', 'cancelled')
       FOR UPDATE SKIP LOCKED
)
UPDATE run r SET missing = -1, follow = false FROM o WHERE r.id = o.id RETURNING r.id

-- name: delete_steps
WITH o AS MATERIALIZED (
    SELECT run_id, idx FROM step WHERE run_id = %(run)s ORDER BY idx LIMIT %(limit)s
)
DELETE FROM step s USING o WHERE s.run_id = o.run_id AND s.idx = o.idx RETURNING s.idx

-- name: delete_events
WITH o AS MATERIALIZED (
    SELECT id FROM event WHERE run_id = %(run)s ORDER BY id LIMIT %(limit)s
)
DELETE FROM event e USING o WHERE e.id = o.id RETURNING e.id

-- name: delete_runs
-- Their children stay, and have no parent any more.
WITH o AS MATERIALIZED (
    SELECT unnest(%(runs)s::uuid[]) AS id
), steps AS (
    DELETE FROM step USING o WHERE run_id = o.id
), events AS (
    DELETE FROM event USING o WHERE run_id = o.id
), signals AS (
    DELETE FROM signal USING o WHERE run_id = o.id
), permits AS (
    DELETE FROM permit USING o WHERE run_id = o.id
), letters AS (
    DELETE FROM dead_letter USING o WHERE run_id = o.id
), tags AS (
    DELETE FROM run_tag USING o WHERE run_id = o.id
), children AS (
    UPDATE run SET parent_run = NULL FROM o WHERE parent_run = o.id AND NOT run.id = ANY(%(runs)s::uuid[])
)
DELETE FROM run USING o WHERE run.id = o.id RETURNING run.id

-- name: retain
INSERT INTO retention (workflow, runs) VALUES (%(workflow)s, %(runs)s)
    ON CONFLICT (workflow) DO UPDATE SET runs = excluded.runs

-- name: retain_default
DELETE FROM retention WHERE workflow = %(workflow)s

-- name: retain_part
INSERT INTO retention_part (part, workflow, keep) VALUES (%(part)s, %(workflow)s, %(keep)s)
    ON CONFLICT (part, workflow) DO UPDATE SET keep = excluded.keep

-- name: retain_part_default
DELETE FROM retention_part WHERE part = %(part)s AND workflow = %(workflow)s

-- name: retentions
SELECT workflow, max(runs), max(keep) FILTER (WHERE part = 'events'), max(keep) FILTER (WHERE part = 'artifacts')
  FROM (SELECT workflow, runs, NULL AS part, NULL::interval AS keep FROM retention
        UNION ALL
        SELECT workflow, NULL, part, keep FROM retention_part) said
 GROUP BY workflow ORDER BY workflow

-- name: outlived
-- Runs that are over for longer than this part of them is kept, in the order in which they ended, from where the last
-- purge of their workflow came to; those that ended at one moment come together. Those below a parent have an index of
-- their own.
SELECT p.workflow, r.id, r.finished_at
  FROM retention_part p
 CROSS JOIN LATERAL (
       SELECT id, finished_at FROM (
              (SELECT id, finished_at FROM run o
                WHERE o.workflow = p.workflow AND o.parent_run IS NULL
                  AND o.finished_at > coalesce(p.until, '-infinity') AND o.finished_at < now() - p.keep
                ORDER BY o.finished_at FETCH FIRST (%(limit)s) ROWS WITH TIES)
              UNION ALL
              (SELECT id, finished_at FROM run o
                WHERE o.workflow = p.workflow AND o.parent_run IS NOT NULL
                  AND o.finished_at > coalesce(p.until, '-infinity') AND o.finished_at < now() - p.keep
                ORDER BY o.finished_at FETCH FIRST (%(limit)s) ROWS WITH TIES)) ended
        ORDER BY finished_at FETCH FIRST (%(limit)s) ROWS WITH TIES) r
 WHERE p.part = %(part)s
 ORDER BY p.workflow, r.finished_at, r.id

-- name: purged_until
UPDATE retention_part SET until = greatest(until, %(until)s)
 WHERE part = %(part)s AND workflow = %(workflow)s

-- name: trim_events
-- Some events of these runs; one stays in their place, and says so.
WITH o AS MATERIALIZED (
    SELECT e.id, e.run_id FROM unnest(%(runs)s::uuid[]) AS r(id)
     CROSS JOIN LATERAL (
           SELECT id, run_id FROM event WHERE run_id = r.id AND kind <> 'events.purged' ORDER BY id LIMIT %(limit)s) e
     LIMIT %(limit)s
), gone AS (
    DELETE FROM event e USING o WHERE e.id = o.id RETURNING e.run_id
), told AS (
    INSERT INTO event (run_id, kind)
    SELECT DISTINCT run_id, 'events.purged' FROM gone
     WHERE NOT EXISTS (SELECT FROM event m WHERE m.run_id = gone.run_id AND m.kind = 'events.purged')
)
SELECT count(*) FROM gone

-- name: open_definitions
-- The digests of the definitions that open runs have: one walk along the index of the open ones, and no list of them.
SELECT DISTINCT definition FROM run WHERE state IN ('pending', 'running', 'paused') ORDER BY definition

-- name: read_definitions
SELECT digest, spec FROM definition WHERE digest = ANY(%(digests)s::text[]) ORDER BY name, digest

-- name: open_runs_of
-- Open runs of a definition, the newest first.
SELECT id FROM run
 WHERE (state, id) < (%(state)s, %(before)s::uuid) AND (state, id) >= (%(state)s, '00000000-0000-0000-0000-000000000000'::uuid)
   AND definition = %(definition)s
 ORDER BY state DESC, id DESC LIMIT %(limit)s

-- name: put_back
-- Steps that some worker could not run, by their action: a walk from one to the next, with some steps of each.
WITH RECURSIVE q AS (
    (SELECT waits_for, 1 AS n FROM step
      WHERE state = 'parked' AND waits_for >= 'action:' AND waits_for < 'action;' ORDER BY waits_for LIMIT 1)
    UNION ALL
    SELECT (SELECT s.waits_for FROM step s
             WHERE s.state = 'parked' AND s.waits_for > q.waits_for AND s.waits_for < 'action;'
             ORDER BY s.waits_for LIMIT 1), q.n + 1
      FROM q WHERE q.waits_for IS NOT NULL AND q.n < %(limit)s
)
SELECT w.action, (SELECT workflow FROM run WHERE id = w.run_id), w.name, w.queue, w.run_id
  FROM q CROSS JOIN LATERAL (
       SELECT s.action, s.name, s.queue, s.run_id FROM step s
        WHERE s.state = 'parked' AND s.waits_for = q.waits_for LIMIT %(limit)s) w
 WHERE q.waits_for IS NOT NULL

-- name: open_steps
SELECT s.run_id, s.name
  FROM unnest(%(runs)s::uuid[]) AS o(id)
  JOIN step s ON s.run_id = o.id
 WHERE s.state IN ('waiting', 'ready', 'running', 'parked') AND s.action = ANY(%(actions)s::text[])
 ORDER BY s.run_id DESC
