"""From ready steps to Celery messages.

The law: a message is a hint. It names a run and some of its steps, never carries data, and losing it, or
sending it twice, costs time and nothing else. The frontier of a run goes out as one Celery group, written
to the broker in one pipeline; a member is a bundle: 1…k steps of the same action, queue and priority,
under the action's own task name, so that Flower shows what runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import Any, NamedTuple
from uuid import uuid4

from celery import Celery
from kombu.exceptions import BatchPublishError, OperationalError
from redis.exceptions import RedisError

from ..tasks.logs import get_logger
from ..tasks.settings import Settings
from ..tasks.transport import HINT
from .durations import Durations, bundle_size
from .ranks import CROWD
from .records import Ready, Span

BUNDLE = "trellis_bundle"  # the argument of a bundle's message
RANKED = (
    "trellis_ranked"  # and the queue, where it is a right to the most urgent steps there instead of to these
)
# A batch whose write broke is an error of its own, whatever it broke with.
BROKER_GONE = (OperationalError, BatchPublishError, RedisError, OSError)
_PIPELINE = 500  # messages in one write to the broker

log = get_logger("trellis.dispatch")


def pack(ids: Sequence[int]) -> list[int]:
    """Sorted ids as runs: [first, count, first, count, …]. A frontier's ids are mostly neighbours."""
    packed: list[int] = []
    for idx in ids:
        if packed and packed[-2] + packed[-1] == idx:
            packed[-1] += 1
        else:
            packed += (idx, 1)
    return packed


def unpack(packed: Sequence[int]) -> list[int]:
    """The ids that `pack` packed."""
    return [
        idx
        for first, count in zip(packed[::2], packed[1::2], strict=True)
        for idx in range(first, first + count)
    ]


def parts(ranked: Iterable[Ready], budget_ms: float, limit: int) -> Iterator[list[Ready]]:
    """Ranked steps in their order, as the messages that announce them: pure.

    Short neighbours share one, as far as their time fits the budget; what is slow or unknown has its own.
    """
    part: list[Ready] = []
    left = budget_ms
    for step in ranked:
        ms = budget_ms if step.expect is None else step.expect * 1000.0
        if part and (ms > left or len(part) >= limit):
            yield part
            part, left = [], budget_ms
        part.append(step)
        left -= ms
    if part:
        yield part


def is_ranked(step: Ready) -> bool:
    """Whether its message is a right to the most urgent step; one that took a worker down is called by its name."""
    return step.rank is not None and not step.alone


class _Message(NamedTuple):
    """One bundle."""

    action: str
    queue: str
    priority: int
    ranked: bool
    shown: str
    packed: list[int]
    delay: float = 0.0  # seconds until it may be worked on


def _message(bundle: list[Ready]) -> _Message:
    first = bundle[0]
    shown = first.name if len(bundle) == 1 else f"{first.name} … {bundle[-1].name} ({len(bundle)} steps)"
    packed = pack([step.idx for step in bundle])
    return _Message(first.action, first.queue, first.priority, is_ranked(first), shown, packed, first.delay)


def _fitting(expect: float | None, budget_ms: float, limit: int) -> int:
    """How many steps that are expected to take `expect` seconds share a message, by the rule of `parts`."""
    if expect is None:
        return 1
    return max(1, min(limit, int(budget_ms / (expect * 1000.0)) if expect > 0 else limit))


class Dispatcher:
    """Publishes ready steps."""

    def __init__(self, app: Celery, settings: Settings, durations: Durations) -> None:
        self.app = app
        self._settings = settings
        self._durations = durations

    def publish(self, run: str, workflow: str, ready: Iterable[Ready]) -> int:
        """Announce ready steps of one run; answers with the number of messages.

        A broker that cannot be reached is no error: the steps are in the journal, and the tick publishes
        them again as soon as it can.
        """
        return self._publish(run, workflow, map(_message, self._bundles(ready)))

    def pass_on(self, run: str, workflow: str, like: Ready, idx: Sequence[int]) -> int:
        """Announce the rights that are left of a message: to ranked steps of the queue and priority of `like`."""
        left = [like._replace(idx=each) for each in idx]
        return self._publish(run, workflow, iter([_message(left)] if left else []))

    def publish_spans(self, run: str, workflow: str, spans: Iterable[Span]) -> int:
        """The same for ranges of ready steps, which are never held one by one."""
        return self._publish(run, workflow, self._slices(spans))

    def _publish(self, run: str, workflow: str, messages: Iterator[_Message]) -> int:
        first = next(messages, None)
        if first is None:
            return 0
        group = str(uuid4())
        sent = 0
        try:
            with self.app.producer_or_acquire() as producer, producer.batch(max_size=_PIPELINE):
                for message in chain((first,), messages):
                    self._send(producer, run, workflow, group, message)
                    sent += 1
        except BROKER_GONE as error:
            log.warning("publish.failed", run=run, messages=sent, error=str(error))
            return 0
        return sent

    def _slices(self, spans: Iterable[Span]) -> Iterator[_Message]:
        for span in spans:
            size = self._size(span.action)
            if span.ranked:
                size = _fitting(span.expect, self._settings.ahead_ms, self._most(span.many))
            for start in range(0, span.many, size):
                many = min(size, span.many - start)
                shown = f"{span.name}[{start}]"
                if many > 1:
                    shown = f"{shown} … {span.name}[{start + many - 1}] ({many} steps)"
                packed = [span.first + start, many]
                yield _Message(span.action, span.queue, span.priority, span.ranked, shown, packed)

    def _most(self, crowd: int) -> int:
        """How many of so many ranked steps share a message at most."""
        return min(self._settings.bundle_max, max(1, crowd // CROWD)) if self._settings.bundle_ms > 0 else 1

    def _size(self, action: str) -> int:
        mean = self._durations.mean_ms(action)
        return bundle_size(mean, self._settings.bundle_ms, self._settings.bundle_max)

    def _bundles(self, ready: Iterable[Ready]) -> Iterator[list[Ready]]:
        # Highest priority first, since within one queue messages of equal Redis priority are served in order.
        def kind(step: Ready) -> tuple[int, str, str, bool, float]:
            if is_ranked(step):
                return (-step.priority, step.queue, "", False, 0.0)
            return (-step.priority, step.queue, step.action, step.alone, step.delay)

        def place(step: Ready) -> tuple[int, str, str, bool, float, float, int]:
            return (*kind(step), -(step.rank or 0.0), step.idx)

        for (_, _, action, alone, delay), members in groupby(sorted(ready, key=place), kind):
            if not action:
                steps = list(members)
                yield from parts(steps, self._settings.ahead_ms, self._most(len(steps)))
                continue
            size = 1 if alone or delay else self._size(action)
            steps = list(members)
            for start in range(0, len(steps), size):
                yield steps[start : start + size]

    def _send(self, producer: Any, run: str, workflow: str, group: str, bundle: _Message) -> None:
        content: dict[str, Any] = {BUNDLE: [run, bundle.packed]}
        shown = bundle.shown
        if bundle.ranked:
            content[RANKED] = bundle.queue
            shown += ", or what is more urgent by then"
        amqp = self.app.amqp
        message = amqp.as_task_v2(
            str(uuid4()),
            bundle.action,
            (),
            content,
            group_id=group,
            root_id=run,
            countdown=bundle.delay or None,
            ignore_result=True,
            argsrepr=f"{workflow}: {shown}",
            kwargsrepr=f"run={run}",
        )
        message.headers[HINT] = True
        # Priority 9 is the highest here, 0 is the highest on Redis.
        amqp.send_task_message(
            producer, bundle.action, message, queue=bundle.queue, priority=9 - bundle.priority, retry=False
        )

    def mean_ms(self, action: str) -> float | None:
        """The measured mean milliseconds of an action; None where there is none."""
        return self._durations.mean_ms(action)

    @property
    def value_limit(self) -> int:
        """Bytes that a value may have which travels."""
        return self._settings.value_max_bytes

    def call(
        self,
        task: str,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        queue: str,
        priority: int | None,
        run: str,
        callbacks: Sequence[Any],
        errbacks: Sequence[Any],
    ) -> bool:
        """Send a task of some application by its name; False where the broker cannot be reached."""
        amqp = self.app.amqp
        message = amqp.as_task_v2(
            task,
            name,
            list(args),
            dict(kwargs),
            root_id=run,
            callbacks=list(callbacks),
            errbacks=list(errbacks),
        )
        # Without a priority of its own as any other application sends it, which on Redis is the most urgent.
        urgency = 0 if priority is None else 9 - priority
        try:
            with self.app.producer_or_acquire() as producer:
                amqp.send_task_message(producer, name, message, queue=queue, priority=urgency, retry=False)
        except BROKER_GONE as error:
            log.warning("task.unsent", run=run, task=task, name=name, error=str(error))
            return False
        return True

    def revoke(self, tasks: Sequence[str]) -> None:
        """Ask all workers not to begin these tasks, as far as they can be asked."""
        try:
            self.app.control.revoke(list(tasks))
        except BROKER_GONE as error:
            log.warning("task.unrevoked", tasks=len(tasks), error=str(error))

    def waiting(self, queue: str) -> int:
        """How many messages the broker holds for a queue, of all priorities."""
        with self.app.connection_or_acquire() as connection:
            return int(connection.default_channel._size(queue))
