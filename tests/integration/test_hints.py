"""Messages in a worker's hands, taken with kombu from real Redis.

Of hints Redis knows nothing, and who lives loses none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu import Connection
from stack import Stack

from trellis.tasks.transport import HINT

QUEUE = "celery"


@pytest.fixture
def connection(stack: Stack) -> Iterator[Connection]:
    with Connection(stack.broker_url, transport="trellis.tasks.transport:Transport") as found:
        yield found


@pytest.fixture
def broker(stack: Stack) -> Iterator[Any]:
    with redis.Redis.from_url(stack.broker_url) as found:
        yield found


def send(connection: Connection, *bodies: str, hints: bool) -> None:
    with connection.channel() as channel:
        producer = connection.Producer(channel)
        for body in bodies:
            producer.publish(
                {"body": body},
                routing_key=QUEUE,
                headers={HINT: True} if hints else {},
                declare=[connection.SimpleQueue(QUEUE).queue],
            )


def waiting(connection: Connection) -> list[str]:
    """What is in the queue, in the order of its delivery; it is empty afterwards."""
    found = []
    with connection.channel() as channel:
        while (message := channel.basic_get(QUEUE, no_ack=True)) is not None:
            found.append(message.decode()["body"])
    return found


@pytest.mark.parametrize("hints", [True, False])
def test_only_messages_that_are_no_hints_are_noted_in_redis(
    connection: Connection, broker: Any, hints: bool
) -> None:
    send(connection, "a", hints=hints)
    with connection.channel() as channel:
        message = channel.basic_get(QUEUE)
        assert broker.hlen("unacked") == broker.zcard("unacked_index") == (0 if hints else 1)
        message.ack()
        assert broker.hlen("unacked") == broker.zcard("unacked_index") == 0
    assert waiting(connection) == []


@pytest.mark.parametrize("hints", [True, False])
def test_a_message_that_is_put_back_is_there_again_once(connection: Connection, hints: bool) -> None:
    """As with a pool child that was killed: Celery rejects its message."""
    send(connection, "a", "b", hints=hints)
    with connection.channel() as channel:
        channel.basic_get(QUEUE).requeue()
    assert waiting(connection) == ["b", "a"]


@pytest.mark.parametrize("hints", [True, False])
def test_a_message_that_is_refused_is_gone(connection: Connection, hints: bool) -> None:
    send(connection, "a", "b", hints=hints)
    with connection.channel() as channel:
        channel.basic_get(QUEUE).reject()
    assert waiting(connection) == ["b"]


@pytest.mark.parametrize("hints", [True, False])
def test_who_goes_puts_back_what_it_has_in_hand(connection: Connection, hints: bool) -> None:
    """A worker that is stopped has reserved messages that it never began."""
    send(connection, "a", "b", "c", hints=hints)
    with connection.channel() as channel:
        channel.basic_get(QUEUE).ack()
        channel.basic_get(QUEUE)
    assert sorted(waiting(connection)) == ["b", "c"]
