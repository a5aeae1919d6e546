"""A line to Postgres that can be cut in the moment of a COMMIT.

The law: bytes pass as they are. Once `lose` was called, the next COMMIT loses its connection for good: either it never
reaches the server, or the server has answered it and nobody hears that.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

COMMIT = b"COMMIT\x00"  # as psycopg sends it: a simple query
Lost = Literal["the commit", "its answer"]


class Relay:
    """A port in front of a server's."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._lose: Lost | None = None
        self.lost = 0  # connections
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def lose(self, what: Lost) -> None:
        """Cut the line of the next COMMIT."""
        self._lose = what

    def close(self) -> None:
        """End every connection."""
        for each in (self._listener, *self._open):
            _end(each)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._open += [client, server]
                deaf = threading.Event()
                for pump in (self._to_server, self._to_client):
                    threading.Thread(target=pump, args=(client, server, deaf), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket, deaf: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if self._lose is not None and COMMIT in data:
                    lose, self._lose = self._lose, None
                    self.lost += 1
                    if lose == "the commit":
                        break
                    deaf.set()
                server.sendall(data)
        _end(server)
        _end(client)

    @staticmethod
    def _to_client(client: socket.socket, server: socket.socket, deaf: threading.Event) -> None:
        with suppress(OSError):
            while (data := server.recv(65536)) and not deaf.is_set():
                client.sendall(data)
        _end(client)
        _end(server)


def _end(side: socket.socket) -> None:
    """Shut it for both directions, which also wakes the thread that reads from it."""
    with suppress(OSError):
        side.shutdown(socket.SHUT_RDWR)
    side.close()


@contextmanager
def relayed(url: str) -> Iterator[tuple[Relay, str]]:
    """A relay in front of the server of an address, and the address that leads through it."""
    found = re.search(r"@([^:/]+):(\d+)/", url)
    assert found is not None
    relay = Relay(found[1], int(found[2]))
    try:
        yield relay, url.replace(found[0], f"@{relay.address}/")
    finally:
        relay.close()
