"""Several texts through a transformer as one sequence, so that nothing is padded.

The law: the vectors are those of the library's own way. Positions begin anew with each text, and a mask lets no text
look at another one. Whether a model takes that (absolute or rotary positions from `position_ids`, a mask of its own
for each pair of tokens) is tried with it: where a probe comes out otherwise, or on a GPU, which pads at no cost, its
texts go the library's way.

Packing with a block-diagonal mask: Krell et al. 2021, arXiv:2107.02027. MiniLM on one core, texts of 3 to 40 words:
8.7 ms a text in padded passes of eight, 5.3 packed.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from ...tasks.logs import get_logger
from .protocol import Vectors
from .reordered import Reordered

TOKENS = 512  # in a sequence: attention costs the square of it, all else the same for each token
NEAR = 1e-4  # how far a number of a unit vector may be from the library's
# Of different lengths, so that padding, positions or a neighbour that is looked at would show.
PROBE = (
    "two words",
    "a probe of the attention within each text and of its positions: " + "one more word " * 12,
    "x",
)

log = get_logger("trellis.memory")


class Packer:
    """The way through one model, for one thread at a time."""

    def __init__(self, network: Any) -> None:
        self._torch = importlib.import_module("torch")
        self._first, *self._after = list(network)
        self._prepared = getattr(network, "preprocess", None) or network.tokenize

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of the texts, as the model's last module gives them. Raises what the model raises."""
        torch = self._torch
        with torch.inference_mode():
            features = self._prepared(list(texts))
            features["token_embeddings"] = self._hidden(features)
            for module in self._after:
                features = module(features)
            rows: Vectors = features["sentence_embedding"].float().numpy()
        return rows

    def _hidden(self, features: dict[str, Any]) -> Any:
        """What the transformer makes of each token, padded again: the modules behind it know no other shape."""
        torch = self._torch
        real = features["attention_mask"].bool()
        text = real.nonzero()[:, 0]
        never = torch.finfo(torch.float32).min
        columns = {
            "input_ids": features["input_ids"][real],
            "position_ids": (real.cumsum(1) - 1)[real],
            **({"token_type_ids": features["token_type_ids"][real]} if "token_type_ids" in features else {}),
        }
        found = []
        for start, end in packs(real.sum(1).tolist()):
            whose = text[start:end]
            pairs = torch.where(whose[:, None] == whose[None, :], 0.0, never)[None, None]
            given = {name: column[start:end][None] for name, column in columns.items()}
            found.append(self._first.auto_model(**given, attention_mask=pairs, return_dict=True)[0][0])
        rows = torch.cat(found)
        padded = rows.new_zeros(*real.shape, rows.shape[1])
        padded[real] = rows
        return padded


def packs(lengths: Sequence[int], most: int = TOKENS) -> list[tuple[int, int]]:
    """Where sequences of whole texts begin and end, in tokens: at most `most` in each, but for a longer text alone."""
    found: list[tuple[int, int]] = []
    for length, end in zip(lengths, accumulate(lengths), strict=True):
        if found and end - found[-1][0] <= most:
            found[-1] = found[-1][0], end
        else:
            found.append((end - length, end))
    return found


def packer(network: Any) -> Packer | None:
    """The way for a sentence-transformers model; None where it has to go the library's."""
    if network.device.type != "cpu" or getattr(network, "default_prompt_name", None) is not None:
        return None
    usual = network.encode(
        list(PROBE), batch_size=len(PROBE), show_progress_bar=False, normalize_embeddings=True
    )
    try:
        made = Packer(network)
        apart = _apart(made, usual)
    except Exception as error:  # whatever a model raises that knows no such arguments
        log.debug("embedding.unpacked", problem=f"{type(error).__name__}: {error}")
        return None
    if not apart <= NEAR:
        log.debug("embedding.unpacked", apart=apart)
        return None
    _reorder(network, made, usual)
    return made


def _reorder(network: Any, made: Packer, usual: Vectors) -> None:
    """Multiply by weights in their best order, where this torch can and the vectors stay what they are."""
    reordered = Reordered(network)
    try:
        reordered.use()
        apart = _apart(made, usual)
        problem = None if apart <= NEAR else f"the vectors are {apart:g} apart"
    except Exception as error:  # private operators, which another torch may not have
        problem = f"{type(error).__name__}: {error}"
    if problem is None:
        reordered.keep()
    else:
        reordered.undo()
        log.debug("embedding.unordered", problem=problem)


def _apart(made: Packer, usual: Vectors) -> float:
    """How far the vectors of the probe are from the library's; of another shape: infinitely."""
    rows = made.encode(PROBE)
    if rows.shape != usual.shape:
        return float("inf")
    return float(np.abs(rows / np.linalg.norm(rows, axis=1, keepdims=True) - usual).max())
