"""Weights in the order in which the processor reads them.

The law: the same products, sooner. torch multiplies by MKL, which puts the weights in order at each product; oneDNN
takes weights that were put in order once. For one text that was a quarter of the time, for eight a sixth (MiniLM, one
core of an EPYC: 12.4 and 9.2 ms; 5.4 and 4.5 ms a text). The operators are those that torch's compiler puts into a
frozen model and no public API: so who uses this compares what comes out, and takes it back where it is not what it was.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

ROWS = 128  # tokens for which the order is chosen; any other number of them may come


class Reordered:
    """The linear layers of a model, replaced where they are."""

    def __init__(self, model: Any) -> None:
        self._torch = importlib.import_module("torch")
        self._layers = [
            layer
            for layer in model.modules()
            if type(layer) is self._torch.nn.Linear and layer.weight.dtype is self._torch.float32
        ]

    def use(self) -> None:
        """Multiply by them. Raises what torch raises where it has no such operators; then `undo` is to follow."""
        operators = self._torch.ops.mkldnn
        order, multiply = operators._reorder_linear_weight, operators._linear_pointwise
        for layer in self._layers:
            ready = order(layer.weight.detach(), ROWS)
            bias = None if layer.bias is None else layer.bias.detach()
            layer.forward = partial(_product, multiply, ready, bias)

    def undo(self) -> None:
        """Multiply as before."""
        for layer in self._layers:
            vars(layer).pop("forward", None)

    def keep(self) -> None:
        """Let go of the weights in the old order: from now on the model cannot be exported.

        Whoever shares a weight with a layer (embeddings of tokens, tied to a head) keeps it.
        """
        for layer in self._layers:
            layer.weight = type(layer.weight)(layer.weight.new_empty(0), requires_grad=False)


def _product(multiply: Any, ready: Any, bias: Any, given: Any) -> Any:
    return multiply(given, ready, bias, "none", [], "")
