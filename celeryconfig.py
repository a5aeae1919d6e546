"""Every Celery setting that Trellis depends on, each with its reason.

The law: Redis carries hints, Postgres the truth. So nothing here has to make Celery durable; it has to
make it quick to notice a loss, and never to do a thing twice on its own account.
"""

from kombu import Exchange, Queue

from trellis.tasks.settings import SYSTEM_QUEUE, current

_settings = current()

# --- addresses
broker_url = _settings.broker_url
broker_transport = "trellis.tasks.transport:Transport"  # kombu's own, but it survives a restart of Redis
result_backend = _settings.result_backend_url  # None: the journal holds the results

# --- what a worker loads: the engine's own tasks, then the user's modules
imports = (
    "trellis.workflows.worker",
    "trellis.memory.embedders.service",
    "trellis.workflows.reembedding",
    "trellis.workflows.distilling",
    "trellis.workflows.boot",
    *_settings.imports,
)

# --- delivery
task_acks_late = True  # a message leaves Redis when its steps are recorded, not when they start
task_reject_on_worker_lost = True  # a killed child's message comes back; the claim counts the attempts
task_acks_on_failure = True  # a failed body is recorded in the journal; its message has done its work
task_acks_on_timeout = True
worker_prefetch_multiplier = 1  # with late acks a worker reserves as many messages as it has slots
worker_cancel_long_running_tasks_on_connection_loss = False  # leases fence: a Redis blip kills no work
task_publish_retry = True
task_publish_retry_policy = {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 1}

# --- Redis as broker. One dict: Celery replaces it, it does not merge.
broker_transport_options = {
    # Longer than any step may run. Recovery does not wait for it: leases expire in seconds.
    "visibility_timeout": int(max(3600.0, 2 * _settings.step_timeout)),
    "priority_steps": [0, 3, 6, 9],  # 0 is the highest on Redis; Trellis turns its 9 into this 0
    "queue_order_strategy": "priority",
    "socket_keepalive": True,
    "socket_connect_timeout": 5,
    "socket_timeout": 20,  # a Redis that hangs is a Redis that is gone
    "health_check_interval": 25,
    # No `retry_on_timeout`: kombu then writes every message by itself, four times slower than a pipeline.
    # Whoever publishes gives up soon: the steps are in the journal. Without this a sender waits for ever.
    "max_retries": 2,
    "interval_start": 0.0,
    "interval_step": 0.2,
    "interval_max": 0.5,
}
broker_connection_retry_on_startup = True
broker_connection_max_retries = None  # a worker outlives any outage of Redis
broker_channel_error_retry = True

# --- results: the journal is the result
task_ignore_result = _settings.result_backend_url is None
task_store_errors_even_if_ignored = False
result_expires = 3600  # seconds; canvases read their results at once

# --- one format, readable by anyone; never pickle
task_serializer = result_serializer = event_serializer = "json"
accept_content = result_accept_content = ["json"]

# --- queues
task_default_queue = _settings.default_queue
# What a worker without `--queues` consumes; the ticks come first, however long the other queue is.
task_queues = [Queue(name, Exchange(name), name) for name in (SYSTEM_QUEUE, _settings.default_queue)]
task_create_missing_queues = True
task_default_priority = 4  # the middle: Trellis' priority 5
task_inherit_parent_priority = False
task_routes = {"trellis.tick": {"queue": SYSTEM_QUEUE}}

# --- what Flower shows
task_track_started = True
worker_send_task_events = True
task_send_sent_event = False  # Flower learns of a task when it is received; one event less a message

# --- limits and shutdown
worker_max_tasks_per_child = None  # set it with `--max-tasks-per-child` where bodies leak
worker_eta_task_limit = 1000  # timers live in Postgres; nobody may hoard ETA messages in a worker
worker_soft_shutdown_timeout = 0.0  # a flat sleep; trellis.workflows.worker bounds the warm shutdown instead
worker_enable_soft_shutdown_on_idle = False
worker_proc_alive_timeout = 30.0  # seconds for a child to come up on a busy machine
worker_hijack_root_logger = False  # structured logs are set up by trellis.tasks.logs
worker_redirect_stdouts = False

# --- beat: any number of beats is safe, a tick only claims what is due
beat_schedule = {
    "trellis.tick": {
        "task": "trellis.tick",
        "schedule": _settings.tick_seconds,
        # No `expires`: Celery would compare the clocks of beat's machine and of the worker's, and a worker whose clock
        # is an hour ahead would throw every tick away. The task itself passes over ticks that have piled up.
        "options": {"queue": SYSTEM_QUEUE, "priority": 0},
    },
}
beat_max_loop_interval = 5
timezone = "UTC"
enable_utc = True
