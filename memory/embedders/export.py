"""Makes a folder for `onnx:` from a model of sentence-transformers.

The law: the whole model is written, with its pooling, and compared with the original before anyone uses it: what an
export costs is measured on sentences and said. It needs the extras `embeddings` and `onnx`; using the folder needs the
latter.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...tasks.errors import EmbedderRefused, EmbeddingError, MissingExtra
from .onnx import MODEL_KEY, OnnxEmbedder
from .sentence import SentenceTransformerEmbedder

OPSET = 17
# What the runtime reads beside the model.
KEPT = ("tokenizer.json", "config.json", "sentence_bert_config.json", "1_Pooling/config.json")
NEAREST = {
    "float32": 0.9999,
    "int8": 0.9,
}  # the least cosine to the original that is an export and not a mistake
SENTENCES = (
    "How do I change the password of my account?",
    "The meeting was moved to Thursday, since Anna is travelling until then.",
    "ok",
    "Interest rates rose again, and so did the price of everything that is built with borrowed money; whoever had "
    "fixed theirs for ten years was glad of it, whoever had not began to look at smaller houses.",
    "Quantum error correction needs many physical qubits for one logical qubit.",
    "Ünïcödé, 数学, and \U0001f600",
)


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: the model's id, and the least and mean cosine to the original on a few sentences."""

    model: str
    file: Path
    least: float
    mean: float


def export(name: str, folder: Path, *, precision: str = "int8") -> Exported:
    """Write the model `name` (as after `sentence-transformers:`) into a folder. precision: "int8" or "float32".

    Raises MissingExtra, EmbedderRefused (no such model, a folder that holds an export, an export unlike its original).
    """
    for module in ("onnx", "onnxruntime", "tokenizers"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtra("onnx", "the export of a model")
    original = SentenceTransformerEmbedder(name)
    file = folder / ("model_int8.onnx" if precision == "int8" else "model.onnx")
    if file.exists():
        raise EmbedderRefused(original.model, f"{file} exists already: remove it, or name another folder")
    rows = original.embed(SENTENCES)
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / "model.onnx"
    _write(original.network, whole)
    source = original.weights
    for each in KEPT:
        if (source / each).is_file():
            (folder / each).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / each, folder / each)
    model = original.model
    if precision == "int8":
        _quantise(whole, file)
        whole.unlink()
        model += "@int8"
    _name(file, model)
    cosines = (OnnxEmbedder(str(file)).embed(SENTENCES) * rows).sum(axis=1)
    if float(cosines.min()) < NEAREST[precision]:
        file.unlink()
        raise EmbedderRefused(
            model, f"the export is unlike its original (cosine {float(cosines.min()):.3f}): use the original"
        )
    return Exported(model, file, float(cosines.min()), float(np.mean(cosines)))


def _write(network: Any, file: Path) -> None:
    """The network as ONNX: token ids and mask in, one vector a text out."""
    torch = importlib.import_module("torch")

    class Whole(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            features = {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": torch.zeros_like(input_ids),
            }
            return self.network(features)["sentence_embedding"]

    example = network.tokenizer(list(SENTENCES[:2]), padding=True, return_tensors="pt")
    axes = {0: "texts", 1: "tokens"}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of tracing: the result is compared afterwards
            torch.onnx.export(
                Whole().eval(),
                (example["input_ids"], example["attention_mask"]),
                str(file),
                input_names=["input_ids", "attention_mask"],
                output_names=["sentence_embedding"],
                dynamic_axes={"input_ids": axes, "attention_mask": axes, "sentence_embedding": {0: "texts"}},
                opset_version=OPSET,
                dynamo=False,
            )
    except Exception as error:  # whatever torch raises
        raise EmbeddingError(
            str(file), f"torch cannot export this model: {type(error).__name__}: {error}"
        ) from error


def _quantise(source: Path, target: Path) -> None:
    """Weights of eight bits, one scale a channel; activations are scaled as they come."""
    quantization = importlib.import_module("onnxruntime.quantization")
    logging.disable(logging.WARNING)  # it recommends what this export has no use for
    try:
        quantization.quantize_dynamic(
            str(source), str(target), weight_type=quantization.QuantType.QInt8, per_channel=True
        )
    finally:
        logging.disable(logging.NOTSET)


def _name(file: Path, model: str) -> None:
    """Write the model's id into the file."""
    onnx = importlib.import_module("onnx")
    found = onnx.load(str(file))
    entry = found.metadata_props.add()
    entry.key, entry.value = MODEL_KEY, model
    onnx.save(found, str(file))


def told(exported: Exported) -> Sequence[str]:
    """Lines for a person."""
    return (
        f"{exported.model} is in {exported.file} ({exported.file.stat().st_size / 1e6:.0f} MB)",
        f"cosine to the original: {exported.mean:.4f} on average, {exported.least:.4f} at least",
        f"use it: TRELLIS_EMBEDDER=onnx:{exported.file.parent}",
    )
