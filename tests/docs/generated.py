"""The parts of the reference that the code itself writes: `python tests/docs/generated.py` brings them up to date.

The law: a page keeps them between `<!-- generated: NAME -->` and `<!-- end -->`; a test compares, this program
replaces. What a person has to say stands around them.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, is_typeddict

import commands
from annotated_types import Ge, Gt, Le, Lt, MinLen
from fences import ROOT
from pydantic import BaseModel

from trellis.memory import (
    EpisodicMemory,
    Filters,
    Hit,
    HybridMemory,
    MemoryProtocol,
    Options,
    Scope,
    Stored,
    VectorMemory,
    WorkingMemory,
    export,
    import_jsonl,
    import_parquet,
)
from trellis.memory.bulk import Imported
from trellis.memory.entries import Entry
from trellis.memory.working import Item
from trellis.tasks import errors
from trellis.tasks.errors import TrellisError
from trellis.tasks.settings import PREFIX, Settings
from trellis.workflows import (
    Action,
    Approval,
    Artifact,
    AsyncClient,
    Client,
    Context,
    DeadLetter,
    Debounce,
    Default,
    Doubt,
    Event,
    Fragment,
    Happened,
    Param,
    Progress,
    Rate,
    Reason,
    Retry,
    Run,
    RunState,
    Schedule,
    Schedules,
    Singleton,
    Step,
    StepState,
    Workflow,
    action,
    distilling,
    files,
    worker,
)
from trellis.workflows.records import StepResult
from trellis.workflows.spec import (
    CallSpec,
    LoopSpec,
    MapSpec,
    StepSpec,
    ThenSpec,
    UndoSpec,
    WorkflowSpec,
)
from trellis.workflows.testing import Runner

WIDTH = 100
_MARK = re.compile(
    r"(?P<open><!-- generated: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(?P<close><!-- end -->)", re.DOTALL
)
_BOUNDS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}


def write(page: Path) -> bool:
    """Bring a page up to date; whether that changed it."""
    before = page.read_text(encoding="utf-8")
    after = current(before)
    page.write_text(after, encoding="utf-8")
    return after != before


def current(text: str) -> str:
    """A page as it should be."""
    return _MARK.sub(lambda m: m["open"] + PARTS[m["name"]]() + m["close"], text)


# --- settings


def settings() -> str:
    """A table of the settings for each group in the source."""
    source = inspect.getsource(Settings)
    parts: list[str] = []
    for line in source.splitlines():
        group = re.match(r"    # --- (.*)", line)
        field = re.match(r"    (\w+): ", line)
        if group:
            title = group[1][:1].upper() + group[1][1:]
            parts.append(f"\n## {title}\n\n| variable | accepts | default | |\n|---|---|---|---|\n")
        elif field and field[1] in Settings.model_fields:
            parts.append(_setting(field[1]))
    return "".join(parts) + "\n"


def _setting(name: str) -> str:
    field = Settings.model_fields[name]
    default = "account@machine" if name == "actor" else field.default
    shown = {None: "-", (): "-"}.get(
        default, f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
    )
    described = " ".join((field.description or "").split())
    return f"| `{PREFIX}{name.upper()}` | {_accepts(name)} | {shown} | {described} |\n"


def _accepts(name: str) -> str:
    field = Settings.model_fields[name]
    kinds = {
        "database_url": "`postgresql://…`", "broker_url": "`redis://…`, `rediss://…`",
        "imports": "names, `,` between", "home": "a folder",
    }  # fmt: skip
    if name in kinds:
        return kinds[name]
    options = getattr(field.annotation, "__args__", ())
    if options and all(isinstance(each, str) for each in options):
        return ", ".join(f"`{each}`" for each in options)
    kind = {int: "a whole number", float: "a number"}.get(field.annotation, "a text")
    limits = [
        f"{sign} {getattr(bound, attribute)}"
        for bound in field.metadata
        for kind_, sign in _BOUNDS.items()
        for attribute in ("ge", "gt", "le", "lt")
        if isinstance(bound, kind_) and hasattr(bound, attribute)
    ]
    filled = any(isinstance(bound, MinLen) for bound in field.metadata)
    return f"{kind} {', '.join(limits)}".rstrip() + (", not empty" if filled else "")


# --- command


def cli() -> str:
    """The help of each command."""
    group = commands.application()
    parts = [f"\n## trellis\n\n```text\n{_help(group, 'trellis')}\n```\n"]
    for name, command in group.commands.items():
        parts.append(f"\n## trellis {name}\n\n```text\n{_help(command, f'trellis {name}')}\n```\n")
        for each, below in getattr(command, "commands", {}).items():
            title = f"trellis {name} {each}"
            parts.append(f"\n### {title}\n\n```text\n{_help(below, title)}\n```\n")
    return "".join(parts) + "\n"


def _help(command: Any, name: str) -> str:
    context = command.make_context(name, ["--help"], resilient_parsing=True, terminal_width=WIDTH)
    text: str = command.get_help(context)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip()


# --- errors


def error_tree() -> str:
    """The tree, as the module draws it."""
    tree = re.search(r"^    TrellisError\n.*?(?=\n\n|\Z)", errors.__doc__ or "", re.MULTILINE | re.DOTALL)
    assert tree is not None
    return f"\n```text\n{textwrap.dedent(tree[0]).rstrip()}\n```\n\n"


def error_table() -> str:
    """Each class with its attributes."""
    rows = ["\n| error | attributes | |\n|---|---|---|\n"]
    for each in classes(TrellisError):
        facts = sorted(set(re.findall(r"self\.([a-z]\w*) = ", inspect.getsource(each))))
        names = ", ".join(f"`{fact}`" for fact in facts)
        rows.append(f"| `{each.__name__}` | {names} | {' '.join((each.__doc__ or '').split())} |\n")
    return "".join(rows) + "\n"


def classes(base: type[Exception]) -> Iterator[type[Exception]]:
    """A class and those below it, in the order in which they are written."""
    yield base
    for each in base.__subclasses__():
        if each.__module__ == base.__module__:
            yield from classes(each)


# --- definition files


def definition_fields() -> str:
    """The fields of a definition."""
    parts: list[str] = []
    models: tuple[tuple[str, type[BaseModel]], ...] = (
        ("The workflow", WorkflowSpec), ("A step", StepSpec), ("map", MapSpec), ("loop", LoopSpec), ("retry", Retry),
        ("on_failure", Default), ("rate", Rate),
        ("A step of compensation", UndoSpec), ("then", ThenSpec), ("A task that is sent", CallSpec),
    )  # fmt: skip
    for title, model in models:
        parts.append(f"\n## {title}\n\n| field | accepts | default | |\n|---|---|---|---|\n")
        document = files.schema()
        schema = model.model_json_schema()
        for name, field in schema["properties"].items():
            accepted = _schema_words(field, document["$defs"])
            default = "required" if name in schema.get("required", ()) else _literal(field.get("default"))
            parts.append(f"| `{name}` | {accepted} | {default} | {field.get('description', '')} |\n")
    return "".join(parts) + "\n"


def _literal(value: Any) -> str:
    return "-" if value in (None, "", [], {}, ()) else f"`{value}`"


def _schema_words(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "anyOf" in field:
        found = [_schema_words(each, definitions) for each in field["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(found))
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        links = {
            "Retry": "[a policy](#retry)",
            "Default": "[a default](#on_failure)",
            "MapSpec": "[a map](#map)",
            "Rate": "[a rate](#rate)",
            "ThenSpec": "[tasks](#then)",
            "CallSpec": "[a task](#a-task-that-is-sent)",
        }
        return links.get(name, "any value")
    if "enum" in field:
        return ", ".join(f"`{each}`" for each in field["enum"])
    kind = {
        "integer": "a whole number", "number": "a number", "string": "a text", "array": "a list", "object": "a mapping",
    }.get(field.get("type", ""), "any value")  # fmt: skip
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤"}
    limits = [f"{sign} {field[key]:g}" for key, sign in words.items() if key in field]
    return f"{kind} {', '.join(limits)}".rstrip()


# --- Python


def _methods(thing: type) -> tuple[str, ...]:
    """What a class and the parts that it is made of offer, in order; without coroutines."""
    floors = ("trellis.workflows", "trellis.memory")
    parts = [part for part in thing.__mro__ if part.__module__.startswith(floors)]
    names = [
        name
        for part in parts
        for name, each in vars(part).items()
        if not name.startswith("_") and (inspect.isfunction(each) or isinstance(each, property | classmethod))
    ]
    hidden = (*INTERNAL.get(thing.__name__, ()), *twins_of(thing))
    return tuple(name for name in dict.fromkeys(names) if name not in hidden)


def twins_of(thing: type) -> tuple[str, ...]:
    """The coroutines of a memory, each of which takes what a method takes; none of other classes."""
    if not thing.__module__.startswith("trellis.memory"):
        return ()
    found = [
        name
        for part in thing.__mro__
        for name, each in vars(part).items()
        if not name.startswith("_") and inspect.iscoroutinefunction(each)
    ]
    return tuple(dict.fromkeys(found))


# What the engine uses, and what Celery brings.
INTERNAL: dict[str, tuple[str, ...]] = {
    "Action": ("run",),
    "Param": ("schema",),
    "Context": ("cancel", "take_progress"),
    "Run": ("from_row",),
    "Step": ("from_row",),
    "StepResult": ("from_row",),
    "DeadLetter": ("from_row",),
    "Approval": ("from_row",),
    "Schedule": ("timetable",),
    "Schedules": ("apply",),
    "Entry": ("of",),
    "Filters": ("arguments", "empty"),
    # Those of its entry, for short.
    "Hit": ("key", "kind", "value", "text", "source", "trust", "at", "metadata"),
    "Scope": ("reach",),
}

GROUPS: dict[str, tuple[tuple[Any, tuple[str, ...]], ...]] = {
    "Define": (
        (action, ()),
        (Action, ("delay", "apply_async")),
        (Workflow, ("params", "item", "index", "previous", *_methods(Workflow))),
        (Param, ()),
        (Retry, ("delay", "allows")),
        (Rate, ()),
        (Default, ()),
        (Happened, ()),
    ),
    "In a body": (
        (Context, _methods(Context)),
        (Fragment, ("done",)),
        (StepResult, _methods(StepResult)),
        (Artifact, ("open", "read_bytes", "write_bytes", "read_text", "write_text", "exists")),
    ),
    "Start and watch": (
        (Client, _methods(Client)),
        (AsyncClient, _methods(AsyncClient)),
        (Debounce, ()),
        (Singleton, ()),
        (Schedules, _methods(Schedules)),
    ),
    "What comes back": (
        (Run, _methods(Run)),
        (Step, _methods(Step)),
        (Event, ()),
        (Progress, ()),
        (Approval, ()),
        (Reason, ()),
        (DeadLetter, ()),
        (Doubt, ()),
        (Schedule, _methods(Schedule)),
        (RunState, ()),
        (StepState, ()),
    ),
    "Remember": (
        (Scope, ()),
        (MemoryProtocol, _methods(MemoryProtocol)),
        (VectorMemory, _methods(VectorMemory)),
        (EpisodicMemory, _methods(EpisodicMemory)),
        (HybridMemory, _methods(HybridMemory)),
        (WorkingMemory, _methods(WorkingMemory)),
        (Item, ()),
        (Options, ()),
        (Filters, ()),
        (Stored, ()),
        (Entry, ()),
        (Hit, ()),
        (import_jsonl, ()),
        (import_parquet, ()),
        (Imported, _methods(Imported)),
        (export, ()),
    ),
}
TESTING = (
    "now",
    "advance",
    "wait",
    "replace",
    "fail",
    "crash",
    "calls",
    "without_workers",
    "work",
    "lose_messages",
)
MODULES = (files.load, files.loads, files.workflow, files.dump, files.schema)


def api() -> str:
    """All public names with signatures and what their docstrings say."""
    parts: list[str] = []
    for title, members in GROUPS.items():
        parts.append(f"\n## {title}\n")
        for thing, methods in members:
            parts.append(_thing(thing, methods))
    parts.append("\n## trellis.workflows.files\n")
    parts += [_function(f"files.{each.__name__}", each) for each in MODULES]
    parts.append("\n## trellis.workflows.distilling\n")
    parts.append(_function("distilling.start", distilling.start))
    parts.append("\n## trellis.workflows.testing\n")
    parts.append(_thing(Runner, TESTING))
    parts.append("\n## Tasks by name\n")
    parts.append(_function("trellis.start", worker.start.run))
    parts.append(_function("trellis.tick", worker.tick.run))
    return "".join(parts) + "\n"


def _thing(thing: Any, methods: tuple[str, ...]) -> str:
    name = thing.__name__
    if inspect.isclass(thing) and issubclass(thing, Enum):
        return f"\n### {name}\n\n{_prose(thing.__doc__)}\n{_members(thing)}"
    if is_typeddict(thing):
        return f"\n### {name}\n\n{_prose(thing.__doc__)}\n{_options(thing)}"
    if dataclasses.is_dataclass(thing) or hasattr(thing, "_fields"):
        text = f"\n### {name}\n\n{_prose(thing.__doc__)}\n{_fields(thing)}"
    elif thing is action:
        return _function(name, thing, signature=_overload())
    elif inspect.isclass(thing):
        made, said = "", ""
        if thing is Default:
            made = "```text\nDefault(value: Json)\n```\n\n"
        elif thing not in (Action, Artifact, MemoryProtocol):
            made = f"```text\n{_signature(name, _maker(thing))}\n```\n\n"
            said = getattr(vars(thing).get("__init__"), "__doc__", None)
        own = f"\n{_prose(said, inspect.signature(thing).parameters)}" if said else ""
        twins = ", ".join(f"`{each}`" for each in twins_of(thing))
        edge = f"\nFor coroutines, with the same arguments: {twins}.\n" if twins else ""
        text = f"\n### {name}\n\n{made}{_prose(thing.__doc__)}{own}{edge}"
    else:
        return _function(name, thing)
    return text + "".join(_method(name, thing, method) for method in methods)


def _options(thing: Any) -> str:
    """What stands behind each field of a TypedDict in its source."""
    rows = re.findall(r"^    (\w+): (.+?)  # (.+)$", inspect.getsource(thing), re.MULTILINE)
    lines = [f"| `{name}` | `{kind.replace('|', chr(92) + '|')}` | {text} |" for name, kind, text in rows]
    return "\n| option | type | |\n|---|---|---|\n" + "\n".join(lines) + "\n"


def _maker(thing: Any) -> Callable[..., Any]:
    """What a class is called with; a pydantic model says it by its fields."""
    return thing if issubclass(thing, BaseModel) else thing.__init__  # type: ignore[misc]


def _method(name: str, thing: Any, method: str) -> str:
    found = inspect.getattr_static(thing, method, None)
    if isinstance(found, property):
        return f"\n#### {name}.{method}\n\n{_prose(found.__doc__)}"
    if isinstance(found, classmethod):
        return _function(f"{name}.{method}", found.__func__, depth=4)
    if found is None:  # set by __init__
        return f"\n#### {name}.{method}\n\n{_ATTRIBUTES[f'{name}.{method}']}\n"
    if method == "delay" and thing is Action:
        return f"\n#### {name}.{method}\n\n{_ATTRIBUTES['Action.delay']}\n"
    return _function(f"{name}.{method}", found, depth=4)


_ATTRIBUTES = {
    "Workflow.params": 'References to the run\'s parameters: `wf.params.url`, or `wf.params["odd-name"]`.',
    "Workflow.item": 'In a map, the reference to the item: `wf.item`, `wf.item["field"]`.',
    "Workflow.index": "In a map, the reference to the item's place in the list; in a loop, to the turn's number.",
    "Workflow.previous": "In a loop, the reference to the result of the turn before: `wf.previous`, `wf.previous[0]`.",
    "Action.delay": "`action.delay(**inputs)`: send a plain Celery job, without a journal. See `apply_async`.",
}


_SAID = {
    "Context.run_id": "the run's id",
    "Context.workflow": "the workflow's name",
    "Context.step": "the step's name; in a map with the item's place, `sales[3]`",
    "Context.attempt": "1 at first; crashes count as well",
    "Context.correlation_id": "the starter's own id, or the run's",
    "Context.artifacts_root": "where artifacts live",
    "Context.door": "the way to the run, for the engine; none where the body runs outside any run",
    "Run.workflow": "the workflow's name", "Run.key": "that it was started with", "Run.params": "with the defaults",
    "Run.correlation_id": "the starter's own id, or the run's",
    "Step.idx": "its number in the run", "Step.attempt": "claims so far", "Step.failures": "attempts that failed",
    "Debounce.key": "of starts that belong together, within one workflow",
    "Debounce.wait": "from the last start to the beginning", "Debounce.max_wait": "from the first start on",
    "Singleton.key": "of starts that want the same, within one workflow",
    "Singleton.window": "after its acceptance, in which a run that is over is given back",
    "Step.worker": "host and pid of the last one", "Step.progress": "what `heartbeat` told last",
    "Step.error": "of the last failed attempt, where it did not succeed after that",
    "Approval.run": "the run's id", "Approval.workflow": "the workflow's name", "Approval.step": "the step's name",
    "Approval.message": "what they are asked",
    "Doubt.workflow": "the workflow's name", "Doubt.step": "the step's name", "Happened.result": "of the step",
    "Progress.total": "steps", "Progress.done": "steps that are over",
}  # fmt: skip


def _function(name: str, function: Any, *, depth: int = 3, signature: str | None = None) -> str:
    shown = signature or _signature(name, function)
    names = (
        re.findall(r"^    (\w+):", shown, re.MULTILINE)
        if signature
        else inspect.signature(function).parameters
    )
    return f"\n{'#' * depth} {name}\n\n```text\n{shown}\n```\n\n{_prose(inspect.getdoc(function), names)}"


def _overload() -> str:
    return textwrap.dedent("""\
        @action
        @action(
            *,
            name: str | None = None,
            retries: int | Retry = 0,
            timeout: float | None = None,
            queue: str | None = None,
            priority: int = 5,
            effects: Literal['repeatable', 'once'] = 'repeatable',
            in_doubt: Literal['ask', 'retry'] | Callable[..., Any] = 'ask',
        )""")


def _signature(name: str, function: Callable[..., Any]) -> str:
    parameters = [
        each for each in inspect.signature(function).parameters.values() if each.name not in ("self", "cls")
    ]
    shown: list[str] = []
    starred = False
    for position, each in enumerate(parameters):
        if each.kind is each.KEYWORD_ONLY and not starred:
            shown.append("*")
            starred = True
        if each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL):
            shown.append(f"{'**' if each.kind is each.VAR_KEYWORD else '*'}{each.name}")
            continue
        annotation = "" if each.annotation is each.empty else f": {_annotation(each.annotation)}"
        default = "" if each.default is each.empty else f" = {_default(each.default)}"
        shown.append(f"{each.name}{annotation}{default if annotation else default.replace(' ', '')}")
        following = parameters[position + 1] if position + 1 < len(parameters) else None
        if each.kind is each.POSITIONAL_ONLY and (
            following is None or following.kind is not each.POSITIONAL_ONLY
        ):
            shown.append("/")
    returns = inspect.signature(function).return_annotation
    end = "" if returns in (inspect.Signature.empty, "None", None) else f" -> {_annotation(returns)}"
    prefix = "async " if inspect.iscoroutinefunction(function) else ""
    line = f"{prefix}{name}({', '.join(shown)}){end}"
    if len(line) <= WIDTH:
        return line
    return f"{prefix}{name}(\n" + "".join(f"    {each},\n" for each in shown) + f"){end}"


def _annotation(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    if get_origin(annotation) is Annotated:
        return _annotation(get_args(annotation)[0])
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _default(value: Any) -> str:
    text = repr(value)
    return "…" if text.startswith("<") else text


def _declared(thing: Any) -> list[tuple[str, str]]:
    """The fields of a data class or a named tuple, with their types as they are written."""
    if dataclasses.is_dataclass(thing):
        return [(each.name, str(each.type)) for each in dataclasses.fields(thing)]
    kinds = {
        name: getattr(kind, "__forward_arg__", str(kind)) for name, kind in thing.__annotations__.items()
    }
    return [(name, kinds[name]) for name in thing._fields]


def _fields(thing: Any) -> str:
    source = inspect.getsource(thing)
    rows = ["| field | type | |\n|---|---|---|\n"]
    for name, declared in _declared(thing):
        if name.startswith("_"):
            continue
        said = re.search(rf"^    {name}: [^#\n]*#\s*(.*)$", source, re.MULTILINE)
        about = said[1] if said else _SAID.get(f"{thing.__name__}.{name}", "")
        kind = declared.replace("|", "\\|")
        rows.append(f"| `{name}` | `{kind}` | {about} |\n")
    return "".join(rows)


def _members(thing: type[Enum]) -> str:
    source = inspect.getsource(thing)
    rows = ["| value | |\n|---|---|\n"]
    for each in thing:
        said = re.search(rf"^    {each.name} = [^#\n]*#\s*(.*)$", source, re.MULTILINE)
        rows.append(f"| `{each.value}` | {said[1] if said else ''} |\n")
    return "".join(rows)


def _prose(docstring: str | None, names: Iterable[str] = ()) -> str:
    """A docstring as Markdown: `name: text` lines about parameters become a list."""
    parameters = frozenset(names)
    parts: list[str] = []
    for paragraph in inspect.cleandoc(docstring or "").split("\n\n"):
        lines = paragraph.splitlines()
        if len(lines) and all(line.startswith("    ") for line in lines):
            parts.append("```text\n" + textwrap.dedent(paragraph) + "\n```\n")
            continue
        parts.append("\n".join(_items(lines, parameters)) + "\n")
    return "\n".join(parts)


def _items(lines: Iterable[str], parameters: frozenset[str]) -> Iterator[str]:
    listed = False
    for line in lines:
        named = re.match(r"^([a-z_]+(?:, [a-z_]+)*): (.*)$", line)
        if named and parameters.issuperset(named[1].split(", ")):
            listed = True
            yield f"- {', '.join(f'`{name}`' for name in named[1].split(', '))}: {named[2]}"
        elif listed and line.startswith("    "):
            yield f"  {line.strip()}"
        else:
            if listed:
                yield ""
            listed = False
            yield line.strip()


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "cli": cli,
    "error-tree": error_tree,
    "error-table": error_table,
    "definition": definition_fields,
    "api": api,
}


if __name__ == "__main__":
    for each in sorted((ROOT / "docs" / "reference").glob("*.md")):
        if write(each):
            print(f"{each.relative_to(ROOT)} is up to date again")
