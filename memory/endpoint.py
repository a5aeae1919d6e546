"""Endpoints that speak OpenAI's protocol (its own, vLLM, Ollama, llama.cpp, …): how they are reached and what they say.

The law: what may pass (429, 5xx, a lost connection) is tried again within the time given, no sooner than the endpoint
asks for; what will not pass (a key, a model, an address) is said at once, with the setting to correct. No message shows
the key, and no endpoint but OpenAI's own is sent the key for OpenAI's that the environment may hold.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import sleep
from typing import Any

import tenacity
from tenacity.stop import stop_base

from ..tasks.errors import MissingExtra
from ..tasks.redaction import HIDDEN, redact
from .embedders.perprocess import PerProcess

CONNECT_SECONDS = 5.0
TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
_PAUSE = tenacity.wait_exponential(multiplier=0.5, max=20.0) + tenacity.wait_random(0.0, 0.5)
_TOO_LONG = (
    "maximum context",
    "too long",
    "too many tokens",
    "token limit",
    "context length",
    "context size",
    "input length",
    "max_length",
)

Failure = Callable[..., Exception]


@dataclass(frozen=True, slots=True)
class Terms:
    """What an endpoint is asked for, and the errors of whoever asks.

    name: of the model, as the endpoint knows it. model: the same as errors show it. purpose: what needs the extra.
    setting: the variable that chooses the model; with _URL and _API_KEY behind it those of the address and the key.
    failed, refused, unavailable: made of (model, problem); the last one also of the seconds to wait, or None.
    """

    name: str
    model: str
    purpose: str
    setting: str
    failed: Failure
    refused: Failure
    unavailable: Failure


class TooLong(Exception):
    """The endpoint finds its input too long."""


class Endpoint:
    """One endpoint, by one client a process."""

    def __init__(
        self,
        terms: Terms,
        *,
        url: str | None,
        key: str | None,
        timeout: float,
        attempts: int,
        patience: float,
        pause: Callable[[float], None] = sleep,
    ) -> None:
        """url: up to and including `/v1`; OpenAI's own by default. key: for OpenAI's own also from OPENAI_API_KEY.

        timeout: seconds for one request. attempts: requests at most for a call, within `patience` seconds of pauses.
        Raises MissingExtra, and `terms.refused` for a key that no header may have.
        """
        if importlib.util.find_spec("openai") is None:
            raise MissingExtra("openai", terms.purpose)
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key and key):
            raise terms.refused(
                terms.model, f"{terms.setting}_API_KEY is empty or has characters that no header may have"
            )
        self.url = url
        self._terms = terms
        self._key = key
        self._timeout = timeout
        self._attempts = attempts
        self._patience = patience
        self._pause = pause
        self._client: PerProcess[Any] = PerProcess(self._connect)

    def call(self, request: Callable[[Any], Any]) -> Any:
        """What `request` gets from the client of this process.

        Raises `terms.refused`, `terms.unavailable`, `terms.failed`; TooLong for an input that is.
        """
        library = importlib.import_module("openai")
        client = self._client.get()
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._attempts) | _OutOfPatience(self._patience),
            wait=_wait,
            retry=tenacity.retry_if_exception(_temporary),
            sleep=self._pause,
            reraise=True,
        )
        try:
            return retrying(request, client)
        except library.OpenAIError as error:
            # Without its cause: the client's own message shows what an endpoint echoes, and that may be the key.
            raise self._explained(error, client) from None
        except ValueError as error:  # of the client's JSON parser
            raise self._terms.failed(
                self._terms.model, f"the endpoint's answer is no JSON: {error}"
            ) from error

    def _connect(self) -> Any:
        library = importlib.import_module("openai")
        key = self._key or ("none" if self.url else None)
        try:
            return library.OpenAI(
                api_key=key,
                base_url=self.url,
                max_retries=0,
                timeout=library.Timeout(self._timeout, connect=min(CONNECT_SECONDS, self._timeout)),
            )
        except library.OpenAIError:
            setting = self._terms.setting
            raise self._terms.refused(
                self._terms.model,
                f"there is no key: set {setting}_API_KEY, or {setting}_URL for another endpoint",
            ) from None

    def _explained(self, error: Any, client: Any) -> Exception:
        """What went wrong, in our words and without the key."""
        terms = self._terms
        status = getattr(error, "status_code", None)
        said = " ".join(str(error).split())
        for key in {self._key, client.api_key} - {None, ""}:
            said = said.replace(key, HIDDEN)
        said = str(redact(said))[:300]
        place = redact(str(client.base_url).rstrip("/"))
        if status in (401, 403) or (status == 429 and getattr(error, "code", None) == "insufficient_quota"):
            return terms.refused(
                terms.model,
                f"{place} refuses the key (HTTP {status}): correct {terms.setting}_API_KEY ({said})",
            )
        if status == 404:
            return terms.refused(
                terms.model, f"{place} knows no model {terms.name!r}, or the address is wrong: correct {terms.setting} "
                f"or {terms.setting}_URL ({said})"
            )  # fmt: skip
        if status == 413 or (status in (400, 422) and any(words in said.casefold() for words in _TOO_LONG)):
            return TooLong(said)
        if status in (400, 422):
            return terms.refused(terms.model, f"{place} refuses the request (HTTP {status}): {said}")
        if _temporary(error):
            waits = retry_after(getattr(getattr(error, "response", None), "headers", {}))
            what = f"HTTP {status}" if status else "no answer"
            return terms.unavailable(
                terms.model, f"{place}: {what}, after as many tries as were allowed ({said})", waits
            )
        return terms.failed(terms.model, f"{place}: {said}")


class _OutOfPatience(stop_base):
    """Ends the tries before a pause that would make all of them longer than so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        return retry_state.idle_for + _wait(retry_state) > self._seconds


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
