"""Connections to Redis for what embedders keep and send there.

The law: who uses one gives up soon. Redis only makes things quicker or carries them; its absence is said or counted
within a second, never waited for.
"""

from __future__ import annotations

import redis

CONNECT_SECONDS = 0.5
READ_SECONDS = 1.0
GONE = (redis.RedisError, OSError)


def connect(url: str, read: float = READ_SECONDS) -> redis.Redis:
    """A client with a pool of its own, safe to share among threads; `read`: seconds for an answer."""
    address = url.replace("redis+socket://", "unix://", 1)  # what Celery calls it
    return redis.Redis.from_url(
        address,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=read,
        health_check_interval=30,
        retry=None,
    )
