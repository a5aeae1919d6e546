"""Every code block of README and docs is what it says: it runs, and what it shows is what comes out.

After a change of what commands print: UPDATE_DOCS=1 .venv/bin/pytest tests/docs/test_blocks.py, then read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from book import Book, Zygote
from fences import PAGES, ROOT, RUN, SHOWN, fences
from stack import Stack


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs_as_its_reader_would(page: Path, stack: Stack, zygote: Zygote, tmp_path: Path) -> None:
    """Files are written, commands and Python are run, outputs compared."""
    folder = tmp_path / "project"
    folder.mkdir()
    book = Book(page, stack, zygote, folder)
    book.read()
    if book.edits and os.environ.get("UPDATE_DOCS"):
        book.mend()
    assert not book.problems, "\n\n".join(book.problems)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is(page: Path) -> None:
    """A block in a language that nobody runs or checks would be an untested promise."""
    strange = [fence.place for fence in fences(page) if fence.language not in (*RUN, *SHOWN)]
    assert not strange
