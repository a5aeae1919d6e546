"""Models that people construct by hand, as `Retry(3)`: what is wrong with one is a DefinitionError.

The law: the message names the model, the field and what would be right; pydantic's own words for places and documents
never reach a user. Inside a larger definition the same model is checked by pydantic, and whoever reads that tells it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ValidationError

from .errors import DefinitionError


def by_hand(init: Callable[..., None]) -> Callable[..., None]:
    """Mark the `__init__` of such a model: pydantic then does not call it for what it validates itself."""
    init.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # what BaseModel says of its own
    return init


def build(construct: Callable[..., None], model: BaseModel, **fields: Any) -> None:
    """Construct a model: `construct` is its class's `super().__init__`. Raises DefinitionError with every problem."""
    try:
        construct(**fields)
    except ValidationError as error:
        problems = [_sentence(model, each) for each in error.errors(include_url=False, include_context=False)]
        raise DefinitionError(f"{type(model).__name__}: {'; '.join(problems)}") from None


def _sentence(model: BaseModel, problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{place} is missing"
    if problem["type"] == "extra_forbidden":
        return f"there is no field {place!r}; there are: {', '.join(map(repr, type(model).model_fields))}"
    message = str(problem["msg"])
    return f"{place}={problem['input']!r}: {message[:1].lower()}{message[1:]}"
