"""The embedder that knows no meaning: the protocol, and what other tests rely on."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from trellis.memory.embedders import Embedder
from trellis.memory.embedders.hashing import HashingEmbedder
from trellis.memory.embedders.vectors import unit
from trellis.tasks.errors import ConfigurationError, EmbeddingError, TextRefused

TEXTS = [
    "Anna plays the violin",
    "anna PLAYS the violin!",
    "The harbour is frozen",
    "",
    "\x00 …",
    "ⅷ ﬁsh",
    "x" * 300_000,
]


def test_it_is_an_embedder_that_says_what_it_is() -> None:
    embedder = HashingEmbedder(64)
    assert isinstance(embedder, Embedder)
    assert (embedder.model, embedder.dims) == ("hashing-64", 64)
    assert "no meaning" in (HashingEmbedder.__doc__ or "")


@pytest.mark.parametrize("dims", [8, 64, 384, 4000])
def test_vectors_are_float32_of_length_one_in_the_order_of_the_texts(dims: int) -> None:
    """Empty texts, control characters and long texts as well."""
    embedder = HashingEmbedder(dims)
    rows = embedder.embed(TEXTS)
    assert (rows.dtype, rows.shape) == (np.dtype(np.float32), (len(TEXTS), dims))
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
    for text, row in zip(TEXTS, rows, strict=True):
        assert np.array_equal(embedder.embed([text])[0], row), "its neighbours do not matter"


def test_no_texts_are_no_vectors() -> None:
    assert HashingEmbedder(16).embed([]).shape == (0, 16)


def test_texts_that_share_words_or_pieces_of_words_are_nearer_than_others() -> None:
    about = HashingEmbedder().embed(
        ["the violin of Anna", "Anna has a violin", "three violinists", "rain falls on Kiel"]
    )
    same, piece, other = (float(about[0] @ row) for row in about[1:])
    assert same > piece > other
    assert abs(other) < 0.3


def test_case_and_forms_of_a_letter_do_not_matter() -> None:
    first, second = HashingEmbedder().embed(["ﬁne Ⅷ STRASSE", "FINE viii straße"])
    assert float(first @ second) > 0.999


def test_the_vector_of_a_text_is_the_same_in_every_process() -> None:
    """Python's own hashes differ between processes; rows of yesterday's process are searched today."""
    program = (
        "from trellis.memory.embedders.hashing import HashingEmbedder\n"
        "print(HashingEmbedder(32).embed(['Anna plays the violin']).tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == HashingEmbedder(32).embed(["Anna plays the violin"]).tobytes().hex()


@pytest.mark.parametrize("dims", [0, 7, 4001, True, "64", 1.5])
def test_dimensions_that_pgvector_cannot_index_are_refused(dims: object) -> None:
    with pytest.raises(ConfigurationError, match="8 to 4,000"):
        HashingEmbedder(dims)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "index", "says"),
    [
        (["fine", "half a pair \ud83d"], 1, "character 12"),
        (["fine", None], 1, "NoneType"),
        ([b"bytes"], 0, "bytes"),
        ("one text", None, "list of texts"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(texts: object, index: int | None, says: str) -> None:
    with pytest.raises(TextRefused, match=says) as caught:
        HashingEmbedder().embed(texts)  # type: ignore[arg-type]
    assert (caught.value.index, caught.value.model) == (index, "hashing-384")


@pytest.mark.parametrize(
    "rows", [[[1.0, 2.0]], [[1.0], [2.0]], [[0.0, 0.0], [1.0, 0.0]], [[float("nan"), 1.0], [1.0, 0.0]], []]
)
def test_no_wrong_shape_and_no_row_without_a_direction_leaves_an_embedder(rows: object) -> None:
    with pytest.raises(EmbeddingError, match="embedder m: "):
        unit(rows, 2, 2, "m")


def test_lengths_of_large_and_small_numbers_come_out_right() -> None:
    rows = unit([[3e20, 4e20], [3e-22, 4e-22]], 2, 2, "m")
    assert np.allclose(rows, [[0.6, 0.8], [0.6, 0.8]], atol=1e-6)
