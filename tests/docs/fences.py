"""The fences of a Markdown page: what each is, where it stands, what it says.

The law: pure. A page is text; its code blocks come out in order, with the lines they stand on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The longest ones first, so that what is left at the end is short.
_FIRST = (ROOT / "docs/tutorial.md", ROOT / "docs/start.md", ROOT / "README.md")
PAGES = [*_FIRST, *sorted(set((ROOT / "docs").rglob("*.md")) - set(_FIRST))]

_OPEN = re.compile(r"^(?P<ticks>`{3,})(?P<info>[^`]*)$")
_FILE = re.compile(r"^# (?P<name>[\w./-]+\.(?:py|yaml|yml|json|toml))(?P<more>, continued)?$")

RUN = ("python", "yaml", "json", "console", "bash", "sql")  # executed or checked
SHOWN = ("text", "mermaid", "dockerfile", "")  # only to be read


@dataclass(frozen=True, slots=True)
class Fence:
    """A code block."""

    page: Path
    line: int  # of its first line of content, from 1
    language: str
    text: str

    @property
    def place(self) -> str:
        """`docs/start.md:12`."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that the block is, where its first line names one (`# app.py`)."""
        found = _FILE.match(self.text.partition("\n")[0])
        return found["name"] if found else None

    @property
    def continued(self) -> bool:
        """Whether it goes on with a file that an earlier block began (`# app.py, continued`)."""
        found = _FILE.match(self.text.partition("\n")[0])
        return bool(found and found["more"])


def fences(page: Path) -> list[Fence]:
    """The code blocks of a page. Raises ValueError for a fence that is not closed, or indented."""
    found: list[Fence] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        if re.match(r"^\s+```", lines[number]):
            raise ValueError(f"{page}:{number + 1}: an indented fence is not tested: begin it at the margin")
        opened = _OPEN.match(lines[number])
        number += 1
        if not opened:
            continue
        start = number
        while number < len(lines) and lines[number].rstrip() != opened["ticks"]:
            number += 1
        if number == len(lines):
            raise ValueError(f"{page}:{start}: this fence is not closed")
        text = "".join(f"{line}\n" for line in lines[start:number])
        found.append(Fence(page, start + 1, opened["info"].strip(), text))
        number += 1
    return found
