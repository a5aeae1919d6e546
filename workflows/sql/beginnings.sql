-- Runs that begin later, and runs of which there is only one. A start without these options runs none of them.

-- name: defer
-- The first steps of a new run get their time. One that has a limit in front of it waits for the time first (`start`),
-- and then for the limit.
WITH moment AS (
    SELECT coalesce(%(at)s::timestamptz, clock_timestamp() + interval '1 second' * %(delay)s::float8) AS at
), told AS (
    UPDATE run r SET deadline_at = r.deadline_at + greatest(interval '0', moment.at - clock_timestamp())
      FROM moment WHERE r.id = %(run)s AND r.deadline_at IS NOT NULL
)
UPDATE step s
   SET due_at = moment.at, sent = false,
       wait = CASE WHEN s.state = 'parked' THEN jsonb_build_object('then', s.waits_for) ELSE s.wait END,
       waits_for = CASE WHEN s.state = 'parked' THEN 'start' ELSE s.waits_for END
  FROM moment
 WHERE s.run_id = %(run)s AND s.state IN ('ready', 'parked')

-- name: begin
-- Steps whose run begins now, and that have a limit in front of them; and retries whose run was paused meanwhile. Of the
-- timers that are due, not of all that begin later (`waits_for || ''`).
WITH due AS (
    SELECT run_id, idx FROM step
     WHERE state = 'parked' AND wait IS NOT NULL AND due_at < 'infinity'::timestamptz AND due_at <= now()
       AND waits_for || '' = 'start'
     ORDER BY due_at LIMIT %(limit)s
     FOR UPDATE SKIP LOCKED
)
UPDATE step s SET waits_for = s.wait->>'then', wait = nullif(s.wait - 'then', '{}'), due_at = 'infinity'
  FROM due
 WHERE s.run_id = due.run_id AND s.idx = due.idx
RETURNING s.waits_for

-- name: turn
-- Starts under the same name come one after the other.
SELECT pg_advisory_xact_lock(hashtextextended(%(workflow)s || E'\n' || %(single)s, 7816392542))

-- name: standing
-- The open run of that name; and whether it has begun.
SELECT id, started_at IS NOT NULL, created_at FROM run
 WHERE workflow = %(workflow)s AND single = %(single)s AND state IN ('pending', 'running', 'paused')
   FOR UPDATE

-- name: recent
-- The newest run of that name that was accepted within the window, over or not. In the order of the index: where the
-- window is over, the first entry says so.
SELECT id FROM run
 WHERE workflow = %(workflow)s AND single = %(single)s
   AND created_at > now() - interval '1 second' * %(window)s
 ORDER BY created_at DESC LIMIT 1

-- name: give_up
-- A run that has begun gives its name to the next one.
UPDATE run SET single = NULL WHERE id = %(run)s

-- name: clear
-- A run that has not begun gets other steps.
DELETE FROM step WHERE run_id = %(run)s

-- name: replace
UPDATE run
   SET definition = %(definition)s, params = %(params)s::jsonb, steps = %(steps)s, missing = %(missing)s,
       correlation_id = %(correlation)s, tenant = %(tenant)s, gates = %(gates)s::text[], hooks = %(hooks)s::jsonb,
       follow = %(follow)s
 WHERE id = %(run)s

-- name: tell
INSERT INTO event (run_id, kind) VALUES (%(run)s, 'run.debounced')

-- name: now
SELECT clock_timestamp()
