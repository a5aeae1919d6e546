-- The audit log. Rows are in the order (tx, id): the transaction that wrote them, then the order within it. All
-- transactions before the oldest one that is open are over, so no row will ever appear in front of such a row, and
-- rows can be sealed for good without a lock that any writer would wait for. Ids alone would not do: an id is given
-- out before its transaction is committed. The text under a seal is put together in these statements, and not by a
-- function of the database, which somebody could replace by one that tells of earlier times.

-- name: record
INSERT INTO audit_log (actor, tenant, action, target, outcome, correlation_id, run_id, detail)
VALUES (coalesce(%(actor)s, nullif(current_setting('trellis.actor', true), ''), session_user), %(tenant)s, %(action)s, %(target)s, %(outcome)s, %(correlation_id)s, %(run_id)s, %(detail)s::jsonb)

-- name: turn
-- One sealer at a time; another one has nothing to do.
SELECT pg_try_advisory_xact_lock(7205759403792795)

-- name: last_seal
-- At last whether its place is over: else the database counts from a lower number than it did.
SELECT seq, mac, last_tx::text, last_id, last_tx < audit_done() FROM audit_seal ORDER BY seq DESC LIMIT 1

-- name: unsealed
-- The next rows in order that nothing can come in front of any more, each with its month and its text under seal; at
-- last the newest transaction of which this is known. In the order of numbers: a bare `tx` would mean the text above.
SELECT tx::text, id, date_trunc('month', at AT TIME ZONE 'UTC')::date AS month, jsonb_build_array(
           id, tx::text, (extract(epoch FROM at) * 1000000)::bigint, actor, tenant, action, target, outcome,
           correlation_id, run_id, detail)::text,
       (audit_done()::text::numeric - 1)::text
  FROM audit_log
 WHERE (tx, id) > (%(tx)s::xid8, %(id)s) AND tx < audit_done()
 ORDER BY audit_log.tx, audit_log.id LIMIT %(room)s

-- name: seal
INSERT INTO audit_seal (seq, month, last_tx, last_id, ids, digests, previous, key, mac)
VALUES (%(seq)s, %(month)s, %(last_tx)s::xid8, %(last_id)s, %(ids)s, %(digests)s, %(previous)s, %(key)s, %(mac)s)

-- name: reading
-- Held by who verifies, so that no month is detached under its eyes.
SELECT pg_advisory_lock_shared(7205759403792796)

-- name: read
SELECT pg_advisory_unlock_shared(7205759403792796)

-- name: seals
SELECT seq, month, last_tx::text, last_id, ids, digests, previous, key, mac
  FROM audit_seal WHERE seq > %(seq)s ORDER BY seq LIMIT %(room)s

-- name: between
-- What lies between the end of the seal before it and its own: the rows of one seal.
SELECT id, jsonb_build_array(
           id, tx::text, (extract(epoch FROM at) * 1000000)::bigint, actor, tenant, action, target, outcome,
           correlation_id, run_id, detail)::text
  FROM audit_log
 WHERE (tx, id) > (%(after_tx)s::xid8, %(after_id)s) AND (tx, id) <= (%(last_tx)s::xid8, %(last_id)s)
 ORDER BY tx, id LIMIT %(room)s

-- name: elsewhere
-- Of rows that are missing in their place: those that lie in another one. Reads the log once, if it was tampered with.
SELECT id FROM audit_log WHERE id = ANY(%(ids)s)

-- name: after
SELECT count(*) FROM audit_log WHERE (tx, id) > (%(tx)s::xid8, %(id)s)

-- name: retired
SELECT month, rows, last_seal, key, mac FROM audit_retired ORDER BY month

-- name: ahead
-- Makes the partitions of this month and the next ones where they are missing; rows of a month without one would
-- lie in `audit_log_rest`, so nothing is lost, but could not be retired apart.
SELECT audit_partition((date_trunc('month', now() AT TIME ZONE 'UTC') + n * interval '1 month')::date)
  FROM generate_series(0, 3) AS n

-- name: months
-- Those that have a partition, each with whether it is over.
SELECT month, month < date_trunc('month', now() AT TIME ZONE 'UTC')
  FROM (SELECT to_date(substring(c.relname FROM 'audit_log_(\d{4}_\d{2})$'), 'YYYY_MM') AS month
          FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'audit_log'::regclass AND c.relname ~ '^audit_log_\d{4}_\d{2}$') m
 ORDER BY month

-- name: nobody_reads
SELECT pg_try_advisory_xact_lock(7205759403792796)

-- name: sealed_of
SELECT coalesce(sum(cardinality(ids)), 0)::bigint, coalesce(max(seq), 0) FROM audit_seal WHERE month = %(month)s

-- name: detach
SELECT audit_detach(%(month)s, %(rows)s)

-- name: retire
INSERT INTO audit_retired (month, rows, last_seal, key, mac)
VALUES (%(month)s, %(rows)s, %(last_seal)s, %(key)s, %(mac)s)

-- name: rebase
SELECT audit_rebase()
