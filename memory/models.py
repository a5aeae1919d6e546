"""Embedding models: a name and its dimensions, and the partition that holds the rows made by it.

The law: a row belongs to the model that made its vector, and a search reads the rows of one model. A model is written
down when it is first used, with its dimensions for ever: a vector of others is refused before it reaches a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..tasks.errors import ModelMismatch, ModelMoved
from ..tasks.queries import numbered
from .connections import MemoryDatabase

_FIND = numbered(
    b"SELECT m.id, m.dims, s.name FROM memory_model m LEFT JOIN memory_model s ON s.id = m.successor "
    b"WHERE m.name = %(name)s::text"
)
_OPEN = numbered(b"SELECT id, dims, NULL FROM memory_open_model(%(name)s::text, %(dims)s::integer)")
_ALL = numbered(b"SELECT id, name, dims FROM memory_model WHERE successor IS NULL ORDER BY id")


class Model(NamedTuple):
    """An embedding model as this database knows it."""

    id: int
    name: str
    dims: int


def find(database: MemoryDatabase, tenant: str, name: str) -> Model | None:
    """The model of that name; None where no memory was made by it. Raises ModelMoved."""
    found = database.ask(tenant, _FIND, {"name": name})
    return _model(name, found[0]) if found else None


def need(database: MemoryDatabase, tenant: str, name: str, dims: int) -> Model:
    """The model of that name, with a partition made for it where it is new.

    Raises ModelMismatch where the memories of that model have other dimensions, ModelMoved.
    """
    arguments = {"name": name, "dims": dims}
    found = database.ask(tenant, _FIND, arguments) or database.ask(tenant, _OPEN, arguments)
    model = _model(name, found[0])
    if model.dims != dims:
        raise ModelMismatch(name, dims, model.dims)
    return model


def known(database: MemoryDatabase, tenant: str) -> list[Model]:
    """All models that have made memories in this database."""
    return [Model(*row) for row in database.ask(tenant, _ALL, {})]


def _model(name: str, row: Sequence[Any]) -> Model:
    number, dims, successor = row
    if successor is not None:
        raise ModelMoved(name, successor)
    return Model(number, name, dims)
