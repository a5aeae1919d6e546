-- Why a run does not move. Somebody asks, seldom: a run is read, and what comes back is bounded, however long that is.

-- name: standing
-- The open steps of a run (but those that wait for other steps), as one row where one sentence is true of all of them, with
-- the columns of the first of them. `kind` is what they wait for, `what` all that the sentence says of it; times may
-- differ, so they are told from the first to the last. Of each kind only the first rows: `of` counts all its steps. (Texts
-- are compared in two thirds of the time that jsonb takes: 0.4 s for 100,000 steps that wait for one signal.)
WITH each AS MATERIALIZED (
    SELECT idx, state, lease_until,
           CASE WHEN state = 'running' THEN started_at WHEN isfinite(due_at) THEN due_at END AS moment,
           CASE state
               WHEN 'parked' THEN split_part(waits_for, ':', 1)
               WHEN 'ready' THEN CASE WHEN NOT sent AND due_at > now() THEN 'later' ELSE 'now' END
               ELSE CASE WHEN lease_until < now() THEN 'silent' ELSE 'busy' END END AS kind,
           waits_for, queue, action, worker, wait, options, failures, error->'type' AS error
      FROM step WHERE run_id = %(run)s AND state || '' IN ('parked', 'ready', 'running')
), told AS (
    SELECT state, kind, lease_until, moment, idx,
           (CASE kind
               WHEN 'now' THEN jsonb_build_array(queue, action)
               WHEN 'later' THEN jsonb_build_array(CASE WHEN failures > 0 THEN error END)
               WHEN 'busy' THEN jsonb_build_array(worker)
               WHEN 'silent' THEN jsonb_build_array(worker)
               WHEN 'approval' THEN jsonb_build_array(wait->'who', wait->'needed', wait->'yes', moment IS NULL)
               WHEN 'task' THEN jsonb_build_array(wait->'name', wait->'queue')
               WHEN 'slot' THEN jsonb_build_array(options->'rate')
               WHEN 'action' THEN jsonb_build_array(waits_for, wait->'misfit')
               ELSE jsonb_build_array(waits_for, moment IS NULL) END)::text AS what
      FROM each
), alike AS (
    SELECT state, kind, min(idx) AS idx, count(*)::int AS n, min(moment) AS first, max(moment) AS last,
           max(lease_until) AS leased
      FROM told GROUP BY state, kind, what
), placed AS (
    SELECT *, row_number() OVER (PARTITION BY state, kind ORDER BY idx) AS place,
           (sum(n) OVER (PARTITION BY state, kind))::int AS of
      FROM alike
)
SELECT p.state, p.kind, p.n, p.of, s.name, s.action, s.queue, s.waits_for, s.wait, s.options, s.error, s.failures, s.worker,
       p.first, p.last, p.leased
  FROM placed p JOIN step s ON s.run_id = %(run)s AND s.idx = p.idx
 WHERE p.place <= CASE p.kind WHEN 'now' THEN %(needs)s::int ELSE %(most)s::int END
 ORDER BY p.idx
