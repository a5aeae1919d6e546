-- A journal with a long past: {runs} runs of three steps, a second apart, of ten workflows.
-- Of a hundred runs 94 succeeded, 3 failed, 1 was cancelled, 1 runs (one of its steps under a lease that holds, one
-- parked) and 1 is pending. Ids are ordered by time, as those of real runs are. Each table that grows with its use has rows.

CREATE FUNCTION pg_temp.nth(n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT rpad(lpad(to_hex(1700000000000 + n), 12, '0') || '70008', 32, '0')::uuid
$$;

INSERT INTO definition (digest, name, spec)
SELECT 'd' || n, 'past' || n, '{"name": "past", "steps": {"s0": {"action": "noop"}}}'::jsonb FROM generate_series(0, 9) n
UNION ALL
SELECT 'e' || n, 'each', '{"name": "each", "steps": {"s0": {"action": "noop"}}}'::jsonb FROM generate_series(1, {runs} / 50) n;

INSERT INTO run (id, workflow, definition, correlation_id, state, params, steps, missing, error, created_at, started_at,
                 finished_at, tags, key, origin, origin_kind, parent_run, parent_idx, deadline_at, tenant, single)
SELECT id, 'past' || n % 10, 'd' || n % 10, id::text, state, '{}', 3, 1,
       CASE state WHEN 'failed' THEN '{"type": "E", "message": "m", "step": "s1", "traceback": ""}'::jsonb END,
       at, CASE WHEN state <> 'pending' THEN at END, CASE WHEN state IN ('succeeded', 'failed', 'cancelled') THEN at END,
       CASE WHEN n % 50 = 0 THEN ARRAY['t' || n % 500, 'all'] ELSE '{}' END, CASE WHEN n % 7 = 0 THEN 'k' || n END,
       CASE WHEN n % 40 = 0 THEN pg_temp.nth(n - 1) END, CASE WHEN n % 40 = 0 THEN 'rerun' END,
       CASE WHEN n % 30 = 0 THEN pg_temp.nth(n - 1) END, CASE WHEN n % 30 = 0 THEN 0 END,
       CASE WHEN n % 100 > 97 THEN now() + interval '1 day' END, 'tenant' || n % 20,
       CASE WHEN n % 9 = 0 AND n % 100 < 94 THEN 'singleton:one' END
  FROM (SELECT n, pg_temp.nth(n) AS id, now() - interval '1 second' * ({runs} - n) AS at,
               CASE WHEN n % 100 < 94 THEN 'succeeded' WHEN n % 100 < 97 THEN 'failed'
                    WHEN n % 100 = 97 THEN 'cancelled' WHEN n % 100 = 98 THEN 'running' ELSE 'pending' END AS state
          FROM generate_series(1, {runs}) n) x;

-- A parked step of a running run waits for one of four things: approval, a signal, somebody's word, a place in a limit.
INSERT INTO step (run_id, idx, name, action, queue, priority, state, missing, attempt, dependents, sent, due_at, lease,
                  lease_until, started_at, finished_at, worker, inputs, result, rank, expect, waits_for, wait, fair, options)
SELECT r.id, i, 's' || i, 'noop', 'past', 5, x.state, 0, 1, CASE i WHEN 2 THEN '{}' ELSE ARRAY[i + 1] END, true,
       CASE x.state WHEN 'parked' THEN 'infinity' WHEN 'ready' THEN now() + interval '1 day' ELSE now() END,
       CASE x.state WHEN 'running' THEN gen_random_uuid() END,
       CASE WHEN x.state IN ('running', 'ready') THEN now() + interval '1 day' END,
       r.started_at, r.finished_at, 'w', '{}', CASE x.state WHEN 'succeeded' THEN '1'::jsonb END, 1.0, 1.0, w.waits_for,
       CASE WHEN w.waits_for NOT LIKE 'gate:%'
            THEN '{"message": "?", "show": {}, "digest": "d", "who": [], "needed": 1, "yes": [], "doubt": 1}'::jsonb END,
       CASE WHEN w.waits_for LIKE 'gate:%' THEN '' END,
       CASE WHEN w.waits_for LIKE 'gate:%' THEN jsonb_build_object('gates', jsonb_build_array(jsonb_build_array(w.waits_for, 1))) END
  FROM run r, generate_series(0, 2) i,
       LATERAL (SELECT CASE r.state WHEN 'pending' THEN 'ready' WHEN 'succeeded' THEN 'succeeded'
                                    WHEN 'cancelled' THEN 'cancelled'
                                    WHEN 'failed' THEN CASE i WHEN 0 THEN 'succeeded' WHEN 1 THEN 'failed' ELSE 'cancelled' END
                                    ELSE CASE i WHEN 0 THEN 'running' WHEN 1 THEN 'parked' ELSE 'waiting' END END AS state,
                       extract(epoch FROM now() - r.created_at)::bigint / 100 AS n) x,
       LATERAL (SELECT CASE WHEN x.state = 'parked' THEN CASE x.n % 4 WHEN 0 THEN 'approval:s1' WHEN 1 THEN 'signal:go' WHEN 2 THEN 'doubt'
                                                              ELSE 'gate:key:c' || x.n END END AS waits_for) w;

INSERT INTO permit (gate, run_id, idx)
SELECT waits_for, run_id, 0 FROM step WHERE waits_for LIKE 'gate:%'
UNION ALL
SELECT 'gate:key:r' || run_id || idx, run_id, idx FROM step WHERE state = 'ready';

INSERT INTO gate (name, turn) SELECT gate, '' FROM permit;

INSERT INTO event (run_id, kind, idx, attempt, detail)
SELECT id, 'step.failed', 1, 1, '{"type": "E", "message": "m", "traceback": ""}' FROM run, generate_series(1, 2) WHERE state <> 'pending';

INSERT INTO dead_letter (run_id, idx, workflow, step, action, error, at)
SELECT id, 1, workflow, 's1', 'noop', '{"type": "E", "message": "m", "traceback": ""}', finished_at FROM run WHERE state = 'failed';

INSERT INTO signal (run_id, name, key, payload) SELECT id, 'go', 'k', '1' FROM run WHERE state <> 'pending';

INSERT INTO run_tag (tag, run_id) SELECT unnest(tags), id FROM run;

INSERT INTO schedule (name, workflow, definition, params, every, timezone, anchor, jitter, overlap, catch_up, next_at, due_at)
SELECT 'at' || n, 'past' || n % 10, 'd' || n % 10, '{}', 86400, 'UTC', now(), 0, 'queue', 60, now() + interval '1 day', now() + interval '1 day'
  FROM generate_series(1, {runs} / 50) n;

INSERT INTO schedule_tick (schedule, tick)
SELECT 'at' || n, now() - interval '1 second' * t FROM generate_series(1, {runs} / 1000) n, generate_series(1, 20) t;

UPDATE schedule s SET queued = 20, running = ARRAY[(SELECT id FROM run WHERE state = 'running' ORDER BY id LIMIT 1)]
 WHERE EXISTS (SELECT FROM schedule_tick t WHERE t.schedule = s.name) AND s.name < 'at2';

INSERT INTO retention (workflow, runs) SELECT 'past' || n, interval '1000 days' FROM generate_series(0, 9) n;

INSERT INTO retention_part (part, workflow, keep)
SELECT part, 'past' || n, interval '1000 days' FROM generate_series(0, 9) n, unnest(ARRAY['events', 'artifacts']) AS part;

INSERT INTO pause (kind, name) VALUES ('workflow', 'rests'), ('queue', 'rests');

INSERT INTO action_stat (action, runs, mean_ms) SELECT 'action' || n, 1, 1.0 FROM generate_series(1, 90) n;

-- What is done to these runs, definitions and schedules is in the audit log by now: its triggers have written it.
INSERT INTO audit_log (actor, action, target, outcome)
SELECT 'ann', 'access.refused', 'step:' || pg_temp.nth(n) || '/s1', 'refused' FROM generate_series(1, {runs} / 10) n;

INSERT INTO audit_seal (seq, month, last_tx, last_id, ids, digests, previous, key, mac)
SELECT n, '2026-01-01', (n + 1)::text::xid8, n, ARRAY[n], '', '', 'k', '' FROM generate_series(1, {runs} / 10) n;
