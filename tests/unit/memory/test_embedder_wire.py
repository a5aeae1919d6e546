"""What travels on the embed queue: JSON and numbers, and nothing that could run."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from trellis.memory.embedders.wire import Names, Reply, Request, error_body, read_reply
from trellis.tasks.errors import EmbedderRefused, EmbedderUnavailable, EmbeddingError, TextRefused


def test_a_request_comes_back_as_it_was() -> None:
    request = Request("1f", "hashing:8", ("naïve \x00 “text”", "", "\U0001f600"))
    assert Request.read("1f", request.body().encode()) == request
    assert request.entry == "3:1f"


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"asks": 1, "texts": []}', b'{"asks": "", "texts": "one"}', pickle.dumps(["a"])],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of json or of ours
        Request.read("1f", body)


def test_vectors_come_back_to_the_last_bit() -> None:
    rows = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    reply = read_reply(Reply("m", 5, 3, rows.astype("<f4").tobytes()).body())
    assert (reply.model, reply.dims, reply.count) == ("m", 5, 3)
    assert np.array_equal(np.frombuffer(reply.data, "<f4").reshape(3, 5), rows)


def test_numbers_that_look_like_a_new_line_are_numbers() -> None:
    data = b"\n\n\n\n" * 2
    assert read_reply(Reply("m", 2, 1, data).body()).data == data


@pytest.mark.parametrize(
    "error",
    [
        EmbeddingError("m", "p"),
        TextRefused("m", 3, "p"),
        EmbedderRefused("m", "p"),
        EmbedderUnavailable("m", "p"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_back_as_what_it_was(error: EmbeddingError) -> None:
    with pytest.raises(EmbeddingError) as caught:
        read_reply(error_body(error, "elsewhere"))
    assert type(caught.value) is type(error)
    assert (str(caught.value), getattr(caught.value, "index", None)) == (
        str(error),
        getattr(error, "index", None),
    )


def test_any_other_error_comes_back_as_one_of_embedding() -> None:
    with pytest.raises(EmbeddingError, match="embedder m: ZeroDivisionError: by zero") as caught:
        read_reply(error_body(ZeroDivisionError("by zero"), "m"))
    assert type(caught.value) is EmbeddingError


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}\n",
        b'{"model": "m", "dims": 2, "count": 2}\n1234',
        b'{"error": {"type": "SystemExit"}}\n',
        pickle.dumps("x"),
        b"[]\n",
    ],
)
def test_what_is_no_reply_is_an_error(body: bytes) -> None:
    with pytest.raises(EmbeddingError):
        read_reply(body)


def test_an_error_cannot_name_a_class_that_is_none_of_ours() -> None:
    body = b'{"error": {"type": "RunFailed", "model": "m", "problem": "p", "index": null}}\n'
    with pytest.raises(EmbeddingError) as caught:
        read_reply(body)
    assert type(caught.value) is EmbeddingError


def test_queues_share_no_keys() -> None:
    first, second = Names("a"), Names("b")
    assert {first.pending, first.awake, first.called, first.request("1"), first.reply("1")}.isdisjoint(
        {second.pending, second.awake, second.called, second.request("1"), second.reply("1")}
    )
