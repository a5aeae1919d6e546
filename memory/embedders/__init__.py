"""Texts become vectors: models in this process, endpoints elsewhere, and workers that batch for many callers.

The law: this package imports nothing heavy. numpy, torch and the clients of endpoints come with the module that
needs them, so a process that uses no memory pays for none.
"""

from .choose import embedder
from .protocol import Embedder, Vectors, aembed

__all__ = ["Embedder", "Vectors", "aembed", "embedder"]
