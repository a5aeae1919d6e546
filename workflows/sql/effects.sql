-- The transaction that a body shares with its step's completion (joint.py).

-- name: plan_freely
SELECT set_config('enable_seqscan', 'on', true), set_config('enable_bitmapscan', 'on', true),
       set_config('enable_hashjoin', 'on', true), set_config('enable_mergejoin', 'on', true),
       set_config('enable_incremental_sort', 'on', true), set_config('plan_cache_mode', 'auto', true),
       set_config('idle_in_transaction_session_timeout', %(idle_ms)s, true)

-- name: plan_strictly
SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
       set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
       set_config('enable_incremental_sort', 'off', true), set_config('plan_cache_mode', 'force_generic_plan', true)
