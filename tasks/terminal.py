"""What every command prints through.

The law: stdout is for answers, stderr for everything said beside them; where there is no terminal, a line is whole.
"""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

_PIPE_WIDTH = 160  # columns where there is no terminal to ask


def console(*, stderr: bool = False) -> Console:
    """A console; where it is no terminal, wide enough for whole lines."""
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=_PIPE_WIDTH)


def hint(text: str, style: str = "dim") -> None:
    """Say something beside the answer."""
    console(stderr=True).print(Text(text, style), soft_wrap=True)
