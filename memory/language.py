"""A language model behind an endpoint that speaks OpenAI's protocol: it is asked for one JSON document of a given form.

The law: an answer is believed when it is complete and has the form that was asked for; else it is an error, and nothing
is mended. What a prompt quotes travels as JSON in a message of its own, apart from the instructions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from time import sleep
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..tasks.errors import (
    AnswerUnusable,
    CompletionError,
    CompletionRefused,
    CompletionUnavailable,
    ConfigurationError,
)
from ..tasks.settings import Settings
from .embedders.names import meant
from .endpoint import Endpoint, Terms, TooLong

KIND = "openai"
_SHOWN = 200  # characters of an answer in an error

T = TypeVar("T", bound=BaseModel)


class LanguageModel:
    """A model behind an endpoint."""

    def __init__(
        self,
        name: str,
        *,
        url: str | None = None,
        key: str | None = None,
        timeout: float = 120.0,
        tokens: int = 8_192,
        attempts: int = 3,
        patience: float = 30.0,
        pause: Callable[[float], None] = sleep,
    ) -> None:
        """name: of the model, as the endpoint knows it. tokens: of one answer at most. The rest as in `Endpoint`.

        Who asks in a durable step is tried again by the engine: few attempts are enough here, to do as `Retry-After`
        says. Raises MissingExtra, CompletionRefused.
        """
        self.name = name
        self.model = f"{KIND}/{name}"
        self._tokens = tokens
        terms = Terms(
            name=name, model=self.model, purpose=f"the language model {KIND}:{name}", setting="TRELLIS_LLM",
            failed=CompletionError, refused=CompletionRefused, unavailable=CompletionUnavailable,
        )  # fmt: skip
        self._endpoint = Endpoint(
            terms, url=url, key=key, timeout=timeout, attempts=attempts, patience=patience, pause=pause
        )

    def answer(self, instructions: str, document: Any, form: type[T]) -> T:
        """What the model makes of a document (any JSON value) by the instructions.

        form: a pydantic model whose fields are all required and which forbids others, as strict schemas want it.

        Raises AnswerUnusable, CompletionRefused (key, model, address, a prompt that is too long),
        CompletionUnavailable, CompletionError.
        """
        said = json.dumps(document, ensure_ascii=False)
        try:
            answer = self._endpoint.call(
                lambda client: client.chat.completions.create(
                    model=self.name,
                    messages=[
                        {"role": "system", "content": instructions},
                        {"role": "user", "content": said},
                    ],
                    response_format=_response_format(form),
                    max_completion_tokens=self._tokens,
                )
            )
        except TooLong as error:
            raise CompletionRefused(
                self.model,
                f"it finds a prompt of {len(instructions) + len(said):,} characters too long: lower "
                f"TRELLIS_LLM_CHARACTERS ({error})",
            ) from None
        return self._read(answer, form)

    def _read(self, answer: Any, form: type[T]) -> T:
        try:
            choice = answer.choices[0]
            reason, message = choice.finish_reason, choice.message
            text, refusal = message.content, message.refusal
        except (AttributeError, IndexError, TypeError) as error:
            raise AnswerUnusable(
                self.model, f"the endpoint's answer is no chat completion: {error}"
            ) from error
        if refusal or reason == "content_filter":
            raise AnswerUnusable(self.model, f"it declined: {(refusal or reason)[:_SHOWN]}")
        if reason == "length":
            raise AnswerUnusable(
                self.model, f"its answer was cut off after {self._tokens:,} tokens (TRELLIS_LLM_TOKENS)"
            )
        try:
            return form.model_validate_json(text or "", strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the whole"
            raise AnswerUnusable(
                self.model,
                f"its answer has not the form that was asked for ({place}: {first['msg']}): {(text or '')[:_SHOWN]!r}; "
                "the endpoint has to know response_format with a json_schema",
            ) from None


def model(settings: Settings) -> LanguageModel:
    """The language model that the settings choose; one for each choice in a process.

    Raises ConfigurationError, MissingExtra, CompletionRefused. Nothing is asked yet.
    """
    key = settings.llm_api_key
    return _made(
        _name(settings.llm),
        settings.llm_url,
        None if key is None else key.get_secret_value(),
        settings.llm_timeout,
        settings.llm_tokens,
    )


check = model


@lru_cache(maxsize=8)
def _made(name: str, url: str | None, key: str | None, timeout: float, tokens: int) -> LanguageModel:
    return LanguageModel(name, url=url, key=key, timeout=timeout, tokens=tokens)


def _name(text: str | None) -> str:
    if not text or not text.strip():
        raise ConfigurationError(
            f"TRELLIS_LLM is not set: it chooses the language model, e.g. {KIND}:gpt-5-mini, with TRELLIS_LLM_URL for "
            "an endpoint of your own"
        )
    kind, _, name = text.strip().partition(":")
    if kind != KIND:
        raise ConfigurationError(
            f"TRELLIS_LLM={text!r} means nothing{meant(kind, (KIND,))}: it takes {KIND}:MODEL"
        )
    if not name.strip():
        raise ConfigurationError(f"TRELLIS_LLM={text!r} names no model: e.g. {KIND}:gpt-5-mini")
    return name.strip()


def _response_format(form: type[BaseModel]) -> dict[str, Any]:
    schema = {"name": form.__name__, "strict": True, "schema": form.model_json_schema()}
    return {"type": "json_schema", "json_schema": schema}
