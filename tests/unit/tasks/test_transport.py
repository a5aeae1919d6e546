"""Kombu's Redis transport as Trellis uses it. No server is asked."""

from kombu import Connection


def test_a_channel_keeps_its_client_until_its_pool_is_another() -> None:
    with Connection("redis://127.0.0.1:1/0", transport="trellis.tasks.transport:Transport") as connection:
        channel = connection.transport.Channel.__new__(connection.transport.Channel)
        channel.connection = connection.transport
        channel.Client = channel._get_client()
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
        channel._pool = None  # as after a fork, or a lost connection
        with channel.conn_or_acquire() as third:
            assert third is not first
            assert third.connection_pool is channel.pool
