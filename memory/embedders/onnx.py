"""Models in ONNX, on onnxruntime: without torch, and with weights of eight bits several times faster on CPUs.

The law: a model of eight bits is another model than its original, with an id of its own (`…@int8`): vectors of both are
near each other, and are not mixed. With 32 bits it is the original, under the original's id.

What eight bits cost and gain is in docs/howto/embeddings.md; `export.py` makes such a folder.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...tasks.errors import EmbedderRefused, EmbeddingError, MissingExtra
from .passes import passes
from .perprocess import PerProcess
from .protocol import Vectors, checked
from .vectors import unit

MODEL_KEY = "trellis.model"  # of the file's own metadata
READS = 40  # characters for each token that the model reads: a tokenizer reads all before it cuts
LETTERS = 5  # in a token, as a rule
FIXED = 60  # characters of padding that are worth a pass of their own: onnxruntime begins one quickly


class OnnxEmbedder:
    """A model in ONNX in this process."""

    def __init__(self, place: str, *, threads: int = 1) -> None:
        """place: a folder with `tokenizer.json` and `model.onnx` (there or in `onnx`), or one such file below it.

        threads: of onnxruntime, in this process. Raises MissingExtra, EmbedderRefused (no such files).
        """
        for module in ("onnxruntime", "tokenizers"):
            if importlib.util.find_spec(module) is None:
                raise MissingExtra("onnx", f"the embedder onnx:{place}")
        self.file, self.folder = _files(Path(place).expanduser())
        self._threads = threads
        self._loaded = PerProcess(self._load)

    def __repr__(self) -> str:
        return f"OnnxEmbedder({str(self.file)!r})"

    @property
    def model(self) -> str:
        """What the file says of itself; else `local/` and the beginning of its sha256. Loads the model."""
        return self._loaded.get().model

    @property
    def dims(self) -> int:
        """Numbers in a vector. Loads the model."""
        return self._loaded.get().dims

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of the texts. A text that is longer than the model reads counts by its beginning.

        Raises TextRefused, EmbedderRefused where the model cannot be loaded, EmbeddingError.
        """
        loaded = self._loaded.get()
        found = checked(texts, loaded.model)
        return unit(loaded.encode(found), len(found), loaded.dims, loaded.model)

    def _load(self) -> _Loaded:
        try:
            return _Loaded(self.file, self.folder, self._threads)
        except Exception as error:  # whatever onnxruntime or a tokenizer raises
            raise EmbedderRefused(
                str(self.file), f"it cannot be loaded: {type(error).__name__}: {error}"
            ) from error


class _Loaded:
    """A model in memory. One pass at a time: a tokenizer that two threads use at once raises `Already borrowed`."""

    def __init__(self, file: Path, folder: Path, threads: int) -> None:
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        self._session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.model = metadata.get(MODEL_KEY) or f"local/{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
        self._reads = _reads(folder)
        self._mean = _pools_mean(folder)
        self._tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(
            str(folder / "tokenizer.json")
        )
        self._tokenizer.enable_truncation(self._reads)
        self._tokenizer.enable_padding()
        self._inputs = [each.name for each in self._session.get_inputs()]
        self._turn = threading.Lock()
        self.dims = int(self._pass(["dimensions"]).shape[1])

    def encode(self, texts: list[str]) -> Vectors:
        """Vectors of any length."""
        cut = [text[: READS * self._reads] for text in texts]
        rows = np.empty((len(cut), self.dims), dtype=np.float32)
        for places in passes([min(len(text), LETTERS * self._reads) for text in cut], fixed=FIXED):
            try:
                rows[places] = self._pass([cut[place] for place in places])
            except Exception as error:  # whatever onnxruntime or a tokenizer raises
                raise EmbeddingError(self.model, f"{type(error).__name__}: {error}") from error
        return rows

    def _pass(self, texts: list[str]) -> Any:
        with self._turn:
            tokens = self._tokenizer.encode_batch(texts)
            mask = np.array([each.attention_mask for each in tokens], dtype=np.int64)
            values = {
                "input_ids": np.array([each.ids for each in tokens], dtype=np.int64),
                "attention_mask": mask,
                "token_type_ids": np.zeros_like(mask),
            }
            (found, *_) = self._session.run(None, {name: values[name] for name in self._inputs})
        if found.ndim == 2:  # pooled by the model
            return found
        if not self._mean:
            return found[:, 0]
        weights = mask[:, :, None].astype(np.float32)
        return (found * weights).sum(axis=1) / weights.sum(axis=1)


def _files(place: Path) -> tuple[Path, Path]:
    """The model's file, and the folder of its tokenizer. Raises EmbedderRefused."""
    if place.is_dir():
        known = [
            file
            for each in (place, place / "onnx")
            for file in (each / "model_int8.onnx", each / "model.onnx")
        ]
        file = next((file for file in known if file.is_file()), None)
    else:
        file = place if place.is_file() and place.suffix == ".onnx" else None
    if file is None:
        raise EmbedderRefused(
            str(place),
            "there is no model_int8.onnx or model.onnx: give such a file or its folder, or make one: "
            "`trellis embedder --to-onnx FOLDER`",
        )
    for folder in (file.parent, file.parent.parent):
        if (folder / "tokenizer.json").is_file():
            return file, folder
    raise EmbedderRefused(str(file), "there is no tokenizer.json beside it, nor in the folder above")


def _said(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text()) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def _reads(folder: Path) -> int:
    """Tokens that the model reads, as its folder says it."""
    length = _said(folder / "sentence_bert_config.json").get("max_seq_length")
    return int(length or _said(folder / "config.json").get("max_position_embeddings") or 512)


def _pools_mean(folder: Path) -> bool:
    """Whether a model that gives a vector for each token is pooled by the mean; else by the first token."""
    return not _said(folder / "1_Pooling" / "config.json").get("pooling_mode_cls_token", False)
