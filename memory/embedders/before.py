"""An embedder that stands before another one, and whose vectors are that one's."""

from __future__ import annotations

from .protocol import Embedder


class Before:
    """What all of them have alike."""

    def __init__(self, inner: Embedder) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"

    @property
    def model(self) -> str:
        """That of the embedder behind it."""
        return self.inner.model

    @property
    def dims(self) -> int:
        """Numbers in a vector."""
        return self.inner.dims
