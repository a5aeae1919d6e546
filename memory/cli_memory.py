"""The commands `trellis memory …`: their options, and nothing else.

The law: that of all commands: answers on stdout, with --json one JSON document; all else on stderr. What they do stands
in console.py and is imported when one is called, since memories need numpy and `trellis --version` does not.
"""

from __future__ import annotations

import importlib
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Store, find, import and export memories.", no_args_is_help=True, pretty_exceptions_enable=False
)


class Kind(str, Enum):  # noqa: UP042 - typer shows the values of a str enum
    """Kinds of memories."""

    fact = "fact"
    episode = "episode"


class Source(str, Enum):  # noqa: UP042
    """Where a memory is from."""

    user = "user"
    tool = "tool"
    web = "web"
    agent = "agent"


class Form(str, Enum):  # noqa: UP042
    """Forms of a file of memories."""

    jsonl = "jsonl"
    parquet = "parquet"


Tenant = Annotated[str, typer.Option(help="Whose memories these are.")]
Agent = Annotated[
    str, typer.Option(help="The agent's own; without it those that all agents share.", show_default=False)
]
Shared = Annotated[bool, typer.Option("--shared", help="With those that the agents share as well.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="So many at most.")]
Metadata = Annotated[
    list[str] | None,
    typer.Option(
        "--meta", "-m", metavar="KEY=VALUE", help="Only with this in their metadata; may be given again."
    ),
]
KindOption = Annotated[Kind | None, typer.Option(help="Only memories of this kind.", show_default=False)]
Sources = Annotated[
    list[Source] | None,
    typer.Option("--source", help="Only from there; may be given again.", show_default=False),
]
MinTrust = Annotated[
    int | None,
    typer.Option(
        min=0, max=3, help="Trusted at least so much: 0 nothing to 3 the operator's.", show_default=False
    ),
]
Actors = Annotated[
    list[str] | None, typer.Option("--actor", help="Only the words of this one; may be given again.")
]
Episode = Annotated[str | None, typer.Option(help="Only entries of this episode.", show_default=False)]
RunOption = Annotated[
    str | None, typer.Option("--run", help="Only what comes from this run.", show_default=False)
]
Since = Annotated[
    str | None,
    typer.Option(help="Not before: a time (ISO 8601), or an age as 2d, 3h, 20m.", show_default=False),
]
Until = Annotated[str | None, typer.Option(help="Before: a time (ISO 8601), or an age.", show_default=False)]


def register(root: typer.Typer) -> None:
    """Add the commands to the application."""
    root.add_typer(app, name="memory")


def _console() -> Any:
    return importlib.import_module("..console", __name__)


@app.command()
def store(
    key: Annotated[
        str,
        typer.Argument(metavar="KEY", help="The key of a fact, or with --episode the name of an episode."),
    ],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="A text; - reads it from stdin.")],
    data: Annotated[bool, typer.Option("--data", help="The value is JSON, and not a text.")] = False,
    episode: Annotated[bool, typer.Option("--episode", help="Add it to the end of an episode.")] = False,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            "--meta", "-m", metavar="KEY=VALUE", help="What filters ask for; lists and objects as JSON."
        ),
    ] = None,
    importance: Annotated[float, typer.Option(help="0 to 1.")] = 0.5,
    ttl: Annotated[
        str | None, typer.Option(help="For how long: seconds, or 20m, 3h, 2d.", show_default=False)
    ] = None,
    source: Annotated[Source, typer.Option(help="Where it is from.")] = Source.user,
    trust: Annotated[
        int | None,
        typer.Option(
            min=0, max=3, help="How far it is trusted; that of its source without it.", show_default=False
        ),
    ] = None,
    actor: Annotated[str | None, typer.Option(help="Whose words these are.", show_default=False)] = None,
    at: Annotated[
        str | None, typer.Option(help="When it happened, ISO 8601; now without it.", show_default=False)
    ] = None,
    tenant: Tenant = "default",
    agent: Agent = "",
    as_json: AsJson = False,
) -> None:
    """Store a fact under a key, or add an entry to an episode.

    Another value under an old key replaces it, and the old one is history. What another key says already is linked.
    """
    options = {
        "importance": importance,
        "ttl": ttl,
        "source": source.value,
        "trust": trust,
        "actor": actor,
        "at": at,
    }
    _console().store(
        tenant, agent, key, value, metadata or (), options, data=data, episode=episode, as_json=as_json
    )


@app.command()
def get(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The key of a fact.")],
    history: Annotated[
        bool, typer.Option("--history", help="All values that it has had, the oldest first.")
    ] = False,
    tenant: Tenant = "default",
    agent: Agent = "",
    shared: Shared = False,
    as_json: AsJson = False,
) -> None:
    """Show what is stored under a key."""
    _console().get(tenant, agent, key, shared=shared, history=history, as_json=as_json)


@app.command()
def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for, in plain words.")],
    limit: Limit = 10,
    kind: KindOption = None,
    metadata: Metadata = None,
    sources: Sources = None,
    min_trust: MinTrust = None,
    actors: Actors = None,
    episode: Episode = None,
    run: RunOption = None,
    since: Since = None,
    until: Until = None,
    tenant: Tenant = "default",
    agent: Agent = "",
    shared: Shared = False,
    as_json: AsJson = False,
) -> None:
    """Find memories by meaning and words.

    Best first, with the parts of their scores: what the words and the meaning are worth, with the rank in either list,
    and what is added for being recent, important and trusted. Of facts alone (--kind fact) the score is the cosine.
    """
    asked = (metadata or (), _values(sources), min_trust, actors, episode, run, since, until)
    chosen = None if kind is None else kind.value
    _console().search(tenant, agent, query, limit, chosen, asked, shared=shared, as_json=as_json)


@app.command()
def recent(
    limit: Limit = 10,
    within: Annotated[
        str | None, typer.Option(help="Only of so long ago: seconds, or 20m, 3h, 2d.", show_default=False)
    ] = None,
    metadata: Metadata = None,
    sources: Sources = None,
    min_trust: MinTrust = None,
    actors: Actors = None,
    episode: Episode = None,
    run: RunOption = None,
    tenant: Tenant = "default",
    agent: Agent = "",
    shared: Shared = False,
    as_json: AsJson = False,
) -> None:
    """List the last entries of episodes, newest first."""
    asked = (metadata or (), _values(sources), min_trust, actors, episode, run, None, None)
    _console().recent(tenant, agent, limit, within, asked, shared=shared, as_json=as_json)


@app.command()
def forget(
    key: Annotated[
        str | None,
        typer.Argument(metavar="[KEY]", help="The key of a fact; without it, all that the options say."),
    ] = None,
    kind: KindOption = None,
    metadata: Metadata = None,
    sources: Sources = None,
    actors: Actors = None,
    episode: Episode = None,
    run: RunOption = None,
    since: Since = None,
    until: Until = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    tenant: Tenant = "default",
    agent: Agent = "",
    as_json: AsJson = False,
) -> None:
    """Delete a key with its history, or all that the options say.

    It is gone from searches, from history, and from the context of the entries behind it. Asks first, unless a key is
    given.
    """
    asked = (metadata or (), _values(sources), None, actors, episode, run, since, until)
    _console().forget(
        tenant, agent, key, None if kind is None else kind.value, asked, yes=yes, as_json=as_json
    )


@app.command()
def sweep(tenant: Tenant = "default", as_json: AsJson = False) -> None:
    """Delete what has expired, of all agents, now.

    Workers do so every ten minutes; but of an episode they leave the two entries before one that lives, whose context
    is made anew here, by the embedder.
    """
    _console().sweep(tenant, as_json=as_json)


@app.command("import")
def import_file(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A record a line (.jsonl), or a column a field (.parquet).")
    ],
    form: Annotated[
        Form | None, typer.Option("--format", help="By the file's suffix without it.", show_default=False)
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Put rows aside that cannot be taken, and go on.")
    ] = False,
    rejects: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where they go; FILE.rejects.jsonl without it.", show_default=False
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="From the beginning, though it was imported.")
    ] = False,
    tenant: Tenant = "default",
    agent: Agent = "",
    as_json: AsJson = False,
) -> None:
    """Import a file of memories.

    One that was cut off goes on where it was; one that is through is left alone.
    """
    chosen = None if form is None else form.value
    _console().import_file(
        tenant, agent, file, chosen, skip_bad=skip_bad, rejects=rejects, again=again, as_json=as_json
    )


@app.command("export")
def export_file(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Ends in .jsonl or .parquet; stdout without it.")
    ] = None,
    form: Annotated[
        Form | None, typer.Option("--format", help="By the file's suffix without it.", show_default=False)
    ] = None,
    kind: KindOption = None,
    vectors: Annotated[bool, typer.Option("--vectors", help="With the embeddings.")] = False,
    history: Annotated[bool, typer.Option("--history", help="With the values that were replaced.")] = False,
    tenant: Tenant = "default",
    agent: Agent = "",
) -> None:
    """Write memories to a file, which `import` takes."""
    chosen, kinds = (None if each is None else each.value for each in (form, kind))
    _console().export_file(tenant, agent, file, chosen, kinds, vectors=vectors, history=history)


@app.command()
def stats(
    tenant: Tenant = "default",
    agent: Annotated[
        str | None, typer.Option(help='Only this agent\'s; "" for what all share.', show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count memories by model, agent and kind, and tell what they take on disk."""
    _console().stats(tenant, agent, as_json=as_json)


def _values(sources: list[Source] | None) -> list[str] | None:
    return None if not sources else [each.value for each in sources]
