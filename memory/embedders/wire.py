"""What travels between callers and the workers of the embed queue: names, scripts, and the form of messages.

The law: a request lives as long as its caller waits and is taken by one worker; a worker is called when none is awake,
and not for every request. Nothing is compared with any clock but Redis' own. Texts travel as JSON, vectors as
little-endian float32, errors by their names; nothing that travels can be made to run.

    {prefix}:pending        a list of "COUNT:ID", the oldest first
    {prefix}:request:ID     the texts, until the caller gives up
    {prefix}:reply:ID       a list with the answer, read by the caller alone
    {prefix}:awake          there while a worker drains the list
    {prefix}:called         there for a moment after one was called, for the first reason
    {prefix}:crowded        and for the second: that many wait
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...tasks import errors
from ...tasks.errors import EmbedderRefused, EmbedderUnavailable, EmbeddingError, TextRefused

TASK = "trellis.embed"
UNKNOWN = "embed queue"  # the model's name in errors, before a worker has said it
AWAKE_MS = 2_000  # after this a silent worker counts as gone, and another one is called
CALLED_MS = 500  # between two calls while nobody is awake
CROWD = 4  # waiting requests for which one more worker is called, even though one is awake
CROWDED_MS = 5_000  # between two calls for that reason
PRIORITIES = ("", "\x06\x163", "\x06\x166", "\x06\x169")  # kombu's lists of a queue: those of celeryconfig.py
REPLY_MS = 60_000
PENDING_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Names:
    """The keys of a queue."""

    queue: str

    def key(self, *parts: str) -> str:
        """`trellis:embed:QUEUE:…`."""
        return ":".join(("trellis:embed", self.queue, *parts))

    @property
    def pending(self) -> str:
        """Requests that wait."""
        return self.key("pending")

    @property
    def awake(self) -> str:
        """Whether a worker drains them."""
        return self.key("awake")

    @property
    def called(self) -> str:
        """Whether one was called a moment ago."""
        return self.key("called")

    def call(self) -> tuple[list[str], list[str | int]]:
        """KEYS and ARGV of `NUDGE`, with which those of `ASK` begin."""
        celery = [self.queue + priority for priority in PRIORITIES]
        keys = [self.pending, self.awake, self.called, self.key("crowded"), *celery]
        return keys, [len(celery), CALLED_MS, CROWD, CROWDED_MS]

    def request(self, id_: str) -> str:
        """The texts of a request."""
        return self.key("request", id_)

    def reply(self, id_: str) -> str:
        """Its answer."""
        return self.key("reply", id_)


# Whether a worker is to be called. One message is enough, so none is sent while one waits in Celery's queue.
_CALL = """
local length, waits = redis.call('LLEN', KEYS[1]), 0
for place = 5, 4 + tonumber(ARGV[1]) do waits = waits + redis.call('LLEN', KEYS[place]) end
if length == 0 or waits > 0 then return 0 end
if redis.call('EXISTS', KEYS[2]) == 0 then
    return redis.call('SET', KEYS[3], '1', 'NX', 'PX', ARGV[2]) and 1 or 0
end
if length <= tonumber(ARGV[3]) then return 0 end
return redis.call('SET', KEYS[4], '1', 'NX', 'PX', ARGV[4]) and 1 or 0
"""

# For those who have waited for a while. KEYS and ARGV: `Names.call`. Answers 1 where a worker is to be called.
NUDGE = _CALL

# For those who come. KEYS: those of `Names.call`, then the requests; ARGV: those of `Names.call`, pending_ms,
# request_ms, then entry and body of each.
ASK = (
    """
local first = 4 + tonumber(ARGV[1])
for place = first + 1, #KEYS do
    local entry = 7 + 2 * (place - first - 1)
    redis.call('SET', KEYS[place], ARGV[entry + 1], 'PX', ARGV[6])
    redis.call('RPUSH', KEYS[1], ARGV[entry])
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
"""
    + _CALL
)

# KEYS pending, awake; ARGV most, awake_ms, the prefix of requests, and perhaps an entry that is taken already. Answers
# with id and body of each request taken. Requests whose callers have given up are passed over.
TAKE = """
local found, total, entry = {}, 0, ARGV[4]
redis.call('SET', KEYS[2], '1', 'PX', ARGV[2])
while true do
    if not entry then
        entry = redis.call('LINDEX', KEYS[1], 0)
        if not entry then break end
        local size = tonumber(string.match(entry, '^%d+'))
        if total > 0 and total + size > tonumber(ARGV[1]) then break end
        redis.call('LPOP', KEYS[1])
    end
    local size, id = string.match(entry, '^(%d+):(.*)$')
    local body = redis.call('GET', ARGV[3] .. id)
    if body then
        redis.call('DEL', ARGV[3] .. id)
        found[#found + 1] = id
        found[#found + 1] = body
        total = total + tonumber(size)
    end
    entry = false
    if total >= tonumber(ARGV[1]) then break end
end
return found
"""


@dataclass(frozen=True, slots=True)
class Request:
    """Texts of one caller, for the embedder that it expects."""

    id: str
    asks: str
    texts: tuple[str, ...]

    @property
    def entry(self) -> str:
        """What stands in the list of those that wait."""
        return f"{len(self.texts)}:{self.id}"

    def body(self) -> str:
        """As it travels."""
        return json.dumps({"asks": self.asks, "texts": self.texts})

    @classmethod
    def read(cls, id_: str, body: bytes) -> Request:
        """From how it travels. Raises ValueError for what is none."""
        given = json.loads(body)
        if not isinstance(given, dict) or not isinstance(given.get("asks"), str):
            raise ValueError("this is no request for vectors")
        texts = given.get("texts")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("this request has no texts")
        return cls(id_, given["asks"], tuple(texts))


@dataclass(frozen=True, slots=True)
class Reply:
    """Vectors of `model`: `count` rows of `dims` little-endian float32."""

    model: str
    dims: int
    count: int
    data: bytes

    def body(self) -> bytes:
        """As it travels: a line of JSON, then the numbers."""
        head = {"model": self.model, "dims": self.dims, "count": self.count}
        return json.dumps(head).encode() + b"\n" + self.data


def error_body(error: BaseException, model: str) -> bytes:
    """An error as it travels."""
    known = isinstance(error, EmbeddingError)
    said = {
        "type": type(error).__name__ if known else EmbeddingError.__name__,
        "model": error.model if isinstance(error, EmbeddingError) else model,
        "problem": error.problem if isinstance(error, EmbeddingError) else f"{type(error).__name__}: {error}",
        "index": error.index if isinstance(error, TextRefused) else None,
    }
    return json.dumps({"error": said}).encode() + b"\n"


def read_reply(body: bytes) -> Reply:
    """A reply from how it travels. Raises the error that it carries, EmbeddingError for what is no reply."""
    head, _, data = body.partition(b"\n")
    try:
        given = json.loads(head)
        if "error" in given:
            raise _error(given["error"])
        reply = Reply(str(given["model"]), int(given["dims"]), int(given["count"]), data)
    except (ValueError, TypeError, KeyError) as error:
        raise EmbeddingError(UNKNOWN, f"a worker's answer is none: {error!r}") from error
    if len(data) != 4 * reply.dims * reply.count:
        raise EmbeddingError(reply.model, f"a worker's answer has {len(data)} bytes for {reply.count} texts")
    return reply


def _error(said: dict[str, Any]) -> EmbeddingError:
    model, problem = str(said["model"]), str(said["problem"])
    if said["type"] == TextRefused.__name__:
        found = TextRefused(model, None, problem)
        found.index = said["index"]
        return found
    kind = getattr(errors, str(said["type"]), EmbeddingError)
    return (
        kind(model, problem)
        if kind in (EmbedderRefused, EmbedderUnavailable)
        else EmbeddingError(model, problem)
    )


def ask_arguments(
    names: Names, requests: Sequence[Request], milliseconds: int
) -> tuple[list[str], list[str | int]]:
    """KEYS and ARGV of `ASK`."""
    keys, values = names.call()
    keys += [names.request(each.id) for each in requests]
    values += [PENDING_MS, milliseconds]
    for each in requests:
        values += [each.entry, each.body()]
    return keys, values
