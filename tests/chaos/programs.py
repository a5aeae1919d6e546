"""Small random programs, each as a workflow and as a pure model of what it must come to.

The law: the model is arithmetic on the program. It knows neither attempts nor times nor workers, so it says what holds
whatever happens on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from trellis.workflows import Rate, Retry, Workflow
from trellis.workflows.spec import Default

from . import actions
from .sums import total

VOTERS = ("ann", "bob")
ANY = object()  # a value that the model does not know (an artifact's address)
NOTHING = object()  # no value: the step was skipped, or failed


@dataclass(frozen=True)
class Node:
    """One step of a program."""

    name: str
    kind: str
    parents: tuple[str, ...]
    value: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """Steps, each after its parents."""

    seed: int
    nodes: tuple[Node, ...]
    fatal: str | None  # the step with which a run fails, where its turn comes

    @property
    def undone(self) -> tuple[str, ...]:
        """The steps that are undone after a run has failed."""
        return tuple(node.name for node in self.nodes if "undone" in node.options)

    def fails(self, base: int) -> str | None:
        """The step with which a run of this parameter fails; None where it succeeds."""
        return self.fatal if self.fatal and model(self, base)[self.fatal].states == FAILED else None


class Expected(NamedTuple):
    """What one row of the journal must come to."""

    states: frozenset[str]
    value: Any
    effects: int  # how many effects at least (0 or 1)


DONE, FAILED, SKIPPED = (frozenset({state}) for state in ("succeeded", "failed", "skipped"))

# What a step of kind "child" runs.
CHILD = Program(0, (Node("root", "effect", (), 7), Node("last", "effect", ("root",), 11)), None)


# What a schedule starts; it gets its tick.
TICKED = Program(0, (Node("root", "effect", (), 5),), None)


def signal_of(node: Node) -> str:
    """The name under which a step of kind "signal" is told its value."""
    return f"go-{node.name}"


# --- drawing one


KINDS = ("effect", "effect", "flaky", "slow", "map", "map of a result", "skipped", "default", "stored")
KINDS += (
    "stored or not",
    "condition",
    "signal",
    "sleep",
    "child",
    "append",
    "limited",
    "foreign",
    "once",
    "probed",
    "booked",
    "approval",
    "loop",
    "rated",
    "saga",
)
ONCE = ("once", "probed", "booked")  # their effects happen once, whatever happens


def draw(seed: int, *always: str, without: str = "") -> Program:
    """The program of a seed. Every one has a chain, a fan-in, a map, and of each kind in `always` a step, unskipped."""
    rng = Random(seed)
    nodes = [Node("root", "effect", (), rng.randrange(100))]
    nodes.append(Node("m", "map", ("root",), rng.randrange(100), _mapped(rng) | {"count": rng.randint(2, 9)}))
    for number, kind in enumerate(always):
        made = [nodes[0]]
        _add(made, kind, f"a{number}", rng)
        nodes += made[1:]
    forced = [
        node.name for node in nodes[1:]
    ]  # the last step waits for them, so no failure comes before them
    for number, kind in enumerate(rng.choice(KINDS) for _ in range(rng.randint(4, 8))):
        kind = "effect" if kind == without else kind
        _add(nodes, kind, f"s{number}", rng)
    over = [node.name for node in nodes[2:] if node.kind not in ("listing", "store", "store_or_not")]
    below = (*forced, *(name for name in rng.sample(over, min(len(over), 2)) if name not in forced))
    nodes.append(Node("last", "effect", below, rng.randrange(100)))
    saga = any("undone" in node.options for node in nodes)
    fatal = "fatal" if rng.random() < (0.6 if saga else 0.1) else None
    if fatal is not None:
        nodes.append(Node(fatal, "broken", ("last",), rng.randrange(100), {"policy": "fail"}))
    return Program(seed, tuple(nodes), fatal)


def _add(nodes: list[Node], kind: str, name: str, rng: Random) -> None:
    parents = tuple(rng.sample([node.name for node in nodes][-4:], rng.randint(1, min(len(nodes), 3))))
    value = rng.randrange(100)
    if kind == "map of a result":
        nodes.append(Node(f"{name}l", "listing", parents, value, {"count": rng.randint(0, 9)}))
        nodes.append(Node(name, "map", (f"{name}l",), value, _mapped(rng) | {"over": f"{name}l"}))
    elif kind == "stored":
        nodes.append(Node(f"{name}w", "store", parents, value))
        nodes.append(Node(name, "load", (f"{name}w",), value))
    elif kind == "append":
        nodes.append(Node(name, "append", parents, value, {"count": rng.randint(1, 4)}))
        nodes.append(Node(f"{name}g", "appended", (name,), 0, {"parent": name}))
    else:
        built, options = SINGLE.get(kind, (kind, _no_options))
        nodes.append(Node(name, built, parents, value, options(rng)))


def _no_options(_: Random) -> dict[str, Any]:
    return {}


def _mapped(rng: Random) -> dict[str, Any]:
    limits = {"concurrency_key": "chaos-map", "limit": 2} if rng.random() < 0.2 else {}
    lanes, item = rng.choice((None, None, 1, 3)), rng.choice(("effect", "effect", "flaky"))
    return {"concurrency": lanes, "item": item, "limits": limits}


def _limited(rng: Random) -> dict[str, Any]:
    return {"concurrency_key": rng.choice(("chaos", "chaos-{params.base}")), "limit": rng.randint(1, 2)}


# Kinds that are one step: how it is built, and with which options.
SINGLE: dict[str, tuple[str, Callable[[Random], dict[str, Any]]]] = {
    "effect": (
        "effect",
        lambda rng: {"expect": rng.choice((0.02, 0.5, 3.0))} if rng.random() < 0.2 else {},
    ),
    "flaky": ("flaky", lambda rng: {"times": rng.randint(1, 3)}),
    "slow": ("slow", lambda rng: {"seconds": rng.choice((0.1, 0.3, 0.6))}),
    "map": ("map", lambda rng: _mapped(rng) | {"count": rng.randint(2, 9)}),
    "skipped": ("broken", lambda _: {"policy": "skipped"}),
    "default": ("broken", lambda _: {"policy": "default"}),
    "stored or not": ("store_or_not", _no_options),
    "condition": ("effect", lambda rng: {"above": rng.choice((-1, 500, 1000))}),
    "limited": ("effect", _limited),
    "approval": ("approval", lambda rng: {"needed": rng.randint(1, 2)}),
    "loop": ("loop", lambda rng: {"turns": rng.randint(1, 3)}),
    "rated": ("effect", lambda _: {"rate": Rate("chaos", 8, per=0.4)}),
    "saga": ("effect", lambda _: {"undone": True}),
}


# --- as a workflow


def workflow(program: Program) -> Workflow:
    """The program as Trellis runs it; its one parameter goes into the root."""
    wf = Workflow(f"chaos-{program.seed}", params={"base": int, "tag": str}, register=False)
    return _filled(wf, program)


def ticked(name: str) -> Workflow:
    """What a schedule starts, under a name of its own."""
    wf = Workflow(name, params={"base": int, "tag": str, "tick": str}, register=False)
    return _filled(wf, TICKED)


def _filled(wf: Workflow, program: Program) -> Workflow:
    made: dict[str, Any] = {}
    for node in program.nodes:
        parts = [made[name] for name in node.parents] or [wf.params.base]
        made[node.name] = BUILD.get(node.kind, _plain)(wf, node, parts)
        if node.name in program.undone:
            wf.on_failure(f"un{node.name}", actions.undo, of=made[node.name], value=made[node.name])
    return wf


def _plain(wf: Workflow, node: Node, parts: list[Any]) -> Any:
    more = {key: value for key, value in node.options.items() if key != "undone"}
    if "above" in more:
        more["when"] = f"params.base > {more.pop('above')}"
    return wf.step(node.name, f"chaos.{node.kind}", value=node.value, parts=parts, **more)


def _signal(wf: Workflow, node: Node, parts: list[Any]) -> Any:
    return wf.wait_for(node.name, signal_of(node), after=node.parents)


def _approval(wf: Workflow, node: Node, parts: list[Any]) -> Any:
    show, needed = {"value": node.value}, node.options["needed"]
    return wf.approve(node.name, "may it go on?", show=show, who=VOTERS, needed=needed, after=node.parents)


def _loop(wf: Workflow, node: Node, parts: list[Any]) -> Any:
    until = f"index + 1 >= {node.options['turns']}"
    inputs = {"previous": wf.previous, "parts": parts}
    return wf.loop(node.name, actions.turn, until=until, limit=9, start=node.value, inputs=inputs)


def _sleep(wf: Workflow, node: Node, parts: list[Any]) -> Any:
    return wf.sleep(node.name, 0.1 + node.value / 200, after=node.parents)


def _appended(wf: Workflow, node: Node, parts: list[Any]) -> Any:
    return wf.step(node.name, actions.appended, parent=node.options["parent"], parts=parts)


def _foreign(wf: Workflow, node: Node, parts: list[Any]) -> Any:
    given = [wf.params.tag, node.name, node.value, parts]
    # A killed child of the other worker is a failure that Celery reports, as it does to any caller.
    retry = Retry(9, base=0.05, max_delay=0.3)
    return wf.step(node.name, task="elsewhere.add", args=given, queue="elsewhere", retry=retry)


def _child(wf: Workflow, node: Node, parts: list[Any]) -> Any:
    return wf.child(node.name, workflow(CHILD), base=node.value, tag="", after=node.parents)["last"]


def _broken(wf: Workflow, node: Node, parts: list[Any]) -> Any:
    policies: dict[str, Any] = {"skipped": "skip", "default": Default(node.value), "fail": "fail"}
    policy = policies[node.options["policy"]]
    return wf.step(node.name, actions.broken, value=node.value, parts=parts, on_failure=policy)


def _map(wf: Workflow, node: Node, parts: list[Any]) -> Any:
    over: Any = list(range(node.options["count"])) if "count" in node.options else parts[0]
    more = {"times": 1} if node.options["item"] == "flaky" else {}
    return wf.map(
        node.name,
        f"chaos.{node.options['item']}",
        over=over,
        concurrency=node.options["concurrency"],
        **node.options["limits"],
        inputs={"value": node.value, "parts": [wf.item, *parts], **more},
    )


def _load(wf: Workflow, node: Node, parts: list[Any]) -> Any:
    return wf.step(node.name, actions.load, file=parts[0])


def _store_or_not(wf: Workflow, node: Node, parts: list[Any]) -> Any:
    more = {"value": node.value, "parts": parts}
    return wf.step(node.name, actions.store_or_not, on_failure=Default(0), inputs=more)


BUILD: dict[str, Callable[[Workflow, Node, list[Any]], Any]] = {
    "broken": _broken,
    "map": _map,
    "load": _load,
    "store_or_not": _store_or_not,
    "signal": _signal,
    "approval": _approval,
    "loop": _loop,
    "sleep": _sleep,
    "child": _child,
    "appended": _appended,
    "foreign": _foreign,
}


# --- as a model


def model(program: Program, base: int) -> dict[str, Expected]:
    """What every row of a run must come to, by its name."""
    rows: dict[str, Expected] = {}
    values: dict[str, Any] = {}  # what a step hands on
    for node in program.nodes:
        parts = [values[name] for name in node.parents] or [base]
        if any(part is NOTHING for part in parts) or base <= node.options.get("above", -1):
            values[node.name] = NOTHING
            rows[node.name] = Expected(SKIPPED, None, 0)
            if node.kind in ("map", "loop"):
                rows[f"{node.name}[]"] = Expected(SKIPPED, None, 0)
            continue
        values[node.name] = MODEL.get(node.kind, _effect_model)(node, parts, rows)
    return rows


def _effect_model(node: Node, parts: list[Any], rows: dict[str, Expected]) -> Any:
    value = node.value + total(parts)
    rows[node.name] = Expected(DONE, value, 1)
    return value


def _broken_model(node: Node, parts: list[Any], rows: dict[str, Expected]) -> Any:
    default = node.options["policy"] == "default"
    rows[node.name] = Expected(FAILED, node.value if default else None, 0)
    return node.value if default else NOTHING


def _listing_model(node: Node, parts: list[Any], rows: dict[str, Expected]) -> Any:
    value = [node.value + total(parts) + number for number in range(node.options["count"])]
    rows[node.name] = Expected(DONE, value, 1)
    return value


def _map_model(node: Node, parts: list[Any], rows: dict[str, Expected]) -> Any:
    items = list(range(node.options["count"])) if "count" in node.options else parts[0]
    found = [node.value + total([item, *parts]) for item in items]
    rows[node.name] = Expected(DONE, len(items), 0)
    for index, value in enumerate(found):
        rows[f"{node.name}[{index}]"] = Expected(DONE, value, 1)
    rows[f"{node.name}[]"] = Expected(DONE, found, 0)
    return found


def _store_model(node: Node, parts: list[Any], rows: dict[str, Expected]) -> Any:
    rows[node.name] = Expected(DONE, ANY, 1)
    return {
        "holds": node.value + total(parts)
    }  # counts nothing, like the artifact, but its reader looks inside


def _store_or_not_model(node: Node, parts: list[Any], rows: dict[str, Expected]) -> Any:
    rows[node.name] = Expected(DONE | FAILED, ANY, 0)
    return 0


def _load_model(node: Node, parts: list[Any], rows: dict[str, Expected]) -> Any:
    rows[node.name] = Expected(DONE, parts[0]["holds"], 1)
    return parts[0]["holds"]


def _signal_model(node: Node, parts: list[Any], rows: dict[str, Expected]) -> Any:
    rows[node.name] = Expected(DONE, node.value, 0)
    return node.value


def _approval_model(node: Node, parts: list[Any], rows: dict[str, Expected]) -> Any:
    rows[node.name] = Expected(DONE, ANY, 0)
    return {}  # it counts nothing


def _loop_model(node: Node, parts: list[Any], rows: dict[str, Expected]) -> Any:
    value = node.value
    for index in range(node.options["turns"]):
        value += 1 + total(parts)
        rows[f"{node.name}[{index}]"] = Expected(DONE, value, 1)
        rows[f"{node.name}[?{index}]"] = Expected(DONE, index + 1, 0)
    rows[node.name] = Expected(DONE, 0, 0)
    rows[f"{node.name}[]"] = Expected(DONE, value, 0)
    return value


def _sleep_model(node: Node, parts: list[Any], rows: dict[str, Expected]) -> Any:
    rows[node.name] = Expected(DONE, None, 0)
    return None


def _child_model(node: Node, parts: list[Any], rows: dict[str, Expected]) -> Any:
    last = model(CHILD, node.value)["last"].value
    rows[node.name] = Expected(DONE, {"last": last}, 0)
    return last


def _append_model(node: Node, parts: list[Any], rows: dict[str, Expected]) -> Any:
    count, value = node.options["count"], node.value
    rows[node.name] = Expected(DONE, count, 1)
    last = total(parts)
    for number in range(count):
        last += value
        rows[f"{node.name}.n{number}"] = Expected(DONE, last, 1)
    rows[f"{node.name}.m"] = Expected(DONE, count, 0)
    items = [value + item + last for item in range(count)]
    for item, found in enumerate(items):
        rows[f"{node.name}.m[{item}]"] = Expected(DONE, found, 1)
    rows[f"{node.name}.m[]"] = Expected(DONE, items, 0)
    return count


def _appended_model(node: Node, parts: list[Any], rows: dict[str, Expected]) -> Any:
    prefix = f"{node.options['parent']}."
    value = total([row.value for name, row in rows.items() if _told_by(name, prefix)])
    rows[node.name] = Expected(DONE, value, 1)
    return value


def _told_by(name: str, prefix: str) -> bool:
    """Whether `ctx.appended` has the row: steps and gathered lists, no items and no map itself."""
    return name.startswith(prefix) and (name.endswith("[]") or name[len(prefix)] == "n")


def _foreign_model(node: Node, parts: list[Any], rows: dict[str, Expected]) -> Any:
    value = node.value + total(parts)
    rows[node.name] = Expected(DONE, value, 0)
    return value


MODEL: dict[str, Callable[[Node, list[Any], dict[str, Expected]], Any]] = {
    "broken": _broken_model,
    "listing": _listing_model,
    "map": _map_model,
    "store": _store_model,
    "store_or_not": _store_or_not_model,
    "load": _load_model,
    "signal": _signal_model,
    "approval": _approval_model,
    "loop": _loop_model,
    "sleep": _sleep_model,
    "child": _child_model,
    "append": _append_model,
    "appended": _appended_model,
    "foreign": _foreign_model,
}
