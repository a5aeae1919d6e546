"""Actions of a script are named as workers import them."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
from trellis.workflows import action

@action
def fetch() -> int:
    return 1

print(fetch.name)
"""


def test_an_action_of_a_script_is_named_after_its_file(tmp_path: Path) -> None:
    """`python app.py`, `python -m app` and `import app` agree, so a worker that imports app knows the action."""
    (tmp_path / "app.py").write_text(SCRIPT)
    commands = [[str(tmp_path / "app.py")], ["-m", "app"], ["-c", "import app"]]
    names = [
        subprocess.run(
            [sys.executable, *each], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()
        for each in commands
    ]
    assert names == ["app.fetch"] * 3
