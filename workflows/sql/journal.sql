-- The engine's statements. Every one reads by key or through a partial index, so its cost depends on the
-- steps it moves, never on the size of the run or of the table.
--
-- A word on fences: a step belongs to whoever holds its lease, a random uuid written at the claim. Whatever a
-- worker reports later carries that lease; where it is no longer the step's, nothing happens. A counter
-- would not do: after a crash of Postgres the same number could be given out twice.
--
-- A word on plans: journals grow from nothing to 100,000 rows within seconds, so the planner's statistics are
-- always wrong, and it would gladly scan a run, or all ready steps, to find a few ids (measured: 157 µs a step
-- instead of 20). Therefore the run's id comes out of a materialized CTE together with the step's: without a
-- constant to start from, the one plan left is a loop over the named ids with the primary key inside (nothing else
-- may equal that run_id: joined with run.id, it would let the planner scan the run once per id). A run is read by its id:
-- `state || ''` keeps the planner from the indexes that begin with something else. A test looks at
-- every plan. Leases
-- stand only on running steps, so `lease = …` says `state = 'running'` without inviting the partial index on it (what a
-- cancelled step keeps is the reverse of one, see `stop_steps`).

-- name: claim
-- Takes the ready ones of the named steps; a run begins with the first that is taken. Duplicate messages find nothing:
-- the row's state is checked again once its lock is held. For short repeatable steps the commit does not wait for the disk (`commit` off, for this
-- transaction only): a claim that a crash of Postgres forgets leaves the step ready and its worker without a
-- valid lease, so the step runs again and still counts once.
-- Repeated after a commit that went unheard, it finds its own lease. A step that took a worker down is claimed alone.
-- A step whose time limit is near holds a lease no longer than that, so that a killed body is noticed at once.
WITH quick AS MATERIALIZED (
    SELECT set_config('synchronous_commit', %(commit)s, true) AS done
), o AS MATERIALIZED (
    SELECT %(run)s::uuid AS run_id, idx FROM unnest(%(idx)s::int[]) AS t(idx)
), held AS MATERIALIZED (
    SELECT name FROM pause WHERE kind = 'queue'
), taken AS (
UPDATE step s
   SET state = 'running', attempt = s.attempt + (s.lease IS NULL)::int, lease = %(lease)s, worker = %(worker)s,
       started_at = clock_timestamp(), finished_at = NULL, progress = NULL, suspect = false,
       lease_until = clock_timestamp() + interval '1 second'
                     * least(%(seconds)s, coalesce((s.options->>'timeout')::float8, %(timeout)s) + %(grace)s)
  FROM o, quick, run r
 WHERE quick.done IS NOT NULL AND r.id = %(run)s AND r.state || '' IN ('pending', 'running') AND s.run_id = o.run_id AND s.idx = o.idx
   AND (s.state || '' = 'ready' AND (s.sent OR s.due_at <= clock_timestamp())
        AND (s.attempt = s.failures OR cardinality(%(idx)s::int[]) = 1) AND s.queue NOT IN (SELECT name FROM held)
        OR s.lease = %(lease)s)
RETURNING s.idx, s.name, s.action, s.queue, s.priority, s.attempt, s.failures, s.blocked,
          s.inputs, s.bindings, s.refs, s.options, s.wait, s.rank, s.expect, r.workflow, r.correlation_id
), begun AS (
    UPDATE run SET state = 'running', started_at = clock_timestamp()
     WHERE id = %(run)s AND state || '' = 'pending' AND EXISTS (SELECT FROM taken)
)
SELECT * FROM taken

-- name: claim_ranked
-- Takes the most urgent ready steps that a run has in a queue, whatever the message names: a queue in Redis serves in
-- the order of sending, so the step with the longest path would wait behind all that were ready before it. A
-- message of ranked steps is therefore no more than the right to as many of them.
-- Only announced steps (`sent`): one that waits for its time has no message yet, and would leave another without.
-- One step, the first of the index. A short one among many (`crowd`) takes along others that are no longer, as far as
-- `most` seconds go. Whatever is locked is taken: a claim at the same moment passes it over, and must not miss it.
-- What it does to a step is what `claim` does (a test compares).
WITH quick AS MATERIALIZED (
    SELECT set_config('synchronous_commit', %(commit)s, true) AS done
), top AS MATERIALIZED (
    SELECT run_id, idx, expect
      FROM step
     WHERE run_id = %(run)s AND queue = %(queue)s AND state = 'ready' AND rank IS NOT NULL
       AND sent AND attempt = failures AND action = ANY(%(actions)s::text[])
       AND NOT EXISTS (SELECT FROM pause WHERE kind = 'queue' AND name = %(queue)s)
     ORDER BY priority DESC, rank DESC, idx LIMIT 1
     FOR NO KEY UPDATE SKIP LOCKED
), crowd AS MATERIALIZED (
    SELECT greatest(0, least(%(room)s, floor(%(most)s / greatest(expect, 0.001)))::int - 1) AS room
      FROM top
     WHERE expect <= %(most)s / 2
       AND EXISTS (SELECT FROM step
                    WHERE run_id = %(run)s AND queue = %(queue)s AND state = 'ready' AND rank IS NOT NULL
                    ORDER BY priority DESC, rank DESC, idx OFFSET %(crowd)s LIMIT 1)
), more AS MATERIALIZED (
    SELECT run_id, idx
      FROM step
     WHERE run_id = %(run)s AND queue = %(queue)s AND state = 'ready' AND rank IS NOT NULL
       AND sent AND attempt = failures AND action = ANY(%(actions)s::text[])
       AND expect <= (SELECT expect FROM top) AND idx <> (SELECT idx FROM top)
     ORDER BY priority DESC, rank DESC, idx LIMIT coalesce((SELECT room FROM crowd), 0)
     FOR NO KEY UPDATE SKIP LOCKED
), o AS MATERIALIZED (
    SELECT run_id, idx FROM top UNION ALL SELECT run_id, idx FROM more
), begun AS (
    UPDATE run SET state = 'running', started_at = clock_timestamp()
     WHERE id = %(run)s AND state || '' = 'pending' AND EXISTS (SELECT FROM o)
)
UPDATE step s
   SET state = 'running', attempt = s.attempt + (s.lease IS NULL)::int, lease = %(lease)s, worker = %(worker)s,
       started_at = clock_timestamp(), finished_at = NULL, progress = NULL, suspect = false,
       lease_until = clock_timestamp() + interval '1 second'
                     * least(%(seconds)s, coalesce((s.options->>'timeout')::float8, %(timeout)s) + %(grace)s)
  FROM o, quick, run r
 WHERE quick.done IS NOT NULL AND r.id = %(run)s AND r.state || '' IN ('pending', 'running') AND s.run_id = o.run_id AND s.idx = o.idx
RETURNING s.idx, s.name, s.action, s.queue, s.priority, s.attempt, s.failures, s.blocked,
          s.inputs, s.bindings, s.refs, s.options, s.wait, s.rank, s.expect, r.workflow, r.correlation_id

-- name: leased
-- The steps of a run under a lease: asked once a commit of `claim_ranked` went unheard, when nobody knows what it took.
SELECT idx FROM step WHERE run_id = %(run)s AND state || '' = 'running' AND lease = %(lease)s

-- name: part_won
-- `complete` records outcomes and frees children, all of it or none. It stands below its parts. In order:
--   won    the fence: only steps that still run under the reported lease are touched
--   need   how often each child is counted down; one row a child, since one statement may update a row once.
--          A negative dependent (~idx) is an edge of order alone: a skip does not travel along it
--   locked the children, locked in id order so that two statements cannot wait for each other. A locking read
--          returns the newest version of a row, so `missing` is right even when another parent has just finished
--   counted what is blocked is skipped at no cost; where branches meet (`join`) it may run all the same
--   ranked the children without missing parents are free; `mine` are those that this worker goes on with: of
--          actions that it knows to be short, most urgent first, until their expected milliseconds fill the budget
--   moved  a freed step with a limit in front of it (`waits_for`) is parked, and comes back under that
--          limit's name. One that is only going to be skipped needs no place.
--          A ready step that may not wait for ever for a worker has its patience in `lease_until`
--   held   nothing is gone on with while the run or the queue is paused
--   fin    the run itself, counted down by the steps on which nothing depends; a fatal outcome leaves it to end_run
WITH o AS MATERIALIZED (
    SELECT %(run)s::uuid AS run_id, t.*
      FROM jsonb_to_recordset(%(outcomes)s::jsonb)
        AS t(idx int, lease uuid, state text, result jsonb, error jsonb, fault int, blocks bool, fatal bool,
             delay float8, ran float8, age float8)
), won AS (
    UPDATE step s
       SET state = o.state, result = o.result, error = o.error,
           failures = s.failures + o.fault, lease = NULL,
           lease_until = now() + interval '1s' * (o.delay + (s.options->>'queue_timeout')::float8),
           sent = false, due_at = now() + interval '1s' * o.delay,
           started_at = now() - interval '1s' * (o.age + o.ran),
           finished_at = now() - interval '1s' * o.age
      FROM o
     WHERE s.run_id = o.run_id AND s.idx = o.idx AND s.lease = o.lease
    RETURNING s.run_id, s.idx, s.name, s.state, s.dependents, s.attempt, o.error, o.blocks, o.fatal, o.delay
)

-- name: part_freed
need AS (
    SELECT won.run_id, CASE WHEN d < 0 THEN ~d ELSE d END AS idx, count(*)::int AS n,
           count(*) FILTER (WHERE won.blocks AND d >= 0)::int AS blocked
      FROM won, unnest(won.dependents) AS d
     WHERE won.state <> 'ready' GROUP BY 1, 2
), locked AS MATERIALIZED (
    SELECT s.run_id, s.idx, s.missing, s.action, s.queue, s.priority, s.rank, s.expect,
           need.n, need.blocked, s.blocked + need.blocked > 0 AND NOT coalesce(s.options ? 'join', false) AS skips,
           starts_with(s.waits_for, 'gate:') AS gated
      FROM need JOIN step s ON s.run_id = need.run_id AND s.idx = need.idx
     WHERE s.state = 'waiting'
     ORDER BY s.idx FOR NO KEY UPDATE OF s
)

-- name: part_counted
    SELECT run_id, idx, n, blocked, priority, rank, missing = n AS free, missing = n AND gated AND NOT skips AS parks,

-- name: part_cost
                WHEN skips THEN 0.0
                WHEN gated OR expect > %(short)s THEN NULL
                WHEN queue = %(queue)s THEN (%(ahead)s::jsonb ->> action)::float8 END AS cost
      FROM locked
)

-- name: part_moved
ranked AS (
    SELECT run_id, idx, n, blocked, free, parks,
           cost IS NOT NULL AND coalesce(sum(cost) OVER before, 0.0) < %(budget)s
           AND count(*) OVER before < %(room)s AS mine
      FROM counted
    WINDOW before AS (PARTITION BY cost IS NULL ORDER BY priority DESC, rank DESC NULLS LAST, idx
                      ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
), moved AS (
    UPDATE step s
       SET missing = s.missing - k.n, blocked = s.blocked + k.blocked,
           state = CASE WHEN k.mine THEN 'running' WHEN k.parks THEN 'parked' WHEN k.free THEN 'ready' ELSE s.state END,
           sent = k.free, due_at = CASE WHEN k.free THEN now() ELSE s.due_at END,
           attempt = s.attempt + k.mine::int,
           lease = CASE WHEN k.mine THEN %(new_lease)s::uuid END,
           worker = CASE WHEN k.mine THEN %(worker)s END,
           started_at = CASE WHEN k.mine THEN now() END,
           lease_until = CASE WHEN k.mine THEN now() + interval '1s'
                * least(%(seconds)s, coalesce((s.options->>'timeout')::float8, %(timeout)s) + %(grace)s)
                WHEN k.free THEN now() + interval '1s' * (s.options->>'queue_timeout')::float8 END
      FROM ranked k
     WHERE s.run_id = k.run_id AND s.idx = k.idx
    RETURNING CASE WHEN k.mine THEN 'mine' WHEN k.parks THEN s.waits_for WHEN k.free THEN 'free' END AS kind,
              s.idx, s.name, s.action, s.queue, s.priority, s.attempt, s.failures, s.blocked,
              CASE WHEN k.mine THEN s.inputs END AS inputs, CASE WHEN k.mine THEN s.bindings END AS bindings,
              CASE WHEN k.mine THEN s.refs END AS refs, CASE WHEN k.mine THEN s.options END AS options,
              s.rank, s.expect
), fin AS (
    UPDATE run r
       SET missing = r.missing - k.n,
           state = CASE WHEN r.missing = k.n THEN 'succeeded' ELSE r.state END,
           finished_at = CASE WHEN r.missing = k.n THEN now() END
      FROM (SELECT count(*) FILTER (WHERE dependents = '{}')::int AS n, bool_or(fatal) AS fatal
              FROM won WHERE state <> 'ready') k
     WHERE r.id = %(run)s AND k.n > 0 AND NOT k.fatal AND r.state || '' IN ('running', 'paused')
    RETURNING r.state, r.gates
)
SELECT * FROM moved WHERE kind IS NOT NULL
UNION ALL
SELECT 'done', 0, (SELECT state FROM fin), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       ARRAY(SELECT idx FROM won), (SELECT to_jsonb(gates) FROM fin), NULL, NULL

-- name: complete
{part_won}, told AS (
    INSERT INTO event (run_id, kind, idx, attempt, detail)
    SELECT %(run)s, CASE state WHEN 'ready' THEN 'step.retry' ELSE 'step.failed' END, idx, attempt,
           error || jsonb_build_object('delay', delay)
      FROM won WHERE error IS NOT NULL
), {part_freed}, held AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM pause WHERE kind = 'queue' AND name = %(queue)s)
           OR EXISTS (SELECT FROM run WHERE id = %(run)s AND state || '' = 'paused') AS it
), counted AS (
{part_counted}
           CASE WHEN missing <> n OR (SELECT it FROM held) THEN NULL
{part_cost}, {part_moved}

-- name: complete_clean
-- The same where no outcome is an error, and nobody has to look whether something is paused: the usual case.
{part_won}, {part_freed}, counted AS (
{part_counted}
           CASE WHEN missing <> n THEN NULL
{part_cost}, {part_moved}

-- name: end_run
-- Ends a run before its time. `stop_steps` follows in the same transaction, as a statement of its own: it must see
-- what a growing step inserted while this one waited for the run's row.
WITH ended AS (
    UPDATE run SET state = %(state)s, error = %(error)s::jsonb, finished_at = clock_timestamp()
     WHERE id = %(run)s AND state || '' IN ('pending', 'running', 'paused')
    RETURNING id, gates
), told AS (
    INSERT INTO event (run_id, kind, detail) SELECT id, 'run.' || %(state)s, %(error)s::jsonb FROM ended
)
SELECT id, EXISTS (SELECT FROM run c WHERE c.parent_run = ended.id), gates FROM ended

-- name: stop_steps
-- A worker that still holds one of them finds its lease gone. One update a run, the only statement whose cost is the
-- run's size. What ran keeps the id of its lease backwards, which no fence takes for the lease, and the time until which
-- it would have held: until then, or until the worker says that the body is over (`let_go`), its body may be at work.
UPDATE step
   SET state = 'cancelled', finished_at = clock_timestamp(),
       lease = CASE state WHEN 'running' THEN reverse(lease::text)::uuid END,
       lease_until = CASE state WHEN 'running' THEN lease_until END
 WHERE run_id = %(run)s AND state IN ('waiting', 'ready', 'running', 'parked')

-- name: bury
-- The steps that failed a run become dead letters, in the transaction that fails it.
WITH o AS MATERIALIZED (
    SELECT %(run)s::uuid AS run_id, idx FROM unnest(%(idx)s::int[]) AS t(idx)
)
INSERT INTO dead_letter (run_id, idx, workflow, step, action, error)
SELECT s.run_id, s.idx, (SELECT workflow FROM run WHERE id = %(run)s), s.name, s.action, s.error
  FROM o JOIN step s ON s.run_id = o.run_id AND s.idx = o.idx
    ON CONFLICT (run_id, idx) DO UPDATE SET at = excluded.at, error = excluded.error

-- name: leave_all
-- The places that a run and its steps held in limits.
DELETE FROM permit WHERE run_id = %(run)s

-- name: results
WITH o AS MATERIALIZED (
    SELECT %(run)s::uuid AS run_id, idx FROM unnest(%(idx)s::int[]) AS t(idx)
)
SELECT s.idx, s.result FROM o JOIN step s ON s.run_id = o.run_id AND s.idx = o.idx

-- name: names
WITH o AS MATERIALIZED (
    SELECT %(run)s::uuid AS run_id, idx FROM unnest(%(idx)s::int[]) AS t(idx)
)
SELECT s.idx, s.name FROM o JOIN step s ON s.run_id = o.run_id AND s.idx = o.idx

-- name: gather
-- The results of neighbouring steps as one JSON list; no list where it would be larger than the limit (the
-- texts are measured before they are joined).
WITH r AS MATERIALIZED (
    SELECT idx, CASE WHEN state = 'failed' AND %(policy)s::text = 'collect'
                     THEN jsonb_build_object('error', jsonb_build_object('type', error->'type', 'message', error->'message'))
                     ELSE result END AS result
      FROM step
     WHERE run_id = %(run)s AND idx >= %(first)s AND idx < %(first)s + %(count)s
       AND NOT (state = 'failed' AND %(policy)s::text = 'skip')
), size AS MATERIALIZED (
    SELECT coalesce(sum(octet_length(result::text) + 2), 0)::bigint AS bytes FROM r
)
SELECT bytes, CASE WHEN bytes <= %(limit)s THEN
           (SELECT coalesce(jsonb_agg(result ORDER BY idx), '[]')::text FROM r) END
  FROM size

-- name: failed
SELECT 1 FROM step WHERE run_id = %(run)s AND idx = %(idx)s AND state = 'failed'

-- name: succeeded
SELECT count(*) FROM step
 WHERE run_id = %(run)s AND idx >= %(first)s AND idx < %(first)s + %(count)s AND state = 'succeeded'

-- name: params
SELECT params FROM run WHERE id = %(run)s

-- name: renew
-- Prolongs the leases of running steps and writes their progress; answers with the steps that are still ours.
WITH quick AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true) AS done
), o AS MATERIALIZED (
    SELECT * FROM unnest(%(run)s::uuid[], %(idx)s::int[], %(lease)s::uuid[], %(seconds)s::float8[],
                         %(progress)s::text[]) AS t(run_id, idx, lease, seconds, progress)
)
UPDATE step s
   SET lease_until = clock_timestamp() + interval '1 second' * o.seconds, suspect = false,
       progress = coalesce(o.progress::jsonb, s.progress)
  FROM o, quick
 WHERE quick.done IS NOT NULL
   AND s.run_id = o.run_id AND s.idx = o.idx AND s.lease = o.lease
RETURNING s.run_id, s.idx

-- name: release
-- Hands back steps that were claimed and not begun: their attempt does not count.
WITH o AS MATERIALIZED (
    SELECT %(run)s::uuid AS run_id, t.* FROM unnest(%(idx)s::int[], %(lease)s::uuid[]) AS t(idx, lease)
)
UPDATE step s
   SET state = 'ready', sent = true, due_at = clock_timestamp(), attempt = s.attempt - 1, lease = NULL,
       lease_until = clock_timestamp() + interval '1 second' * (s.options->>'queue_timeout')::float8, started_at = NULL
  FROM o
 WHERE s.run_id = o.run_id AND s.idx = o.idx AND s.lease = o.lease
RETURNING s.idx

-- name: intend
-- Right before the body of a step whose effect may happen once only: this attempt may have had it from now on. The
-- commit waits for the disk. What was said of an earlier attempt's doubt is settled.
UPDATE step SET intent = attempt, wait = wait - 'doubt' - 'probe' - 'resolved'
 WHERE run_id = %(run)s AND idx = %(idx)s AND lease = %(lease)s
RETURNING idx

-- name: resolve
-- Somebody says what became of an effect. The step runs once more, and finds the answer.
UPDATE step
   SET state = 'ready', sent = %(sent)s, due_at = clock_timestamp(), intent = NULL,
       wait = (coalesce(wait, '{}') - 'probe') || jsonb_build_object('resolved', %(answer)s::jsonb)
 WHERE state = 'parked' AND waits_for = 'doubt' AND run_id = %(run)s AND idx = %(idx)s
RETURNING idx, name, action, queue, priority, attempt, failures, rank, expect

-- name: park
-- Puts a running step aside until something wakes it: `waits_for` names what, `due_at` is when its patience ends.
-- An attempt that ends so does not count. `until` is an absolute moment, else `delay` seconds from now, else never.
UPDATE step
   SET state = 'parked', attempt = attempt - 1, lease = NULL, lease_until = NULL, sent = false, finished_at = NULL,
       waits_for = %(waits_for)s, due_at = patience.ends,
       wait = %(wait)s::jsonb
              || CASE WHEN isfinite(patience.ends) THEN jsonb_build_object('until', patience.ends) ELSE '{}' END
  FROM (SELECT coalesce(%(until)s::timestamptz, now() + interval '1 second' * %(delay)s::float8, 'infinity')
               AS ends) patience
 WHERE run_id = %(run)s AND idx = %(idx)s AND lease = %(lease)s
RETURNING idx

-- name: wake
-- Wakes the steps of a run that wait for something, because it happened. What they do next is up to their action.
UPDATE step
   SET state = 'ready', sent = %(sent)s, due_at = clock_timestamp(),
       lease_until = clock_timestamp() + interval '1 second' * (options->>'queue_timeout')::float8,
       wait = coalesce(wait, '{}') || jsonb_build_object('woken', %(by)s::text)
 WHERE state = 'parked' AND waits_for = %(waits_for)s AND run_id = %(run)s
RETURNING idx, name, action, queue, priority, attempt, failures, rank, expect

-- Those that are `due` are ready, and know by what they were woken.
-- name: part_woken_by
UPDATE step s SET state = 'ready', sent = true, due_at = clock_timestamp(),
       lease_until = clock_timestamp() + interval '1 second' * (s.options->>'queue_timeout')::float8,
       wait = coalesce(wait, '{}') ||

-- name: part_of_woken
  FROM due
 WHERE s.run_id = due.run_id AND s.idx = due.idx
RETURNING s.run_id, (SELECT workflow FROM run WHERE id = s.run_id), s.idx, s.name, s.action, s.queue, s.priority, s.attempt,
          s.failures, s.rank, s.expect

-- name: take_due
-- Wakes parked steps whose time has come (but those of a run that begins later, see beginnings.sql). Those without a timer stand in no index that this reads, and neither do
-- those that never ran and are parked in front of a limit: they noted nothing (`wait`).
WITH due AS (
    SELECT run_id, idx FROM step
     WHERE state = 'parked' AND wait IS NOT NULL AND due_at < 'infinity'::timestamptz AND due_at <= now()
       AND waits_for IS DISTINCT FROM 'start'
     ORDER BY due_at LIMIT %(limit)s
     FOR UPDATE SKIP LOCKED
)
{part_woken_by} '{"woken": "time"}' {part_of_woken}

-- name: take_resumed
-- Wakes steps whose task goes to a queue that is paused no longer: a walk from one such queue to the next.
WITH RECURSIVE q AS (
    (SELECT waits_for, 1 AS n FROM step
      WHERE state = 'parked' AND waits_for >= 'queue:' AND waits_for < 'queue;' ORDER BY waits_for LIMIT 1)
    UNION ALL
    SELECT (SELECT s.waits_for FROM step s
             WHERE s.state = 'parked' AND s.waits_for > q.waits_for AND s.waits_for < 'queue;'
             ORDER BY s.waits_for LIMIT 1), q.n + 1
      FROM q WHERE q.waits_for IS NOT NULL AND q.n < %(limit)s
), due AS MATERIALIZED (
    SELECT w.run_id, w.idx
      FROM q CROSS JOIN LATERAL (
           SELECT run_id, idx FROM step WHERE state = 'parked' AND waits_for = q.waits_for
            LIMIT %(limit)s FOR UPDATE SKIP LOCKED) w
     WHERE q.waits_for IS NOT NULL
       AND NOT EXISTS (SELECT FROM pause WHERE kind = 'queue' AND name = substr(q.waits_for, length('queue:') + 1))
     LIMIT %(limit)s
)
{part_woken_by} '{"woken": "queue"}' {part_of_woken}

-- name: lock_run
-- Whoever tells a run something, and a step that is about to wait for it, take turns.
SELECT state, workflow FROM run WHERE id = %(run)s FOR NO KEY UPDATE

-- name: send_signal
INSERT INTO signal (run_id, name, key, payload) VALUES (%(run)s, %(name)s, %(key)s, %(payload)s::jsonb)
    ON CONFLICT DO NOTHING
RETURNING id

-- name: take_signal
-- The oldest signal of a name that no step has taken yet; taken again by the same step it is the same one.
UPDATE signal SET taken_by = %(idx)s
 WHERE id = (SELECT id FROM signal
              WHERE run_id = %(run)s AND name = %(name)s AND (taken_by IS NULL OR taken_by = %(idx)s)
              ORDER BY taken_by NULLS LAST, id LIMIT 1)
RETURNING id, key, payload, at

-- name: read_signals
SELECT id, key, payload, at FROM signal WHERE run_id = %(run)s AND name = %(name)s ORDER BY id

-- name: result_of
-- Of a map it is the row behind it that has the results.
SELECT result FROM step WHERE run_id = %(run)s AND name = ANY(%(names)s::text[]) ORDER BY name DESC LIMIT 1

-- name: cancelled_tasks
SELECT wait->>'task' FROM step
 WHERE run_id = %(run)s AND state = 'cancelled' AND starts_with(waits_for, 'task:')

-- name: tenant
SELECT tenant FROM run WHERE id = %(run)s

-- name: clock
SELECT extract(epoch FROM clock_timestamp())::float8

-- name: tell
INSERT INTO event (run_id, kind, idx, detail) VALUES (%(run)s, %(kind)s, %(idx)s, %(detail)s::jsonb)

-- name: grow
-- Reserves room for more steps in a run and answers with the first free id. What its end has to mind from now on, where
-- the new steps are the first of their kind: places in limits, foreign tasks.
UPDATE run
   SET steps = steps + %(count)s, missing = missing + %(sinks)s,
       gates = CASE WHEN %(limited)s THEN coalesce(gates, '{}') ELSE gates END,
       hooks = CASE WHEN %(tasks)s THEN coalesce(hooks, '{}') || '{"tasks": true}' ELSE hooks END,
       follow = follow OR %(tasks)s
 WHERE id = %(run)s AND state || '' IN ('running', 'paused')
RETURNING steps - %(count)s

-- name: hold
-- Makes what waits for a growing step wait for more steps as well. Children before the run, like `complete`, so that
-- the two cannot wait for each other.
WITH g AS MATERIALIZED (
    SELECT run_id, dependents FROM step WHERE run_id = %(run)s AND idx = %(idx)s AND lease = %(lease)s
), d AS MATERIALIZED (
    SELECT g.run_id, CASE WHEN d < 0 THEN ~d ELSE d END AS idx FROM g, unnest(g.dependents) AS d
), locked AS MATERIALIZED (
    SELECT s.run_id, s.idx FROM d JOIN step s ON s.run_id = d.run_id AND s.idx = d.idx
     ORDER BY s.idx FOR NO KEY UPDATE OF s
), held AS (
    UPDATE step s SET missing = s.missing + %(count)s
      FROM locked k
     WHERE s.run_id = k.run_id AND s.idx = k.idx
)
SELECT dependents FROM g

-- name: find
-- Steps by their names: a walk over the run, for whoever asks in words.
SELECT idx, name, state, result, error, jsonb_typeof(options->'on_failure') IS NOT DISTINCT FROM 'object'
  FROM step WHERE run_id = %(run)s AND name = ANY(%(names)s)

-- name: below
-- What a step has appended, without what that appended in turn, and without the items of its maps.
SELECT idx, name, state, result, error, jsonb_typeof(options->'on_failure') IS NOT DISTINCT FROM 'object'
  FROM step
 WHERE run_id = %(run)s AND starts_with(name, %(prefix)s)
   AND substr(name, length(%(prefix)s) + 1) ~ '^[^.[]+(\[\])?$'
 ORDER BY idx

-- name: widen
-- Makes the gathering step behind a map or loop wait for the items, or the next turn, and tells it which they are.
WITH m AS MATERIALIZED (
    SELECT run_id, dependents[1] AS idx FROM step WHERE run_id = %(run)s AND idx = %(idx)s
)
UPDATE step g SET missing = g.missing + %(count)s, inputs = %(inputs)s::jsonb
  FROM m
 WHERE g.run_id = m.run_id AND g.idx = m.idx AND g.state = 'waiting'
RETURNING g.idx

-- name: ready_queues
-- The queues that have ready steps and are not paused: a walk from one queue name to the next, not a scan of all of them.
WITH RECURSIVE q AS (
    (SELECT queue FROM step WHERE state = 'ready' ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (SELECT s.queue FROM step s WHERE s.state = 'ready' AND s.queue > q.queue ORDER BY s.queue LIMIT 1)
      FROM q WHERE q.queue IS NOT NULL
)
SELECT queue FROM q WHERE queue IS NOT NULL AND queue NOT IN (SELECT name FROM pause WHERE kind = 'queue')

-- name: take_ready
-- Takes ready steps for publishing: those that nobody was told of (sent false) as soon as they are due, or
-- those whose message is older than `age` seconds (sent true). now() and not clock_timestamp(), which no index knows:
-- every tick would read all that is ready. No workflow's name comes with those of a paused run.
WITH due AS (
    SELECT run_id, idx FROM step
     WHERE state = 'ready' AND queue = %(queue)s AND sent = %(sent)s
       AND due_at <= now() - interval '1 second' * %(age)s
     ORDER BY due_at LIMIT %(limit)s
     FOR UPDATE SKIP LOCKED
)
UPDATE step s SET sent = true, due_at = clock_timestamp()
  FROM due
 WHERE s.run_id = due.run_id AND s.idx = due.idx
RETURNING s.run_id, (SELECT CASE WHEN state <> 'paused' THEN workflow END FROM run WHERE id = s.run_id), s.idx, s.name, s.action, s.queue, s.priority, s.attempt,
          s.failures, s.rank, s.expect

-- name: suspect
-- A lease runs out twice. The first time its worker is only suspected, and has as long again to renew it: after an
-- outage of Postgres, when nobody could renew anything, the silent workers are mostly well. A step past its own
-- time limit gets no such respite: its worker would have killed it.
WITH late AS (
    SELECT run_id, idx FROM step
     WHERE state = 'running' AND lease_until < now() AND NOT suspect
     ORDER BY lease_until LIMIT %(limit)s
     FOR UPDATE SKIP LOCKED
)
UPDATE step s SET suspect = true, lease_until = now() + interval '1 second' * %(seconds)s
  FROM late
 WHERE s.run_id = late.run_id AND s.idx = late.idx

-- name: take_expired
-- Takes over steps whose lease has run out for good, under a lease of our own, so that what becomes of them goes
-- through the same fence as any outcome.
WITH late AS (
    SELECT run_id, idx FROM step
     WHERE state = 'running' AND lease_until < now()
       AND (suspect OR started_at + interval '1 second'
            * (coalesce((options->>'timeout')::float8, %(timeout)s) + %(grace)s) < now())
     ORDER BY lease_until LIMIT %(limit)s
     FOR UPDATE SKIP LOCKED
)
UPDATE step s SET lease = %(lease)s, lease_until = now() + interval '15 seconds'
  FROM late
 WHERE s.run_id = late.run_id AND s.idx = late.idx
RETURNING s.run_id, (SELECT workflow FROM run WHERE id = s.run_id), s.idx, s.name, s.attempt, s.failures, s.options,
          s.worker, extract(epoch FROM now() - s.started_at)::float8 AS ran, s.intent, s.wait

-- name: durations
SELECT action, mean_ms FROM action_stat

-- name: learn
-- Merges a process's measurements into the mean of each action. The weight of the past is capped, so that
-- an action that became slow is noticed within some hundred runs.
WITH quick AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true) AS done)
INSERT INTO action_stat AS a (action, runs, mean_ms)
SELECT t.action, t.runs, t.mean_ms
  FROM unnest(%(action)s::text[], %(runs)s::bigint[], %(mean)s::float8[]) AS t(action, runs, mean_ms), quick
 WHERE quick.done IS NOT NULL
 ORDER BY t.action
    ON CONFLICT (action) DO UPDATE
   SET runs = a.runs + excluded.runs, updated_at = now(),
       mean_ms = (a.mean_ms * least(a.runs, 200) + excluded.mean_ms * excluded.runs)
                 / (least(a.runs, 200) + excluded.runs)

-- name: beat
-- A sign of life.
INSERT INTO heartbeat (name, at, detail) VALUES (%(name)s, now(), %(detail)s::jsonb)
    ON CONFLICT (name) DO UPDATE SET at = excluded.at, detail = excluded.detail

-- name: notify
SELECT parent_run, parent_idx, follow, pg_notify('trellis_run', id::text) FROM run WHERE id = %(run)s

-- name: take_woken
-- Takes one step that the end of a child run has woken, for publishing.
UPDATE step SET sent = true
 WHERE run_id = %(run)s AND idx = %(idx)s AND state || '' = 'ready' AND NOT sent
RETURNING run_id, (SELECT workflow FROM run WHERE id = step.run_id), idx, name, action, queue, priority, attempt,
          failures, rank, expect

-- name: ending
-- How a run ended: with the results of its last steps as one JSON object, where that is not over the limit.
WITH r AS MATERIALIZED (
    SELECT regexp_replace(name, '\[\]$', '') AS name, result FROM step
     WHERE run_id = %(run)s AND dependents = '{}' AND state IN ('succeeded', 'failed')
), size AS MATERIALIZED (
    SELECT coalesce(sum(octet_length(result::text) + octet_length(name) + 5), 0)::bigint AS bytes FROM r
)
SELECT run.state, run.error, bytes, CASE WHEN run.state = 'succeeded' AND bytes <= %(limit)s THEN
           (SELECT coalesce(jsonb_object_agg(name, result), '{}')::text FROM r) END
  FROM run, size WHERE run.id = %(run)s

-- name: open_children
SELECT id FROM run WHERE parent_run = %(run)s AND state IN ('pending', 'running', 'paused') ORDER BY id

-- name: define
INSERT INTO definition (digest, name, spec) VALUES (%(digest)s, %(name)s, %(spec)s::jsonb)
    ON CONFLICT (digest) DO NOTHING

-- name: open_run
-- Same workflow and key, or the same id (a start that is repeated because its commit went unheard): no row comes
-- back, and the one that stands is read instead. A child run inherits the deadline of its parent where that is nearer.
-- Where the workflow is paused, or the run that it is a step of, so is the run.
WITH opened AS (
INSERT INTO run (id, workflow, definition, key, correlation_id, state, params, steps, missing,
                 parent_run, parent_idx, origin, origin_kind, deadline_at, tags, tenant, single, gates, hooks, follow)
VALUES (%(run)s, %(workflow)s, %(definition)s, %(key)s, %(correlation)s,
        CASE WHEN EXISTS (SELECT FROM pause WHERE kind = 'workflow' AND name = %(workflow)s FOR KEY SHARE)
               OR EXISTS (SELECT FROM run p WHERE p.id = %(parent_run)s AND p.state || '' = 'paused')
             THEN 'paused' ELSE %(state)s END,
        %(params)s::jsonb, %(steps)s, %(missing)s, %(parent_run)s, %(parent_idx)s, %(origin)s, %(origin_kind)s,
        -- A child has no more time than its parent.
        least(clock_timestamp() + interval '1 second' * %(deadline)s::float8,
              (SELECT p.deadline_at FROM run p WHERE p.id = %(parent_run)s)), %(tags)s::text[], %(tenant)s, %(single)s, %(gates)s::text[], %(hooks)s::jsonb,
        %(follow)s)
    ON CONFLICT DO NOTHING
RETURNING id, tags
), tagged AS (
    INSERT INTO run_tag (tag, run_id) SELECT unnest(tags), id FROM opened
)
SELECT id FROM opened

-- name: read_run
-- The run just inserted, or the one that has its key: read in the transaction of the start.
SELECT id, workflow, state, key, params, correlation_id, definition, steps, error, created_at, started_at,
       finished_at, tags, origin, origin_kind
  FROM run WHERE id = %(run)s AND %(key)s::text IS NULL
UNION ALL
SELECT id, workflow, state, key, params, correlation_id, definition, steps, error, created_at, started_at,
       finished_at, tags, origin, origin_kind
  FROM run WHERE workflow = %(workflow)s AND key = %(key)s::text

-- name: time_queue
-- Steps that were ready when they were inserted, and may not wait for ever to be claimed.
WITH o AS MATERIALIZED (
    SELECT %(run)s::uuid AS run_id, idx FROM unnest(%(idx)s::int[]) AS t(idx)
)
UPDATE step s SET lease_until = clock_timestamp() + interval '1 second' * (s.options->>'queue_timeout')::float8
  FROM o
 WHERE s.run_id = o.run_id AND s.idx = o.idx AND s.state || '' = 'ready'

-- name: copy_steps
COPY step (run_id, idx, name, action, queue, priority, state, missing, sent, dependents, refs, inputs,
           bindings, options, rank, waits_for, fair, expect) FROM STDIN
