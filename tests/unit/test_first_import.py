"""What importing Trellis costs: applications do so long before they need most of it, or know where Postgres is."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import trellis.memory.cli_embedder, trellis.memory.embedders.service
import trellis.tasks.cli, trellis.tasks.vault, trellis.workflows
from trellis.tasks.settings import current

late = {"cryptography.hazmat", "numpy", "onnxruntime", "openai", "rule_engine", "torch"}
print(sorted(late & set(sys.modules)), current.cache_info().currsize)
"""


def test_workflows_memory_and_the_command_load_nothing_heavy_and_read_no_setting() -> None:
    """Who uses no vectors, secrets or conditions does not pay for them; nobody opens a connection on import."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout == "[] 0\n"
