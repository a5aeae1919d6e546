"""Vectors on the wire: pgvector's `halfvec`, 16 bits a dimension, in Postgres' binary form.

The law: what is sent is finite. pgvector's own package does the same for classes of its own; this is all of it that
is needed here.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format
from psycopg.types import TypeInfo

from ..tasks.database import Connection
from ..tasks.errors import EntryError

Vectors = np.ndarray[Any, np.dtype[np.float32]]


class Half:
    """One vector as it is sent: two bytes of dimensions, two unused, then big-endian half floats."""

    __slots__ = ("wire",)

    def __init__(self, vector: Vectors) -> None:
        halves = np.asarray(vector, dtype=">f2")
        if halves.ndim != 1 or not np.isfinite(halves).all():
            raise EntryError("embedding", "is no list of finite numbers that half floats (±65,504) can say")
        self.wire = struct.pack(">HH", halves.shape[0], 0) + halves.tobytes()


def read(wire: Buffer | bytes) -> Vectors:
    """A vector as Postgres sends it."""
    return np.frombuffer(bytes(wire), dtype=">f2", offset=4).astype(np.float32)


class _HalfDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Half) -> Buffer:
        return obj.wire


def info(connection: Connection) -> TypeInfo | None:
    """What this database calls the type; None where the extension is not there."""
    return TypeInfo.fetch(connection, "halfvec")


def register(connection: Connection, found: TypeInfo) -> None:
    """Let a connection take `Half`, and lists of them."""
    found.register(connection)
    dumper = type("HalfDumper", (_HalfDumper,), {"oid": found.oid})
    connection.adapters.register_dumper(Half, dumper)
