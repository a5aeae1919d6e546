"""Embedding models: a name and its dimensions, and the partition that holds the rows made by it.

The law: a row belongs to the model that made its vector, and a search reads the rows of one model. A model is written
down when it is first used, with its dimensions for ever: a vector of others is refused before it reaches a table.
"""

from __future__ import annotations

from typing import NamedTuple

from ..tasks.errors import ModelMismatch
from ..tasks.queries import numbered
from .connections import MemoryDatabase

_FIND = numbered(b"SELECT id, dims FROM memory_model WHERE name = %(name)s::text")
_OPEN = numbered(b"SELECT id, dims FROM memory_open_model(%(name)s::text, %(dims)s::integer)")
_ALL = numbered(b"SELECT id, name, dims FROM memory_model ORDER BY id")


class Model(NamedTuple):
    """An embedding model as this database knows it."""

    id: int
    name: str
    dims: int


def find(database: MemoryDatabase, tenant: str, name: str) -> Model | None:
    """The model of that name; None where no memory was made by it."""
    found = database.ask(tenant, _FIND, {"name": name})
    return Model(found[0][0], name, found[0][1]) if found else None


def need(database: MemoryDatabase, tenant: str, name: str, dims: int) -> Model:
    """The model of that name, with a partition made for it where it is new.

    Raises ModelMismatch where the memories of that model have other dimensions.
    """
    arguments = {"name": name, "dims": dims}
    found = database.ask(tenant, _FIND, arguments) or database.ask(tenant, _OPEN, arguments)
    model = Model(found[0][0], name, found[0][1])
    if model.dims != dims:
        raise ModelMismatch(name, dims, model.dims)
    return model


def known(database: MemoryDatabase, tenant: str) -> list[Model]:
    """All models that have made memories in this database."""
    return [Model(*row) for row in database.ask(tenant, _ALL, {})]
