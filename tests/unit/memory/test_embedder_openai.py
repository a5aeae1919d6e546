"""Endpoints that speak OpenAI's protocol: the real client against a server of this test."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from email.utils import formatdate
from typing import Any

import numpy as np
import pytest
from endpoints import KEY, Answer, Endpoint

from trellis.memory.embedders.hashing import HashingEmbedder
from trellis.memory.embedders.openai import OpenAIEmbedder, batches
from trellis.memory.endpoint import retry_after
from trellis.tasks.errors import EmbedderRefused, EmbedderUnavailable, EmbeddingError, TextRefused

INNER = HashingEmbedder(16)


def vectors(texts: Sequence[str], *, encoded: bool = True) -> dict[str, Any]:
    """An answer as OpenAI gives it, its items in another order."""
    rows = INNER.embed(texts) * 3  # an endpoint may answer with any length
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.tobytes()).decode() if encoded else row.tolist(),
        }
        for index, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return {"object": "list", "model": "m", "data": list(reversed(data)), "usage": usage}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint(lambda body: (200, {}, vectors(body["input"])))
    yield made
    made.close()


def made(endpoint: Endpoint, pauses: list[float] | None = None, **options: Any) -> OpenAIEmbedder:
    return OpenAIEmbedder(
        "m", url=endpoint.url, key=KEY, pause=(pauses if pauses is not None else []).append, **options
    )


def test_vectors_come_in_the_order_of_the_texts_whatever_the_answers_order(endpoint: Endpoint) -> None:
    texts = [f"text {number}" for number in range(7)]
    rows = made(endpoint).embed(texts)
    assert np.allclose(rows, INNER.embed(texts), atol=1e-6)
    assert rows.dtype == np.float32
    assert endpoint.asked[0]["path"] == "/v1/embeddings"
    assert endpoint.headers[0]["authorization"] == f"Bearer {KEY}"


def test_an_endpoint_that_knows_no_base64_is_understood(endpoint: Endpoint) -> None:
    endpoint.usual = lambda body: (200, {}, vectors(body["input"], encoded=False))
    assert np.allclose(made(endpoint).embed(["a b", "c"]), INNER.embed(["a b", "c"]), atol=1e-6)


def test_no_texts_are_no_request(endpoint: Endpoint) -> None:
    assert made(endpoint, dims=16).embed([]).shape == (0, 16)
    assert endpoint.asked == []


def test_many_texts_are_several_requests(endpoint: Endpoint) -> None:
    texts = [f"text {number}" for number in range(300)]
    assert np.allclose(made(endpoint).embed(texts), INNER.embed(texts), atol=1e-6)
    assert [len(each["input"]) for each in endpoint.asked] == [256, 44]


def test_batches_are_bounded_by_texts_and_by_characters() -> None:
    assert [len(each) for each in batches(["a"] * 5, 2, 100)] == [2, 2, 1]
    assert [len(each) for each in batches(["a" * 60] * 4, 10, 100)] == [1, 1, 1, 1]
    assert [len(each) for each in batches(["a" * 500, "b"], 10, 100)] == [1, 1]
    assert list(batches([])) == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(endpoint: Endpoint, status: int) -> None:
    endpoint.says(status)
    endpoint.says(status)
    pauses: list[float] = []
    assert len(made(endpoint, pauses).embed(["a"])) == 1
    assert len(pauses) == 2
    assert 0.5 <= pauses[0] < pauses[1] + 0.5


def test_the_endpoint_says_how_long_to_leave_it_alone(endpoint: Endpoint) -> None:
    endpoint.says(429, headers={"retry-after": "7"})
    endpoint.says(429, headers={"retry-after-ms": "9500"})
    pauses: list[float] = []
    made(endpoint, pauses).embed(["a"])
    assert pauses == [7.0, 9.5]


def test_a_wait_beyond_our_patience_is_told_instead_of_waited(endpoint: Endpoint) -> None:
    endpoint.says(429, "slow down", headers={"retry-after": "3600"})
    pauses: list[float] = []
    with pytest.raises(EmbedderUnavailable, match="slow down") as caught:
        made(endpoint, pauses).embed(["a"])
    assert (pauses, caught.value.retry_after, len(endpoint.asked)) == ([], 3600.0, 1)


def test_tries_are_bounded(endpoint: Endpoint) -> None:
    endpoint.usual = lambda body: (503, {}, {"error": {"message": "overloaded"}})
    with pytest.raises(EmbedderUnavailable, match="HTTP 503"):
        made(endpoint, attempts=3).embed(["a"])
    assert len(endpoint.asked) == 3


def test_an_endpoint_that_is_not_there_is_unavailable(endpoint: Endpoint) -> None:
    endpoint.close()
    pauses: list[float] = []
    with pytest.raises(EmbedderUnavailable, match="no answer"):
        made(endpoint, pauses, attempts=2).embed(["a"])
    assert len(pauses) == 1


@pytest.mark.parametrize(
    ("status", "more", "says"),
    [
        (401, {}, "refuses the key"),
        (403, {}, "refuses the key"),
        (429, {"code": "insufficient_quota"}, "refuses the key"),
        (404, {}, "knows no model 'm'"),
        (400, {}, "refuses the request"),
    ],
)
def test_what_will_not_pass_is_said_at_once_and_without_the_key(
    endpoint: Endpoint, status: int, more: dict[str, str], says: str
) -> None:
    endpoint.says(status, f"Incorrect API key provided: {KEY}", **more)
    with pytest.raises(EmbedderRefused, match=says) as caught:
        made(endpoint).embed(["a"])
    error = caught.value
    shown = [str(error), repr(error), str(error.__cause__), *(str(each) for each in vars(error).values())]
    assert not any(KEY in each for each in shown)
    assert error.__suppress_context__, "the client's own error shows what the endpoint echoes"
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize("key", ["", "with space", "new\nline", "naïve"])
def test_a_key_that_no_header_may_have_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(EmbedderRefused, match="TRELLIS_EMBEDDER_API_KEY") as caught:
        OpenAIEmbedder("m", key=key)
    assert not key or key not in str(caught.value)


def test_the_key_for_openai_is_not_sent_to_other_endpoints(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    OpenAIEmbedder("m", url=endpoint.url).embed(["a"])
    assert KEY not in json.dumps(endpoint.headers)
    assert KEY not in repr(OpenAIEmbedder("m", url="http://me:hunter2@h/v1", key=KEY))
    assert "hunter2" not in repr(OpenAIEmbedder("m", url="http://me:hunter2@h/v1", key=KEY))


def test_without_any_key_the_settings_to_set_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(EmbedderRefused, match="set TRELLIS_EMBEDDER_API_KEY"):
        OpenAIEmbedder("m").embed(["a"])


def test_dimensions_are_asked_for_and_checked(endpoint: Endpoint) -> None:
    embedder = made(endpoint, dims=16)
    assert (embedder.model, embedder.dims) == ("openai/m@16", 16)
    embedder.embed(["a"])
    assert endpoint.asked[0]["dimensions"] == 16
    with pytest.raises(EmbedderRefused, match=r"16 dimensions, and 8 were expected.*TRELLIS_EMBEDDER_DIMS"):
        made(endpoint, dims=8).embed(["a"])


def test_dimensions_that_nobody_said_are_asked_once(endpoint: Endpoint) -> None:
    embedder = made(endpoint)
    assert (embedder.model, embedder.dims, embedder.dims) == ("openai/m", 16, 16)
    assert len(endpoint.asked) == 1
    assert "dimensions" not in endpoint.asked[0]


@pytest.mark.parametrize(
    "answer",
    [
        {"object": "list", "data": []},
        {"object": "list", "data": [{"index": 0, "embedding": "not base64!"}]},
        {"object": "list", "data": [{"index": 1, "embedding": [1.0]}]},
        {"object": "list", "data": [{"index": 0, "embedding": [0.0] * 16}]},
        {"object": "list", "data": [{"index": 0, "embedding": [float("nan")] * 16}]},
        {"hello": "world"},
        b"<html>a proxy</html>",
    ],
)
def test_an_answer_that_is_none_is_an_error(endpoint: Endpoint, answer: object) -> None:
    endpoint.answers.append((200, {}, answer))
    with pytest.raises(EmbeddingError):
        made(endpoint).embed(["a"])


def test_vectors_of_different_lengths_are_an_error(endpoint: Endpoint) -> None:
    data = [{"index": 0, "embedding": [1.0, 0.0]}, {"index": 1, "embedding": [1.0]}]
    endpoint.answers.append((200, {}, {"object": "list", "data": data}))
    with pytest.raises(EmbeddingError, match="different lengths"):
        made(endpoint).embed(["a", "b"])


def test_a_text_that_is_too_long_counts_by_its_beginning(endpoint: Endpoint) -> None:
    """Endpoints refuse what others cut; its neighbours do not suffer."""

    def limited(body: dict[str, Any]) -> Answer:
        if any(len(text) > 100 for text in body["input"]):
            return 400, {}, {"error": {"message": "This model's maximum context length is 25 tokens"}}
        return 200, {}, vectors(body["input"])

    endpoint.usual = limited
    long = "word " * 60
    rows = made(endpoint).embed(["short", long, "other"])
    assert np.allclose(rows, INNER.embed(["short", long[:75], "other"]), atol=1e-6)


def test_a_text_that_is_too_long_even_when_it_is_short_is_refused_with_its_place(endpoint: Endpoint) -> None:
    def limited(body: dict[str, Any]) -> Answer:
        if "odd" in body["input"]:
            return 413, {}, {"error": {"message": "too large"}}
        return 200, {}, vectors(body["input"])

    endpoint.usual = limited
    with pytest.raises(TextRefused) as caught:
        made(endpoint).embed(["a", "b", "odd", "c"])
    assert caught.value.index == 2


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "12"}, 12.0),
        ({"retry-after-ms": "250", "retry-after": "12"}, 0.25),
        (
            {"retry-after": formatdate(1_000_030, usegmt=True), "date": formatdate(1_000_000, usegmt=True)},
            30.0,
        ),
        (
            {"retry-after": formatdate(1_000_000, usegmt=True), "date": formatdate(1_000_030, usegmt=True)},
            0.0,
        ),
        ({"retry-after": formatdate(1_000_000, usegmt=True)}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "x"}, None),
    ],
)
def test_how_long_an_endpoint_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    """In seconds, milliseconds or as a date against its own clock."""
    assert retry_after(headers) == seconds
