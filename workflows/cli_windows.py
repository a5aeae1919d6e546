"""Starts that are one run, as a command line says it.

The law: an option that means nothing without another one is refused, by both names.
"""

from __future__ import annotations

from typing import Annotated

import typer

from ..tasks.errors import ConfigurationError
from .beginnings import Debounce, Singleton

SingletonKey = Annotated[
    str | None,
    typer.Option("--singleton", help="While a run with this key is open, give it back.", show_default=False),
]
SingletonWindow = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="With --singleton: give it back for so long after it was accepted, though it is over.",
        show_default=False,
    ),
]
DebounceKey = Annotated[
    str | None,
    typer.Option(
        "--debounce", help="Starts with this key that follow one another are one run.", show_default=False
    ),
]
DebounceWait = Annotated[
    float, typer.Option(metavar="SECONDS", help="With --debounce: from the last start to the run.")
]
DebounceMax = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="With --debounce: from the first start to the run, however many follow.",
        show_default=False,
    ),
]


def singleton_of(key: str | None, window: float | None) -> Singleton | None:
    """What the options say. Raises ConfigurationError."""
    _need("--singleton", key, "--singleton-window", window)
    return None if key is None else Singleton(key, window)


def debounce_of(key: str | None, wait: float, most: float | None) -> Debounce | None:
    """What the options say. Raises ConfigurationError."""
    _need("--debounce", key, "--debounce-max", most)
    return None if key is None else Debounce(key, wait, most)


def _need(option: str, given: str | None, more: str, value: float | None) -> None:
    if value is not None and given is None:
        raise ConfigurationError(f"{more} goes with {option}: give that one its key, or leave {more} out")
