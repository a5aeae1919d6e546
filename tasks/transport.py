"""Kombu's Redis transport, mended in one place: losing the broker must not end the worker.

When Redis goes away, kombu 5.7 collects the connection (which drops the transport's client) and then closes
its channels; a channel with unacknowledged messages tries to put them back, needs the client, and fails with
an AttributeError that nothing catches: the worker ends with "Unrecoverable error" (seen in a test that
restarts Redis under load). Said as the connection error that it is, everybody expects it.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import redis
from redis.exceptions import ConnectionError as RedisConnectionError


class Channel(redis.Channel):
    """A channel whose closed connection is a connection error."""

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection.client is None:
            raise RedisConnectionError("the connection to Redis was closed")
        return super()._connparams(asynchronous=asynchronous)  # type: ignore[no-untyped-call]


class Transport(redis.Transport):
    """Redis with that channel; `broker_transport` in celeryconfig.py names it."""

    Channel = Channel
