-- A journal with a long past: {runs} runs of three steps, a second apart, of ten workflows.
-- Of a hundred runs 94 succeeded, 3 failed, 1 was cancelled, 1 runs (one of its steps under a lease that holds, one
-- parked) and 1 is pending. Ids are ordered by time, as those of real runs are.

INSERT INTO definition (digest, name, spec)
SELECT 'd' || n, 'past' || n, '{"name": "past", "steps": {"s0": {"action": "noop"}}}' FROM generate_series(0, 9) n;

INSERT INTO run (id, workflow, definition, correlation_id, state, params, steps, missing, error, created_at, started_at,
                 finished_at, tags, key, origin, origin_kind, tenant)
SELECT id, 'past' || n % 10, 'd' || n % 10, id::text, state, '{}', 3, 1,
       CASE state WHEN 'failed' THEN '{"type": "E", "message": "m", "step": "s1", "traceback": ""}'::jsonb END,
       at, CASE WHEN state <> 'pending' THEN at END, CASE WHEN state IN ('succeeded', 'failed', 'cancelled') THEN at END,
       CASE WHEN n % 50 = 0 THEN '{t' || n % 500 || '}' ELSE '{}' END::text[], CASE WHEN n % 7 = 0 THEN 'k' || n END,
       CASE WHEN n % 40 = 0 THEN id END, CASE WHEN n % 40 = 0 THEN 'rerun' END, 'tenant' || n % 20
  FROM (SELECT n, (lpad(to_hex(1700000000000 + n), 12, '0') || '7000800000000000000' || '0')::text AS digits,
               now() - interval '1 second' * ({runs} - n) AS at,
               CASE WHEN n % 100 < 94 THEN 'succeeded' WHEN n % 100 < 97 THEN 'failed'
                    WHEN n % 100 = 97 THEN 'cancelled' WHEN n % 100 = 98 THEN 'running' ELSE 'pending' END AS state
          FROM generate_series(1, {runs}) n) x,
       LATERAL (SELECT (left(digits || repeat('0', 32), 32))::uuid AS id) y;

INSERT INTO step (run_id, idx, name, action, queue, priority, state, missing, attempt, dependents, sent, due_at, lease,
                  lease_until, started_at, finished_at, worker, inputs, result, rank, expect, waits_for, wait)
SELECT r.id, i, 's' || i, 'noop', 'past', 5, x.state, 0, 1, CASE i WHEN 2 THEN '{}' ELSE ARRAY[i + 1] END, true,
       CASE x.state WHEN 'parked' THEN 'infinity' WHEN 'ready' THEN now() + interval '1 day' ELSE now() END,
       CASE x.state WHEN 'running' THEN gen_random_uuid() END,
       CASE x.state WHEN 'running' THEN now() + interval '1 day' END,
       r.started_at, r.finished_at, 'w', '{}', CASE x.state WHEN 'succeeded' THEN '1'::jsonb END, 1.0, 1.0,
       CASE WHEN x.state = 'parked' THEN CASE WHEN x.n % 200 < 100 THEN 'approval:s1' ELSE 'signal:go' END END,
       CASE WHEN x.state = 'parked' THEN '{"message": "?", "show": {}, "digest": "d", "who": [], "needed": 1, "yes": []}'::jsonb END
  FROM run r, generate_series(0, 2) i,
       LATERAL (SELECT CASE r.state WHEN 'pending' THEN 'ready' WHEN 'succeeded' THEN 'succeeded'
                                    WHEN 'cancelled' THEN 'cancelled'
                                    WHEN 'failed' THEN CASE i WHEN 0 THEN 'succeeded' WHEN 1 THEN 'failed' ELSE 'cancelled' END
                                    ELSE CASE i WHEN 0 THEN 'running' WHEN 1 THEN 'parked' ELSE 'waiting' END END AS state,
                       extract(epoch FROM r.created_at)::bigint AS n) x;

INSERT INTO event (run_id, kind, idx, attempt, detail)
SELECT id, 'step.failed', 1, 1, '{"type": "E", "message": "m", "traceback": ""}' FROM run, generate_series(1, 2) WHERE state <> 'pending';

INSERT INTO dead_letter (run_id, idx, workflow, step, action, error, at)
SELECT id, 1, workflow, 's1', 'noop', '{"type": "E", "message": "m", "traceback": ""}', finished_at FROM run WHERE state = 'failed';

INSERT INTO signal (run_id, name, key, payload) SELECT id, 'go', 'k', '1' FROM run WHERE state <> 'pending';

INSERT INTO run_tag (tag, run_id) SELECT unnest(tags), id FROM run;
