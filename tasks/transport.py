"""Kombu's Redis transport, mended in two places: losing the broker must not end the worker, and a client is kept.

When Redis goes away, kombu 5.7 collects the connection (which drops the transport's client) and then closes
its channels; a channel with unacknowledged messages tries to put them back, needs the client, and fails with
an AttributeError that nothing catches: the worker ends with "Unrecoverable error" (seen in a test that
restarts Redis under load). Said as the connection error that it is, everybody expects it.

Kombu makes a client of redis-py for each message that is sent or acknowledged, which copies its table of 170 answers
each time: a tenth of what a step in a message of its own costs the worker (profile of 1,000 steps).
"""

from __future__ import annotations

from typing import Any

from kombu.transport import redis
from redis.exceptions import ConnectionError as RedisConnectionError


class Channel(redis.Channel):
    """A channel whose closed connection is a connection error, and that keeps its client."""

    _kept: Any = None

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection.client is None:
            raise RedisConnectionError("the connection to Redis was closed")
        return super()._connparams(asynchronous=asynchronous)  # type: ignore[no-untyped-call]

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]
        # A client is no more than its pool, which is a new one after a fork and after a lost connection.
        if self._kept is None or self._kept.connection_pool is not self.pool:
            self._kept = super()._create_client()  # type: ignore[no-untyped-call]
        return self._kept


class Transport(redis.Transport):
    """Redis with that channel; `broker_transport` in celeryconfig.py names it."""

    Channel = Channel
