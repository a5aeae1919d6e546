"""Folders of ONNX models: which files are meant, and what is refused. A real one is in tests/integration."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from trellis.memory.embedders.onnx import OnnxEmbedder, _pools_mean, _reads
from trellis.tasks.errors import EmbedderRefused, MissingExtra


def _folder(place: Path, *files: str) -> Path:
    for name in files:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"{}")
    return place


@pytest.mark.parametrize(
    ("files", "given", "found"),
    [
        (("model.onnx", "tokenizer.json"), "", "model.onnx"),
        (("model.onnx", "model_int8.onnx", "tokenizer.json"), "", "model_int8.onnx"),
        (("onnx/model.onnx", "tokenizer.json"), "", "onnx/model.onnx"),
        (("onnx/model_qint8_avx512_vnni.onnx", "tokenizer.json"), "onnx/model_qint8_avx512_vnni.onnx", None),
    ],
)
def test_a_folder_means_its_smallest_model_and_a_file_means_itself(
    tmp_path: Path, files: tuple[str, ...], given: str, found: str | None
) -> None:
    """As exports lie, and as repositories of the hub hold them."""
    embedder = OnnxEmbedder(str(_folder(tmp_path, *files) / given))
    assert embedder.file == tmp_path / (found or given)
    assert embedder.folder == tmp_path


@pytest.mark.parametrize(
    ("files", "given", "says"),
    [
        ((), "", "no model_int8.onnx or model.onnx.*--to-onnx"),
        (("tokenizer.json",), "", "no model_int8.onnx"),
        (("model.onnx",), "", "no tokenizer.json"),
        (("model.safetensors", "tokenizer.json"), "model.safetensors", "no model_int8.onnx"),
        (("tokenizer.json",), "nowhere", "no model_int8.onnx"),
    ],
)
def test_what_is_no_model_is_refused_before_it_is_used(
    tmp_path: Path, files: tuple[str, ...], given: str, says: str
) -> None:
    with pytest.raises(EmbedderRefused, match=says):
        OnnxEmbedder(str(_folder(tmp_path, *files) / given))


def test_a_file_that_the_runtime_does_not_read_is_refused(tmp_path: Path) -> None:
    embedder = OnnxEmbedder(str(_folder(tmp_path, "model.onnx", "tokenizer.json")))
    with pytest.raises(EmbedderRefused, match="cannot be loaded"):
        embedder.embed(["text"])


def test_how_long_and_how_it_pools_is_read_from_the_folder(tmp_path: Path) -> None:
    assert (_reads(tmp_path), _pools_mean(tmp_path)) == (512, True)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 300}')
    assert _reads(tmp_path) == 300
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
    assert (_reads(tmp_path), _pools_mean(tmp_path)) == (128, False)


def test_without_the_extra_its_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "onnxruntime" else find(name)
    )
    with pytest.raises(MissingExtra, match=r"celery-trellis\[onnx\]"):
        OnnxEmbedder(str(tmp_path))
