-- Rotation of the keys that encrypt what the journal keeps of secret parameters.

-- name: holders
-- A stretch of runs, each with whether anything of it is encrypted: what is, is in its parameters or what follows its end.
SELECT id, concat(params, hooks, edits) LIKE '%%trellis-secret:%%' FROM run WHERE id > %(after)s ORDER BY id LIMIT %(room)s

-- name: read_run
SELECT params::text, hooks::text, edits::text FROM run WHERE id = %(run)s FOR UPDATE

-- name: keep_run
UPDATE run SET params = %(params)s::jsonb, hooks = %(hooks)s::jsonb, edits = %(edits)s::jsonb WHERE id = %(run)s

-- name: read_steps
SELECT idx, inputs::text, options::text FROM step
 WHERE run_id = %(run)s AND idx > %(after)s AND concat(inputs, options) LIKE '%%trellis-secret:%%'
 ORDER BY idx LIMIT %(room)s FOR UPDATE

-- name: keep_step
UPDATE step SET inputs = %(inputs)s::jsonb, options = %(options)s::jsonb WHERE run_id = %(run)s AND idx = %(idx)s
