"""An embedder that knows no meaning: signed feature hashing of words and of pieces of words.

The law: the vector of a text is a pure function of its characters, the same in every process, on every machine, with no
model to load. Texts that share words or pieces of words are near each other, and that is all: `car` and `automobile`
are as strange to each other as any two words. It is there for tests, and for search by likeness of spelling.

The hashing trick with signs, so that collisions cancel on average: Weinberger et al., "Feature Hashing for Large
Scale Multitask Learning", 2009. The mixing of bits is the finisher of splitmix64 (Steele, Lea, Flood, 2014).
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...tasks.errors import ConfigurationError
from .protocol import Vectors, checked
from .vectors import unit

READS = 10_000  # characters; like any model, it reads the beginning of a long text
DIMS = (8, 4000)  # pgvector indexes no halfvec of more
PIECES = (3, 4, 5)  # characters in a piece of a word
_PAIR, _WORD, _PIECE = 0.7, 1.0, 0.35  # a word in common says more than three letters of it
_WORDS = re.compile(r"\w+")
_BASE = np.uint64(1_099_511_628_211)  # an odd multiplier, that of FNV-1a
_ONE, _TOP = np.uint64(1), np.uint64(63)

Hashes = NDArray[np.uint64]


class HashingEmbedder:
    """Vectors by hashing of words and pieces of words; it knows no meaning. For tests."""

    def __init__(self, dims: int = 384) -> None:
        """dims: numbers in a vector, 8 to 4000. Raises ConfigurationError."""
        if isinstance(dims, bool) or not isinstance(dims, int) or not DIMS[0] <= dims <= DIMS[1]:
            raise ConfigurationError(f"hashing:{dims}: dims is a whole number from {DIMS[0]} to {DIMS[1]:,}")
        self.dims = dims
        self.model = f"hashing-{dims}"

    def __repr__(self) -> str:
        return f"HashingEmbedder({self.dims})"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of the texts, by their first 10,000 characters. Raises TextRefused."""
        found = checked(texts, self.model)
        rows = np.zeros((len(found), self.dims), dtype=np.float64)
        for row, text in zip(rows, found, strict=True):
            row += self._row(text)
        return unit(rows, len(found), self.dims, self.model)

    def _row(self, text: str) -> NDArray[np.float64]:
        """One vector, of any length but none."""
        words = _WORDS.findall(unicodedata.normalize("NFKC", text[:READS]).casefold())
        if not words:  # a text without a word has a direction as well, the same for all such texts
            return self._axis()
        singles = np.fromiter((zlib.crc32(word.encode()) for word in words), np.uint64, len(words))
        codes = np.frombuffer(f" {' '.join(words)} ".encode("utf-32-le"), np.uint32).astype(np.uint64)
        kinds = [
            singles,
            singles[:-1] * _BASE + singles[1:] + _ONE,
            *(_pieces(codes, size) for size in PIECES),
        ]
        weights = np.repeat([_WORD, _PAIR, *[_PIECE] * len(PIECES)], [len(kind) for kind in kinds])
        found, first, counts = np.unique(_mixed(np.concatenate(kinds)), return_index=True, return_counts=True)
        # The sign is a bit that the place does not use. The n-th of a kind counts less than the first: 1 + log n.
        values = np.where(found >> _TOP, 1.0, -1.0) * weights[first] * (1.0 + np.log(counts))
        row = np.zeros(self.dims)
        np.add.at(row, (found % np.uint64(self.dims)).astype(np.int64), values)
        return row if row.any() else self._axis()

    def _axis(self) -> NDArray[np.float64]:
        row = np.zeros(self.dims)
        row[0] = 1.0
        return row


def _pieces(codes: Hashes, size: int) -> Hashes:
    """A hash of each run of `size` characters, its length included; arithmetic is modulo 2^64."""
    count = max(len(codes) - size + 1, 0)
    found = np.full(count, size, dtype=np.uint64)
    for offset in range(size):
        found = found * _BASE + codes[offset : offset + count]
    return found


def _mixed(hashes: Hashes) -> Hashes:
    found = hashes + np.uint64(0x9E3779B97F4A7C15)
    found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return found ^ (found >> np.uint64(31))
