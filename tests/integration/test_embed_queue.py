"""The embed queue on a real Redis: shared passes, errors to whom they concern, and every way to lose a message."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import redis
from stack import Stack, eventually

from trellis.memory.embedders import Embedder, Vectors, choose
from trellis.memory.embedders.cache import CachingEmbedder
from trellis.memory.embedders.hashing import HashingEmbedder
from trellis.memory.embedders.link import connect
from trellis.memory.embedders.remote import RemoteEmbedder
from trellis.memory.embedders.service import Service
from trellis.memory.embedders.wire import ASK, Names, Request, ask_arguments
from trellis.tasks.errors import EmbedderRefused, EmbedderUnavailable, EmbeddingError, TextRefused

TEXTS = [f"{'word ' * (number % 7)}text {number} é" for number in range(100)]


class Model(HashingEmbedder):
    """A model that remembers its passes, and that some texts break."""

    def __init__(self, dims: int = 16) -> None:
        super().__init__(dims)
        self.passes: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.passes.append(list(texts))
        if "breaks" in texts:
            raise ZeroDivisionError("the model divides by zero")
        if "refused" in texts:
            raise TextRefused(self.model, list(texts).index("refused"), "not this one")
        if "away" in texts:
            raise EmbedderUnavailable(self.model, "the endpoint is away")
        return super().embed(texts)


class Worker:
    """The worker's side, in threads of the test; `call` stands for Celery's message."""

    def __init__(self, stack: Stack, embedder: Embedder | None = None) -> None:
        self.embedder: Any = embedder or Model()
        self.link = connect(stack.broker_url, read=5.0)
        self.service = Service(
            self.link, lambda: self.embedder, lambda asks: choose.same(asks, f"hashing:{self.embedder.dims}")
        )
        self.calls = 0
        self.threads: list[threading.Thread] = []

    def call(self) -> None:
        self.calls += 1
        self.threads.append(threading.Thread(target=self.drain))
        self.threads[-1].start()

    def drain(self, linger: float = 0.3) -> Any:
        return self.service.drain("embed", linger=linger)[0]

    def client(self, stack: Stack, **options: Any) -> RemoteEmbedder:
        return RemoteEmbedder(stack.broker_url, **{"call": self.call, "timeout": 10.0, **options})


@pytest.fixture
def worker(stack: Stack) -> Iterator[Worker]:
    made = Worker(stack)
    yield made
    for thread in made.threads:
        thread.join(10)


def keys(stack: Stack) -> list[str]:
    with redis.Redis.from_url(stack.broker_url) as client:
        return sorted(key.decode() for key in client.keys("trellis:embed:*"))


def test_vectors_are_those_of_the_workers_model_in_the_order_of_the_texts(
    stack: Stack, worker: Worker
) -> None:
    """A hundred texts are several requests, like with like; nothing is left in Redis."""
    client = worker.client(stack)
    assert (client.model, client.dims) == ("hashing-16", 16)
    assert np.array_equal(client.embed(TEXTS), HashingEmbedder(16).embed(TEXTS))
    assert max(len(each) for each in worker.embedder.passes) == 32
    assert client.embed([]).shape == (0, 16)
    for thread in worker.threads:
        thread.join(10)
    assert [key for key in keys(stack) if not key.endswith(":called")] == []


def test_callers_share_a_pass_and_a_worker_is_called_once_for_all(
    stack: Stack, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen processes' worth of callers: what waits when the worker looks goes through the model together."""
    monkeypatch.setattr(
        "trellis.memory.embedders.wire.CALLED_MS", 60_000
    )  # on a busy machine they come slowly
    called = threading.Semaphore(0)
    clients = [worker.client(stack, call=called.release) for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(client.embed, [f"text {number}"]) for number, client in enumerate(clients)]
        eventually(lambda: worker.link.llen(Names("embed").pending) == 16)
        assert called.acquire(timeout=5)
        assert not called.acquire(blocking=False)
        served = worker.drain()
        rows = np.concatenate([each.result(10) for each in answers])
    assert (served.passes, served.requests, served.texts) == (1, 16, 16)
    assert np.array_equal(rows, HashingEmbedder(16).embed([f"text {number}" for number in range(16)]))


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("breaks", EmbeddingError, "ZeroDivisionError: the model divides by zero"),
        ("refused", TextRefused, "text 2: not this one"),
    ],
)
def test_an_error_goes_to_the_caller_concerned_and_to_nobody_else(
    stack: Stack, worker: Worker, text: str, kind: type[EmbeddingError], says: str
) -> None:
    with ThreadPoolExecutor(3) as pool:
        clients = [worker.client(stack, call=lambda: None) for _ in range(3)]
        fine = [pool.submit(client.embed, [f"fine {number}"]) for number, client in enumerate(clients[:2])]
        wrong = pool.submit(clients[2].embed, ["a", "much longer", text, "b"])
        eventually(lambda: worker.link.llen(Names("embed").pending) == 3)
        worker.drain()
        with pytest.raises(kind, match=says) as caught:
            wrong.result(10)
        assert getattr(caught.value, "index", 2) == 2, "the place in the caller's own list"
        for number, each in enumerate(fine):
            assert np.array_equal(each.result(10), HashingEmbedder(16).embed([f"fine {number}"]))


def test_an_embedder_that_is_away_is_asked_once_for_all(stack: Stack, worker: Worker) -> None:
    with ThreadPoolExecutor(2) as pool:
        clients = [worker.client(stack, call=lambda: None) for _ in range(2)]
        answers = [pool.submit(client.embed, ["away"]) for client in clients]
        eventually(lambda: worker.link.llen(Names("embed").pending) == 2)
        worker.drain()
        for each in answers:
            with pytest.raises(EmbedderUnavailable, match="the endpoint is away"):
                each.result(10)
    assert len(worker.embedder.passes) == 1


def test_without_a_worker_the_error_names_the_queue_and_the_command_and_nothing_is_left(stack: Stack) -> None:
    client = RemoteEmbedder(stack.broker_url, queue="vectors", timeout=0.2, call=lambda: None)
    with pytest.raises(
        EmbedderUnavailable, match=r"listens to the queue 'vectors'.*trellis embedder"
    ) as caught:
        client.embed(["text"])
    assert "0.2 s" in str(caught.value)
    assert keys(stack) == ["trellis:embed:vectors:called"]


def test_workers_that_are_busy_are_told_apart_from_none(stack: Stack) -> None:
    with redis.Redis.from_url(stack.broker_url) as link:
        link.set(Names("embed").awake, "1")
    with pytest.raises(EmbedderUnavailable, match="did not answer within 0.2 s.*start more"):
        RemoteEmbedder(stack.broker_url, timeout=0.2, call=lambda: None).embed(["text"])


def test_texts_that_a_dying_worker_took_are_asked_for_once_more(stack: Stack, worker: Worker) -> None:
    """It takes them and falls silent, as after kill -9; the second one answers."""
    taken: list[int] = []

    def call() -> None:
        if taken:
            worker.call()
        else:
            taken.append(len(worker.service._take(Names("embed"))))
            worker.link.delete(Names("embed").awake, Names("embed").called)

    client = worker.client(stack, call=call, timeout=1.0)
    assert np.array_equal(client.embed(["text"]), HashingEmbedder(16).embed(["text"]))
    assert taken == [1]


def test_a_worker_that_always_dies_ends_the_call_with_an_error(stack: Stack, worker: Worker) -> None:
    taken: list[int] = []

    def call() -> None:
        taken.append(len(worker.service._take(Names("embed"))))
        worker.link.delete(Names("embed").awake, Names("embed").called)

    with pytest.raises(EmbedderUnavailable, match="answered within 2 s"):
        worker.client(stack, call=call, timeout=2.0).embed(["text"])
    assert [count for count in taken if count] == [1, 1]


def test_a_lost_call_is_repeated_by_whoever_waits(
    stack: Stack, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery's message may be lost with a Redis that restarts."""
    monkeypatch.setattr("trellis.memory.embedders.remote.LOOK_SECONDS", 0.05)
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        worker.link.delete(Names("embed").called)
        if len(calls) == 3:
            worker.call()

    assert len(worker.client(stack, call=call).embed(["text"])) == 1
    assert len(calls) == 3


def test_one_message_waits_for_a_worker_however_many_callers_there_are(stack: Stack, worker: Worker) -> None:
    """Without a worker nothing piles up; a message that is in Celery's queue will be found there."""
    worker.link.rpush("embed\x06\x163", "a message of Celery's")
    client = worker.client(stack, timeout=0.2)
    with pytest.raises(EmbedderUnavailable):
        client.embed(["text"])
    assert worker.calls == 0
    worker.link.delete("embed\x06\x163")
    assert len(client.embed(["text"])) == 1
    assert worker.calls == 1


def test_a_crowd_calls_one_more_worker_though_one_is_awake(stack: Stack, worker: Worker) -> None:
    """So that a second process helps; once in some seconds."""
    names = Names("embed")
    worker.link.set(names.awake, "1")
    said = []
    for number in range(10):
        asked, values = ask_arguments(names, [Request(str(number), "", ("text",))], 60_000)
        said.append(worker.link.eval(ASK, len(asked), *asked, *values))
    assert said == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]


def test_what_nobody_waits_for_any_more_is_not_computed(stack: Stack, worker: Worker) -> None:
    names = Names("embed")
    gone, waits = Request("gone", "", ("never mind",)), Request("waits", "", ("text",))
    for each, milliseconds in ((gone, 1), (waits, 60_000)):
        asked, values = ask_arguments(names, [each], milliseconds)
        worker.link.eval(ASK, len(asked), *asked, *values)
    eventually(lambda: not worker.link.exists(names.request("gone")))
    assert worker.drain(linger=0.01).texts == 1
    assert worker.embedder.passes == [["text"]]


def test_one_process_drains_once_at_a_time(stack: Stack, worker: Worker) -> None:
    """A second call finds the first at work, and ends."""
    with worker.service._turn:
        assert worker.drain().requests == 0


def test_a_worker_that_makes_room_says_that_something_is_left(stack: Stack, worker: Worker) -> None:
    asked, values = ask_arguments(Names("embed"), [Request("1", "", ("text",))], 60_000)
    worker.link.eval(ASK, len(asked), *asked, *values)
    worker.link.delete(Names("embed").called)  # as some seconds later
    served, left = worker.service.drain("embed", term=0.0)
    assert (served.requests, left) == (0, True)
    assert worker.service.drain("embed", linger=0.01)[1] is False


def test_a_worker_with_another_model_is_refused(stack: Stack, worker: Worker) -> None:
    with pytest.raises(EmbedderRefused, match=r"embedder hashing-16: .*not hashing:32.*TRELLIS_EMBEDDER"):
        worker.client(stack, asks="hashing:32").embed(["text"])
    with pytest.raises(EmbedderRefused, match="means nothing"):
        worker.client(stack, asks="hashin:32").embed(["text"])
    assert len(worker.client(stack, asks="hashing:16").embed(["text"])) == 1


def test_a_model_that_changes_under_a_caller_is_an_error_and_no_mixture(stack: Stack, worker: Worker) -> None:
    client = worker.client(stack)
    client.embed(["text"])
    worker.embedder = Model(24)
    with pytest.raises(EmbeddingError, match="serves hashing-24.*start this process again"):
        client.embed(["another"])


def test_what_is_no_request_hurts_nobody(stack: Stack, worker: Worker) -> None:
    """Whoever can write to Redis can write nonsense; never anything that runs."""
    names = Names("embed")
    for id_, body in (("a", b"\x80\x04K\x01."), ("b", b"{}")):
        worker.link.set(names.request(id_), body)
        worker.link.rpush(names.pending, f"1:{id_}")
    assert len(worker.client(stack).embed(["text"])) == 1


def test_without_redis_the_error_says_so() -> None:
    with pytest.raises(
        EmbedderUnavailable, match="Redis, which carries the queue 'embed', is away"
    ) as caught:
        RemoteEmbedder("redis://:hunter2@127.0.0.1:1/0", timeout=0.2).embed(["text"])
    assert "hunter2" not in str(caught.value)


def test_real_workers_answer_die_and_are_replaced(stack: Stack) -> None:
    """Two pools, kill -9, and callers who notice nothing but a moment; the task is called by Celery's own message."""
    settings = stack.with_settings(embedder="hashing:64", embedder_where="queue", embedder_cache_size=0,
                                   embedder_cache_seconds=0)  # fmt: skip
    client = choose.embedder(settings)
    expected = HashingEmbedder(64).embed(TEXTS)
    for number, pool in enumerate(("threads", "prefork")):
        process = _embed_worker(stack, f"embed{number}", pool)
        with ThreadPoolExecutor(4) as callers:
            for rows in callers.map(lambda _: client.embed(TEXTS), range(8)):
                assert np.array_equal(rows, expected)
        eventually(lambda process=process: "embedding.ready" in process.text())
        process.kill()


def _embed_worker(stack: Stack, name: str, pool: str, embedder: str = "hashing:64") -> Any:
    process = stack.spawn(
        name, "worker", "-n", f"{name}@test", "-c", "1", "-P", pool, "-Q", "embed", "-l", "info",
        "--without-gossip", "--without-mingle", TRELLIS_EMBEDDER=embedder,
    )  # fmt: skip
    eventually(lambda: " ready" in process.text() or process.popen.poll() is not None, 30, "worker ready")
    return process


def test_a_worker_that_cannot_embed_does_not_start_on_that_queue(stack: Stack) -> None:
    process = _embed_worker(stack, "wrong", "threads", embedder="hashin:64")
    eventually(lambda: process.popen.poll() is not None)
    assert "trellis: TRELLIS_EMBEDDER='hashin:64' means nothing (did you mean 'hashing'?)" in process.text()


def test_vectors_are_shared_by_processes_that_use_the_same_redis(stack: Stack) -> None:
    """To the last bit; and each model has its own."""
    first, second, other = Model(), Model(), Model(24)
    assert np.array_equal(
        CachingEmbedder(first, redis_url=stack.broker_url).embed(["a", "b"]),
        CachingEmbedder(second, redis_url=stack.broker_url).embed(["a", "b"]),
    )
    CachingEmbedder(other, redis_url=stack.broker_url).embed(["a"])
    assert (len(first.passes), len(second.passes), len(other.passes)) == (1, 0, 1)
    with redis.Redis.from_url(stack.broker_url) as link:
        found = link.keys("trellis:embedding:*")
        assert len(found) == 3
        assert all(0 < link.ttl(key) <= 3600 for key in found)


@pytest.mark.parametrize(
    "spoilt",
    [b"", b"x", b"\x00" * 64, b"\xff" * 64, np.ones(8, "<f4").tobytes(), np.eye(1, 8, dtype="<f4").tobytes()],
)
def test_what_redis_has_and_is_no_such_vector_is_computed_again(stack: Stack, spoilt: bytes) -> None:
    CachingEmbedder(Model(), redis_url=stack.broker_url).embed(["a", "b"])
    with redis.Redis.from_url(stack.broker_url) as link:
        link.set(link.keys("trellis:embedding:*")[0], spoilt)
    found = CachingEmbedder(Model(), redis_url=stack.broker_url).embed(["a", "b", "c"])
    assert np.array_equal(found, HashingEmbedder(16).embed(["a", "b", "c"]))
