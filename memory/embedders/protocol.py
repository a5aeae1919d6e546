"""What an embedder is.

The law: vectors of one `model` are comparable with each other and with nothing else. They are float32, of shape
(texts, dims), in the order of the texts, each of length 1, so that the inner product is the cosine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from ...tasks.errors import TextRefused

if TYPE_CHECKING:  # whoever only names the type does not load numpy
    import numpy
    from numpy.typing import NDArray

    Vectors: TypeAlias = NDArray[numpy.float32]
else:
    Vectors = "numpy.typing.NDArray[numpy.float32]"


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors. Safe to call from several threads, and after a fork."""

    @property
    def model(self) -> str:
        """Whose vectors these are, e.g. `sentence-transformers/all-MiniLM-L6-v2`; every row is marked with it."""

    @property
    def dims(self) -> int:
        """Numbers in a vector."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of the texts, float32 of shape (len(texts), dims), each of length 1.

        A text that is longer than the model reads counts by its beginning. Raises EmbeddingError.
        """


async def aembed(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """`embedder.embed(texts)` from a coroutine, in a thread, so that the loop goes on."""
    return await asyncio.to_thread(embedder.embed, texts)


def checked(texts: Sequence[str], model: str) -> list[str]:
    """The texts as a list. Raises TextRefused for what no model can read, so that it spoils no batch of others."""
    if isinstance(texts, str):
        raise TextRefused(model, None, "one text was given where a list of texts belongs: embed([text])")
    found = list(texts)
    for index, text in enumerate(found):
        if not isinstance(text, str):
            raise TextRefused(model, index, f"it is {type(text).__name__}, not a text")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise TextRefused(
                    model, index, f"it has half a surrogate pair at character {error.start}: clean it before"
                ) from error
    return found
