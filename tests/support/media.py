"""A Celery application that knows nothing of Trellis: its own queue, its own settings."""

import datetime
import json
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery

app = Celery("media", broker=os.environ["MEDIA_BROKER"], backend=os.environ.get("MEDIA_BACKEND") or None)
app.conf.task_default_queue = "media"
app.conf.broker_transport_options = {"socket_connect_timeout": 5}


def _note(task: Any, *words: object) -> None:
    with Path(os.environ["MEDIA_LEDGER"]).open("a") as ledger:
        ledger.write(" ".join([task.name, task.request.id, *map(str, words)]) + "\n")


@app.task(name="media.tasks.resize", bind=True)
def resize(self: Any, image: str, width: int = 100) -> dict[str, Any]:
    _note(self, image, width)
    return {"image": image, "width": width}


@app.task(name="media.tasks.heard", bind=True)
def heard(self: Any, *words: Any) -> Any:
    """Leaves what it was called with, and says it again."""
    _note(self, json.dumps(words, separators=(",", ":")))
    return words[0] if words else None


@app.task(name="media.tasks.failed", bind=True)
def failed(self: Any, *words: Any) -> None:
    """An errback: of old, so it hears the id of the task alone."""
    _note(self, json.dumps(words, separators=(",", ":")))


@app.task(name="media.tasks.dated", bind=True)
def dated(self: Any) -> list[Any]:
    return [datetime.date(2026, 11, 20)]


@app.task(name="media.tasks.broken", bind=True)
def broken(self: Any) -> None:
    _note(self)
    raise ValueError("broken pixel in s3://user:secret@host/x")


@app.task(name="media.tasks.odd", bind=True)
def odd(self: Any) -> set[int]:
    _note(self)
    return {1, 2}


@app.task(name="media.tasks.large", bind=True)
def large(self: Any) -> str:
    _note(self)
    return "x" * 2_000_000


@app.task(name="media.tasks.again", bind=True, max_retries=3)
def again(self: Any) -> int:
    _note(self, self.request.retries)
    if self.request.retries < 1:
        raise self.retry(countdown=0)
    return int(self.request.retries)


@app.task(name="media.tasks.until", bind=True)
def until(self: Any, file: str) -> str:
    _note(self)
    while not Path(file).exists():
        time.sleep(0.01)
    return file
