"""Kombu's Redis transport, mended in three places: losing the broker must not end the worker, a client is kept, and a
hint is kept in memory only.

When Redis goes away, kombu 5.7 collects the connection (which drops the transport's client) and then closes
its channels; a channel with unacknowledged messages tries to put them back, needs the client, and fails with
an AttributeError that nothing catches: the worker ends with "Unrecoverable error" (seen in a test that
restarts Redis under load). Said as the connection error that it is, everybody expects it.

Kombu makes a client of redis-py for each message that is sent or acknowledged, which copies its table of 170 answers
each time: a tenth of what a step in a message of its own costs the worker (profile of 1,000 steps).

Kombu notes each message that a worker has in a hash of Redis, and deletes it there with the acknowledgement, so that it
comes back should the worker die: after `visibility_timeout`, an hour or more. Those are two transactions a message,
half of what it costs the worker's parent process. A message that only announces what the journal holds needs neither:
the tick finds within seconds what a dead worker had. Its header says so (`HINT`), and a worker that lives puts it back
into its queue like any other.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import redis, virtual
from redis.exceptions import ConnectionError as RedisConnectionError

HINT = "trellis_hint"  # a header: the message may be lost with its worker


class QoS(redis.QoS):
    """What a worker has in hand. Of hints only this process knows."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Take a message in hand."""
        if HINT in message.headers:
            virtual.QoS.append(self, message, delivery_tag)  # type: ignore[no-untyped-call]
        else:
            super().append(message, delivery_tag)  # type: ignore[no-untyped-call]

    def ack(self, delivery_tag: str) -> None:
        """A message has done its work."""
        if self._hint(delivery_tag) is not None:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]
        else:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """A message goes back into its queue, or away."""
        if self._hint(delivery_tag) is not None and not requeue:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]
        else:
            super().reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        """Put a message back into its queue."""
        hint = self._hint(tag)
        if hint is None:
            super().restore_by_tag(tag, client=client, leftmost=leftmost)  # type: ignore[no-untyped-call]
            return
        about = hint.delivery_info
        with self.channel.conn_or_acquire(client) as found:
            self.channel._do_restore_message(
                hint._raw, about["exchange"], about["routing_key"], found, leftmost
            )

    def _hint(self, tag: str) -> Any:
        message = self._delivered.get(tag)
        return message if message is not None and HINT in message.headers else None


class Channel(redis.Channel):
    """A channel whose closed connection is a connection error, and that keeps its client."""

    QoS = QoS
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
