"""Embeddings of any endpoint that speaks OpenAI's protocol: OpenAI, vLLM, Ollama, text-embeddings-inference, LiteLLM, …

The law: an answer is believed when it has a vector for each text, in the order of its indexes, of the expected length;
else it is an error. How an endpoint is reached, and what its errors mean, stands in memory/endpoint.py.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from time import sleep
from typing import Any

import numpy as np

from ...tasks.errors import EmbedderRefused, EmbedderUnavailable, EmbeddingError, TextRefused
from ...tasks.redaction import redact
from ..endpoint import Endpoint, Terms, TooLong
from .protocol import Vectors, checked
from .vectors import unit

BATCH = 256  # texts in a request; OpenAI takes 2,048
BATCH_CHARACTERS = 200_000  # and 300,000 tokens
READS = 24_000  # characters of a text at first; less where the endpoint finds it too long
SHORTEST = 64  # characters that every model reads
DIMS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}


class OpenAIEmbedder:
    """A model behind an endpoint."""

    def __init__(
        self,
        name: str,
        *,
        url: str | None = None,
        key: str | None = None,
        dims: int | None = None,
        timeout: float = 30.0,
        attempts: int = 5,
        patience: float = 60.0,
        pause: Callable[[float], None] = sleep,
    ) -> None:
        """name: of the model, as the endpoint knows it. url: up to and including `/v1`; OpenAI's own by default.

        key: of the endpoint; for OpenAI's own also from OPENAI_API_KEY. dims: asked for, where a model can shorten its
        vectors. timeout: seconds for one request. attempts: requests at most for a batch, within `patience` seconds of
        pauses. Raises MissingExtra, EmbedderRefused.
        """
        self.name = name
        # Shortened vectors are another space. The address is not part of the id: an endpoint that moves keeps its rows.
        self.model = f"openai/{name}" + (f"@{dims}" if dims else "")
        terms = Terms(
            name=name, model=self.model, purpose=f"the embedder openai:{name}", setting="TRELLIS_EMBEDDER",
            failed=EmbeddingError, refused=EmbedderRefused, unavailable=EmbedderUnavailable,
        )  # fmt: skip
        self._endpoint = Endpoint(
            terms, url=url, key=key, timeout=timeout, attempts=attempts, patience=patience, pause=pause
        )
        self._asked = dims
        self._dims = dims or DIMS.get(name)

    def __repr__(self) -> str:
        return f"OpenAIEmbedder({self.name!r}, url={redact(self._endpoint.url)!r})"

    @property
    def dims(self) -> int:
        """Numbers in a vector. Asks the endpoint once, where neither you nor its name said it."""
        if self._dims is None:
            self.embed(["dimensions"])
        assert self._dims is not None
        return self._dims

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of the texts.

        Raises TextRefused, EmbedderRefused (key, model, dimensions), EmbedderUnavailable, EmbeddingError.
        """
        found = [text[:READS] for text in checked(texts, self.model)]
        rows: list[Any] = []
        for batch in batches(found):
            rows += self._batch(batch, len(rows))
        if found and self._dims is None:
            self._dims = len(rows[0])
        if found and self._dims and len(rows[0]) != self._dims:
            raise EmbedderRefused(
                self.model,
                f"the endpoint answered with {len(rows[0])} dimensions, and {self._dims} were expected: "
                "correct TRELLIS_EMBEDDER_DIMS, or unset it where this model cannot shorten its vectors",
            )
        if len({len(row) for row in rows}) > 1:
            raise EmbeddingError(self.model, "the endpoint answered with vectors of different lengths")
        return unit(rows, len(found), self._dims or 0, self.model)

    def _batch(self, texts: list[str], first: int) -> list[Any]:
        """Rows of a batch that begins at text `first`; texts that the endpoint finds too long are cut."""
        try:
            return self._request(texts)
        except TooLong as error:
            if len(texts) > 1:
                half = len(texts) // 2
                return self._batch(texts[:half], first) + self._batch(texts[half:], first + half)
            if len(texts[0]) <= SHORTEST:
                raise TextRefused(self.model, first, str(error)) from None
            return self._batch([texts[0][: len(texts[0]) // 2]], first)

    def _request(self, texts: list[str]) -> list[Any]:
        options = {"dimensions": self._asked} if self._asked else {}
        answer = self._endpoint.call(
            lambda client: client.embeddings.create(
                model=self.name, input=texts, encoding_format="base64", **options
            )
        )
        return self._rows(answer, len(texts))

    def _rows(self, answer: Any, count: int) -> list[Any]:
        try:
            data = sorted(answer.data, key=lambda each: each.index)
            indexes = [each.index for each in data]
            rows = [_floats(each.embedding) for each in data]
        except (AttributeError, TypeError, ValueError) as error:
            raise EmbeddingError(
                self.model, f"the endpoint's answer is none for embeddings: {error}"
            ) from error
        if indexes != list(range(count)):
            raise EmbeddingError(
                self.model,
                f"the endpoint answered with {len(rows)} vectors for {count} texts, indexes {indexes[:5]}…",
            )
        return rows


def batches(
    texts: Sequence[str], most: int = BATCH, characters: int = BATCH_CHARACTERS
) -> Iterator[list[str]]:
    """The texts in order, so many and so many characters at a time, and at least one."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == most or size + len(text) > characters):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def _floats(given: Any) -> Any:
    """A vector as it travels: little-endian float32 in base64, or a list, by those who do not know base64."""
    if isinstance(given, str):
        return np.frombuffer(base64.b64decode(given, validate=True), dtype="<f4")
    return np.asarray(given, dtype=np.float32)
