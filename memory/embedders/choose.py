"""From settings to an embedder.

The law: a process has one embedder for each choice, made when it is first asked for. A name that means nothing is
refused with the nearest that does, before any model is loaded. What an embedder needs is imported with it, by its name,
so that this module and the worker's task cost no numpy.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...tasks.errors import ConfigurationError
from ...tasks.settings import Settings, current
from .names import DEFAULT, canonical, meant
from .perprocess import PerProcess
from .protocol import Embedder

_HERE = __name__.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Choice:
    """What TRELLIS_EMBEDDER says."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


def _sentence(choice: Choice, settings: Settings) -> Embedder:
    return _made("sentence", "SentenceTransformerEmbedder")(choice.name, threads=settings.embedder_threads)


def _openai(choice: Choice, settings: Settings) -> Embedder:
    key = settings.embedder_api_key
    return _made("openai", "OpenAIEmbedder")(
        choice.name,
        url=settings.embedder_url,
        key=None if key is None else key.get_secret_value(),
        dims=settings.embedder_dims,
        timeout=settings.embedder_timeout,
    )


def _hashing(choice: Choice, settings: Settings) -> Embedder:
    if not choice.name.isdecimal():
        raise ConfigurationError(
            f"TRELLIS_EMBEDDER={choice}: after hashing: comes a number of dimensions, e.g. hashing:384"
        )
    return _made("hashing", "HashingEmbedder")(int(choice.name))


def _onnx(choice: Choice, settings: Settings) -> Embedder:
    return _made("onnx", "OnnxEmbedder")(choice.name, threads=settings.embedder_threads)


def _made(module: str, name: str) -> Callable[..., Embedder]:
    found: Callable[..., Embedder] = getattr(importlib.import_module(f"{_HERE}.{module}"), name)
    return found


KINDS: dict[str, Callable[[Choice, Settings], Embedder]] = {
    "sentence-transformers": _sentence,
    "openai": _openai,
    "onnx": _onnx,
    "hashing": _hashing,
}
_DEFAULTS = {"sentence-transformers": DEFAULT, "hashing": "384"}

BATCHED = ("sentence-transformers", "onnx")  # an endpoint is better asked at once, and hashing has no passes


class _Made:
    """The embedders of this process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.embedders: dict[tuple[Any, ...], Embedder] = {}


_process = PerProcess(_Made)


def parse(text: str) -> Choice:
    """What a text like `sentence-transformers:all-MiniLM-L6-v2` chooses. Raises ConfigurationError."""
    kind, colon, name = text.strip().partition(":")
    if kind not in KINDS:
        if canonical(text) == canonical(DEFAULT):
            hint = f" (did you mean 'sentence-transformers:{text}'?)"
        else:
            hint = meant(kind, KINDS)
        raise ConfigurationError(
            f"TRELLIS_EMBEDDER={text!r} means nothing{hint}: it takes KIND:MODEL with a KIND of {', '.join(KINDS)}"
        )
    name = name.strip() if colon else _DEFAULTS.get(kind, "")
    if not name:
        example = {"onnx": "/models/minilm"}.get(kind, "text-embedding-3-small")
        raise ConfigurationError(f"TRELLIS_EMBEDDER={text!r} names no model: e.g. {kind}:{example}")
    return Choice(kind, name)


def same(asked: str, served: str) -> bool:
    """Whether two choices give vectors of the same model. "" asks for nothing in particular."""
    return not asked or _normal(asked) == _normal(served)


def _normal(text: str) -> str:
    choice = parse(text)
    return (
        f"{choice.kind}:{canonical(choice.name)}" if choice.kind == "sentence-transformers" else str(choice)
    )


def local(settings: Settings) -> Embedder:
    """The embedder of this process that computes by itself, or asks its endpoint.

    Raises ConfigurationError, MissingExtra, EmbedderRefused. No model is loaded yet.
    """
    choice = parse(settings.embedder)
    key = ("local", choice, settings.embedder_url, settings.embedder_api_key, settings.embedder_dims,
           settings.embedder_timeout, settings.embedder_threads)  # fmt: skip
    return _once(key, lambda: KINDS[choice.kind](choice, settings))


check = local


def embedder(settings: Settings | None = None) -> Embedder:
    """The embedder that the settings choose, with its cache: here, or behind the embed queue.

    Raises ConfigurationError, MissingExtra, EmbedderRefused.
    """
    given = settings or current()
    parse(given.embedder)
    values = given.model_dump(include={name for name in Settings.model_fields if name.startswith("embed")})
    key = ("all", given.broker_url, *values.items())
    return _once(key, lambda: _composed(given))


def _composed(settings: Settings) -> Embedder:
    inner: Embedder
    if settings.embedder_where == "queue":
        inner = _made("remote", "RemoteEmbedder")(
            settings.need_broker(),
            queue=settings.embed_queue,
            asks=settings.embedder,
            timeout=settings.embedder_timeout,
        )
    else:
        inner = local(settings)
        if parse(settings.embedder).kind in BATCHED:
            inner = _made("batching", "BatchingEmbedder")(inner)
    return _made("cache", "CachingEmbedder")(
        inner,
        size=settings.embedder_cache_size,
        redis_url=settings.broker_url,
        seconds=settings.embedder_cache_seconds,
    )


def _once(key: tuple[Any, ...], make: Callable[[], Embedder]) -> Embedder:
    made = _process.get()
    with made.lock:
        if key not in made.embedders:
            made.embedders[key] = make()
        return made.embedders[key]
