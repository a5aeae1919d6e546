"""Embeddings of any endpoint that speaks OpenAI's protocol: OpenAI, vLLM, Ollama, text-embeddings-inference, LiteLLM, …

The law: an answer is believed when it has a vector for each text, in the order of its indexes, of the expected length;
else it is an error. What may pass (429, 5xx, a lost connection) is tried again within the time given, no sooner than
the endpoint asks for; what will not pass (a key, a model, dimensions) is said at once. No message shows the key.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from time import sleep
from typing import Any

import numpy as np
import tenacity
from tenacity.stop import stop_base

from ...tasks.errors import EmbedderRefused, EmbedderUnavailable, EmbeddingError, MissingExtra, TextRefused
from ...tasks.redaction import HIDDEN, redact
from .perprocess import PerProcess
from .protocol import Vectors, checked
from .vectors import unit

BATCH = 256  # texts in a request; OpenAI takes 2,048
BATCH_CHARACTERS = 200_000  # and 300,000 tokens
READS = 24_000  # characters of a text at first; less where the endpoint finds it too long
SHORTEST = 64  # characters that every model reads
CONNECT_SECONDS = 5.0
DIMS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
_PAUSE = tenacity.wait_exponential(multiplier=0.5, max=20.0) + tenacity.wait_random(0.0, 0.5)
_TOO_LONG = (
    "maximum context",
    "too long",
    "too many tokens",
    "token limit",
    "context length",
    "input length",
    "max_length",
)


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
        if importlib.util.find_spec("openai") is None:
            raise MissingExtra("openai", f"the embedder openai:{name}")
        self.name = name
        # Shortened vectors are another space. The address is not part of the id: an endpoint that moves keeps its rows.
        self.model = f"openai/{name}" + (f"@{dims}" if dims else "")
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key and key):
            raise EmbedderRefused(
                self.model, "TRELLIS_EMBEDDER_API_KEY is empty or has characters that no header may have"
            )
        self._url = url
        self._key = key
        self._asked = dims
        self._timeout = timeout
        self._attempts = attempts
        self._patience = patience
        self._pause = pause
        self._client: PerProcess[Any] = PerProcess(self._connect)
        self._dims = dims or DIMS.get(name)

    def __repr__(self) -> str:
        return f"OpenAIEmbedder({self.name!r}, url={redact(self._url)!r})"

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
        except _TooLong as error:
            if len(texts) > 1:
                half = len(texts) // 2
                return self._batch(texts[:half], first) + self._batch(texts[half:], first + half)
            if len(texts[0]) <= SHORTEST:
                raise TextRefused(self.model, first, str(error)) from None
            return self._batch([texts[0][: len(texts[0]) // 2]], first)

    def _request(self, texts: list[str]) -> list[Any]:
        library = importlib.import_module("openai")
        client = self._client.get()
        options = {"dimensions": self._asked} if self._asked else {}
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._attempts) | _OutOfPatience(self._patience),
            wait=_wait,
            retry=tenacity.retry_if_exception(_temporary),
            sleep=self._pause,
            reraise=True,
        )
        try:
            answer = retrying(
                client.embeddings.create, model=self.name, input=texts, encoding_format="base64", **options
            )
        except library.OpenAIError as error:
            # Without its cause: the client's own message shows what an endpoint echoes, and that may be the key.
            raise self._explained(error, client) from None
        except ValueError as error:  # of the client's JSON parser
            raise EmbeddingError(self.model, f"the endpoint's answer is no JSON: {error}") from error
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

    def _connect(self) -> Any:
        library = importlib.import_module("openai")
        # An endpoint of your own must not be sent the key for OpenAI's that the environment may hold.
        key = self._key or ("none" if self._url else None)
        try:
            return library.OpenAI(
                api_key=key,
                base_url=self._url,
                max_retries=0,
                timeout=library.Timeout(self._timeout, connect=min(CONNECT_SECONDS, self._timeout)),
            )
        except library.OpenAIError:
            raise EmbedderRefused(
                self.model,
                "there is no key: set TRELLIS_EMBEDDER_API_KEY, or TRELLIS_EMBEDDER_URL for another endpoint",
            ) from None

    def _explained(self, error: Any, client: Any) -> Exception:
        """What went wrong, in our words and without the key."""
        status = getattr(error, "status_code", None)
        said = " ".join(str(error).split())
        for key in {self._key, client.api_key} - {None, ""}:
            said = said.replace(key, HIDDEN)
        said = str(redact(said))[:300]
        place = redact(str(client.base_url).rstrip("/"))
        if status in (401, 403) or (status == 429 and getattr(error, "code", None) == "insufficient_quota"):
            return EmbedderRefused(
                self.model,
                f"{place} refuses the key (HTTP {status}): correct TRELLIS_EMBEDDER_API_KEY ({said})",
            )
        if status == 404:
            return EmbedderRefused(
                self.model, f"{place} knows no model {self.name!r}, or the address is wrong: correct TRELLIS_EMBEDDER "
                f"or TRELLIS_EMBEDDER_URL ({said})"
            )  # fmt: skip
        if status == 413 or (status in (400, 422) and any(words in said.casefold() for words in _TOO_LONG)):
            return _TooLong(said)
        if status in (400, 422):
            return EmbedderRefused(self.model, f"{place} refuses the request (HTTP {status}): {said}")
        if _temporary(error):
            waits = retry_after(getattr(getattr(error, "response", None), "headers", {}))
            what = f"HTTP {status}" if status else "no answer"
            return EmbedderUnavailable(
                self.model, f"{place}: {what}, after as many tries as were allowed ({said})", waits
            )
        return EmbeddingError(self.model, f"{place}: {said}")


class _OutOfPatience(stop_base):
    """Ends the tries before a pause that would make all of them longer than so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        return retry_state.idle_for + _wait(retry_state) > self._seconds


class _TooLong(Exception):
    """The endpoint finds its input too long."""


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


def retry_after(headers: Any) -> float | None:
    """Seconds that an endpoint asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date (RFC 9110).

    A date is taken against the answer's own `Date`, so that no two clocks are compared; without one it says nothing.
    """
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(float(milliseconds) / 1000, 0.0)
        if (given := headers.get("retry-after")) is None:
            return None
        if given.strip().isdigit():
            return float(given)
        return max(
            (parsedate_to_datetime(given) - parsedate_to_datetime(headers["date"])).total_seconds(), 0.0
        )
    except (KeyError, TypeError, ValueError):
        return None


def _temporary(error: BaseException) -> bool:
    """Whether the same request may succeed later. Errors without a status are those of the connection."""
    library = importlib.import_module("openai")
    if isinstance(error, library.APIConnectionError):  # timeouts are among them
        return True
    status = getattr(error, "status_code", None)
    return status in TEMPORARY and getattr(error, "code", None) != "insufficient_quota"


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds before the next try: 0.5, 1, 2, … up to 20 with some chance in it, and never less than is asked for."""
    outcome = state.outcome
    error = outcome.exception() if outcome else None
    asked = retry_after(getattr(getattr(error, "response", None), "headers", {})) or 0.0
    return max(asked, _PAUSE(state))


def _floats(given: Any) -> Any:
    """A vector as it travels: little-endian float32 in base64, or a list, by those who do not know base64."""
    if isinstance(given, str):
        return np.frombuffer(base64.b64decode(given, validate=True), dtype="<f4")
    return np.asarray(given, dtype=np.float32)
