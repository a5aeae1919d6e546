"""What the steps of a bundle need of their run: the results of other steps, and its parameters.

The law: each is read at most once, in one statement for all steps that need it; what this process has recorded itself
is not read at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..tasks.errors import InputError
from . import plan, wire
from .execution import joins
from .journal import Journal
from .records import Claimed, Json


class Upstream:
    """Results and parameters of one run, as one bundle knows them."""

    def __init__(self, journal: Journal, run: str) -> None:
        self._journal = journal
        self._run = run
        self._results: dict[int | str, Json] = {}
        self._raw: dict[int, bytes] = {}  # results of this bundle that nobody has read yet
        self._params: dict[str, Json] | None = None

    def keep(self, idx: int, result: bytes) -> None:
        """A result of this bundle's own."""
        self._raw[idx] = result

    def forget(self, idx: int) -> None:
        """Somebody else's result counts."""
        self._raw.pop(idx, None)

    def fetch(self, steps: Iterable[Claimed]) -> None:
        """Read what these steps need and this process does not have, in one statement."""
        needed = {ref for step in steps if step.refs for ref in step.refs}
        missing = [ref for ref in needed if ref not in self._results and ref not in self._raw]
        if missing:
            for idx, result in self._journal.results(self._run, missing).items():
                self._results[idx] = result

    def results(self, step: Claimed) -> Mapping[int | str, Json]:
        """The results that a step uses, by the ids of their steps."""
        for ref in step.refs or ():
            if ref not in self._results:
                self._results[ref] = wire.loads(self._raw[ref])
        return self._results

    def inputs(self, step: Claimed, results: Mapping[int | str, Json]) -> dict[str, Json]:
        """The inputs of a step. Raises InputError."""
        given, action, joined = step.inputs or {}, step.action, joins(step)
        try:
            return plan.bind(given, step.bindings, results, action=action, joins=joined)
        except InputError:
            # Once more, with the names that the message needs; the usual step does not ask for them.
            names = self._journal.names(self._run, step.refs or ())
            return plan.bind(given, step.bindings, results, action=action, names=names, joins=joined)

    def parameters(self, step: Claimed) -> Mapping[str, Json]:
        """The run's parameters, where the step has a condition that may use them."""
        if not step.options or "when" not in step.options:
            return {}
        if self._params is None:
            self._params = self._journal.params(self._run)
        return self._params
