"""Runs a page as its reader would: files are written, commands and Python are run, outputs compared.

The law: one folder and one stack a page. A block is run in the order in which it stands; what a page calls
`trellis up` is a real worker and beat on the session's servers (in start.md it is the command itself).

How a page is written:
  ```python      run in one namespace for the page, `#> ` shows what is printed, `#! ` what is raised;
                 with `# name.py` (or `# name.py, continued`) as its first line it is that file
  ```yaml, json  the same for files; a definition's form is checked
  ```console     commands after `$ `, run and compared with what is shown; without `$ ` only checked
                 `trellis up`, `trellis worker` and `celery -A … worker` go on in the background
  ```bash        commands that are only checked (commands.py); `export` holds for the rest of the page, with
                 addresses of ours: those of the session's servers, and of a language model that the test plays
  ```sql         run on the page's database
  ```text        not run
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import commands
import transcript
import yaml
from fences import ROOT, Fence, fences
from forks import Zygote
from mind import mind
from stack import QUICK, Stack, eventually

from trellis.tasks import services
from trellis.tasks.processes import make_folder, only_one
from trellis.tasks.stack import STACK_LOCK
from trellis.workflows import files

PATIENCE = 90.0  # seconds for one command
REAL = ("docs/start.md",)  # where `trellis up` is the command itself
# Shown without imports, since the text says where they come from.
PRELUDE = {"docs/howto/scale.md": "from trellis.workflows import Artifact, action"}
TRELLIS = Path(sys.executable).with_name("trellis")
READY = "Ctrl-C stops all"


def environment(**more: str) -> dict[str, str]:
    """A reader's environment: the commands of this Python are on the path, and nothing of Trellis is set."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("TRELLIS_")}
    path = f"{TRELLIS.parent}{os.pathsep}{ours.get('PATH', '')}"
    return {**ours, "PATH": path, "COLUMNS": "100", "PYTHONDONTWRITEBYTECODE": "1", **more}


class Book:
    """One page, one folder, one stack."""

    def __init__(self, page: Path, stack: Stack, zygote: Zygote, folder: Path) -> None:
        self.page = page
        self.folder = folder
        self.problems: list[str] = []
        self.edits: list[tuple[int, int, list[str]]] = []  # lines of the page as they should be
        self._stack = stack
        self._zygote = zygote
        self._real = str(page.relative_to(ROOT)) in REAL
        self._environment = environment()
        self._ids: dict[str, str] = {}
        self._modules: set[str] = set()
        self._repl: Repl | None = None
        self._worker: tuple[int, list[str], dict[str, str]] | None = None
        self._running: list[int] = []
        self._ticking = False
        self._up: subprocess.Popen[bytes] | None = None
        self._held = ExitStack()

    def read(self) -> None:
        """Run all of it."""
        try:
            if not self._real:
                self._settle()
            for fence in fences(self.page):
                self._fence(fence)
            for module in sorted(self._modules):
                self._python(f"import {module}", f"{module}.py", [])
        finally:
            self._close()

    # --- blocks

    def _fence(self, fence: Fence) -> None:
        if fence.language in ("yaml", "json"):
            self._data(fence)
        elif fence.language == "python":
            if fence.file is not None:
                self._write(fence)
                self._modules.add(fence.file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
            else:
                self._code(fence)
        elif fence.language == "console" and re.search(r"^\$ ", fence.text, re.MULTILINE):
            self._transcript(fence)
        elif fence.language == "sql":
            self._stack.rows(fence.text)
        elif fence.language in ("bash", "console"):
            for line in commands.lines_of(fence.text):
                self._checked(fence, line)
                if line.startswith("export "):
                    self._export(shlex.split(line)[1:])

    def _write(self, fence: Fence) -> None:
        assert fence.file is not None
        path = self.folder / fence.file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if fence.continued else "w") as file:
            file.write(fence.text)
        if self._repl is not None:  # whoever changes a module starts a new Python
            self._repl.close()
            self._repl = None

    def _data(self, fence: Fence) -> None:
        content = yaml.safe_load(fence.text)
        if fence.file is not None:
            self._write(fence)
        if isinstance(content, dict) and "steps" in content and "services" not in content:
            files.loads(fence.text, name=fence.place, form="json" if fence.language == "json" else "yaml")

    def _checked(self, fence: Fence, line: str) -> None:
        try:
            commands.check(line)
        except Exception as error:
            message = getattr(error, "message", None) or str(error)
            self.problems.append(f"{fence.place}: {line!r} would be refused: {message}")

    def _export(self, assignments: list[str]) -> None:
        """As in the reader's shell, but the servers are ours."""
        ours = {
            "TRELLIS_DATABASE_URL": self._stack.database_url,
            "TRELLIS_BROKER_URL": self._stack.broker_url,
            "TRELLIS_RESULT_BACKEND_URL": self._stack.servers.redis.url(110),
            "TRELLIS_FOREIGN_RESULTS_URL": self._stack.servers.redis.url(111),
            "CELERY_BROKER_URL": self._stack.broker_url,
            "CELERY_RESULT_BACKEND": self._stack.servers.redis.url(111),
        }
        for each in assignments:
            name, _, value = each.partition("=")
            if name == "TRELLIS_LLM_URL":
                model = mind()
                self._held.callback(model.close)
                ours[name] = model.url
            self._environment[name] = ours.get(name, value)

    # --- Python

    def _code(self, fence: Fence) -> None:
        lines = fence.text.splitlines()
        nodes = ast.parse(fence.text).body
        starts = [
            min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) for node in nodes
        ]
        for number, start in enumerate(starts):
            end = starts[number + 1] - 1 if number + 1 < len(starts) else len(lines)
            part = lines[start - 1 : end]
            shown = [line.strip() for line in part if re.match(r"\s*#[>!]", line)]
            code = "\n" * (fence.line + start - 2) + "\n".join(part)
            self._python(code, fence.place, shown)

    def _python(self, code: str, place: str, shown: list[str]) -> None:
        prelude = PRELUDE.get(str(self.page.relative_to(ROOT)), "")
        if self._repl is None:
            self._repl = Repl(self._zygote, self.folder, self._environment)
            self._repl.run(prelude, "prelude")
        answer = self._repl.run(code, place)
        output = [f"#> {line}".rstrip() for line in answer["out"].splitlines()]
        if answer["error"] is not None:
            output += [f"#! {line}" for line in answer["error"].splitlines()]
        problem = transcript.differs(shown, output, self._remember)
        if problem is not None:
            said = answer["traceback"] if answer["error"] else ""
            self.problems.append(f"{place}: {code.strip().splitlines()[0]}: {problem}\n{said}")

    # --- commands

    def _transcript(self, fence: Fence) -> None:
        lines = fence.text.splitlines()
        starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
        for position, start in enumerate(starts):
            end = starts[position + 1] if position + 1 < len(starts) else len(lines)
            first = start + 1
            while lines[first - 1].endswith("\\"):
                first += 1
            command = " ".join(line.removeprefix("> ").rstrip("\\") for line in lines[start:first])[2:]
            output = self._command(command)
            shown = lines[first:end]
            problem = transcript.differs(shown, output, self._remember)
            if problem is not None and command == "trellis doctor":  # asked again, a busy worker answers
                output = self._command(command)
                problem = transcript.differs(shown, output, self._remember)
            if problem is not None:
                self.problems.append(f"{fence.place}: $ {command}: {problem}\n" + "\n".join(output))
                if "Traceback" not in "".join(output):
                    self.edits.append((fence.line - 1 + first, fence.line - 1 + end, output))

    def _command(self, command: str) -> list[str]:
        for documented, true in self._ids.items():
            command = re.sub(rf"\b{documented[:13]}[0-9a-f-]*", true, command)
        words = shlex.split(command, comments=True)
        env = dict(self._environment)
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            env[name] = value
        if words[:2] == ["trellis", "up"]:
            return self._start_up(words[2:], env)
        if words[:2] == ["trellis", "worker"]:
            self._start_worker(words[2:], env)
            return []
        if words[:2] == ["celery", "-A"] and "worker" in words:  # of an application of the page's own
            self._celery(words[2], ["", "", *words, "-l", "info"], env)
            return []
        if words[:2] == ["kill", "-9"]:
            self._kill()
            return []
        if words[0] in ("trellis", "python") and not re.search(r"[|<>;&$]", command):
            return self._program(words, env)
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=env, timeout=PATIENCE, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        return transcript.lines_of(done.stdout)

    def _program(self, words: list[str], env: dict[str, str]) -> list[str]:
        out = self.folder.parent / "out.txt"
        with out.open("wb") as file, open(os.devnull, "rb") as nothing:
            pid = self._zygote.start(words, self.folder, env, nothing.fileno(), file.fileno(), file.fileno())
        late = threading.Timer(PATIENCE, os.killpg, (pid, signal.SIGKILL))
        late.start()
        try:
            self._zygote.wait(pid)
        finally:
            late.cancel()
        return transcript.lines_of(out.read_text())

    def _remember(self, documented: str, true: str) -> None:
        self._ids[documented] = true

    # --- the stack

    def _start_up(self, arguments: list[str], env: dict[str, str]) -> list[str]:
        if self._real:
            return self._really_up(arguments, env)
        self._stop_worker()
        self._announce(
            commands.application().commands["up"].make_context("up", list(arguments)).params["imports"]
        )
        if not self._ticking:
            self._ticking = True
            schedule = self.folder / ".trellis" / "beat-schedule"
            self._celery("beat", services.beat_command(self._stack.settings, schedule), env)
        self._start_worker(arguments, env)
        return []

    def _settle(self) -> None:
        """The folder of a stack that runs."""
        home = self.folder / ".trellis"
        make_folder(home / "run")
        make_folder(home / "logs")
        self._held.enter_context(only_one(home / STACK_LOCK, "the stack of a page"))
        self._announce(())

    def _announce(self, imports: Sequence[str] | None) -> None:
        """What the commands of a second terminal find."""
        facts = {
            "database_url": self._stack.database_url,
            "broker_url": self._stack.broker_url,
            "imports": list(imports or ()),
        }
        (self.folder / ".trellis" / "stack.json").write_text(json.dumps(facts))

    def _start_worker(self, arguments: list[str], env: dict[str, str]) -> None:
        given = commands.application().commands["worker"].make_context("worker", arguments).params
        imports = ",".join(given["imports"] or ())
        for module in given["imports"] or ():
            assert (self.folder / f"{module.replace('.', '/')}.py").exists(), (
                f"{self.page}: there is no {module!r}"
            )
        queues = [queue for queue in (given["queues"] or "").split(",") if queue]
        command = services.worker_command(
            self._stack.settings,
            queues=queues,
            concurrency=given["concurrency"] or 2,
            name=given["name"] or "trellis",
        )
        name = given["name"] or "worker"
        env = {**env, "TRELLIS_IMPORTS": imports}
        pid = self._celery(name, command, env)
        if name == "worker":
            self._worker = (pid, command, env)

    def _celery(self, name: str, command: list[str], env: dict[str, str]) -> int:
        """Start one of Celery's programs, with settings that make nobody wait."""
        quick = {f"TRELLIS_{key.upper()}": str(value) for key, value in QUICK.items()}
        addresses = {
            "TRELLIS_DATABASE_URL": self._stack.database_url,
            "TRELLIS_BROKER_URL": self._stack.broker_url,
            "TRELLIS_HOME": str(self.folder / ".trellis"),
        }
        log = self.folder / ".trellis" / "logs" / f"{name}.log"
        began = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file, open(os.devnull, "rb") as nothing:
            pid = self._zygote.start(
                command[2:], self.folder, {**env, **addresses, **quick},
                nothing.fileno(), file.fileno(), file.fileno(),
            )  # fmt: skip
        self._running.append(pid)
        if "worker" in command:
            eventually(lambda: " ready" in log.read_text()[began:], 60, f"{name} is ready: {log}")
        return pid

    def _kill(self) -> None:
        """SIGKILL the worker while a step runs; what watches over it, as `trellis up` does, starts it again."""
        assert self._worker is not None
        pid, command, env = self._worker
        eventually(lambda: self._stack.rows(
            "SELECT 1 FROM step WHERE state = 'running' AND started_at < clock_timestamp() - interval '0.4 s'"
        ))  # fmt: skip
        self._end(pid)
        self._worker = (self._celery("worker", command, env), command, env)

    def _stop_worker(self) -> None:
        if self._worker is not None:
            self._end(self._worker[0])
            self._worker = None

    def _end(self, pid: int) -> None:
        """Without a word: what is lost that way comes back, and a polite end takes two seconds."""
        os.killpg(pid, signal.SIGKILL)
        self._zygote.wait(pid)
        self._running.remove(pid)

    def _really_up(self, arguments: list[str], env: dict[str, str]) -> list[str]:
        log = self.folder.parent / "up.log"
        with log.open("wb") as out:
            self._up = subprocess.Popen(
                [str(TRELLIS), "up", *arguments], cwd=self.folder, env=env, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        up = self._up
        eventually(lambda: READY in log.read_text() or up.poll() is not None, 90, "trellis up is ready")
        shown = [line for line in transcript.lines_of(log.read_text()) if not re.match(r"\w+ +│ ", line)]
        return shown[: 1 + next(n for n, line in enumerate(shown) if READY in line)]

    def _close(self) -> None:
        self._held.close()
        if self._repl is not None:
            self._repl.close()
        for pid in list(self._running):
            self._end(pid)
        if self._up is not None:
            self._up.send_signal(signal.SIGINT)
            if self._up.wait(60) != 0:
                self.problems.append("`trellis up` did not end well")

    def mend(self) -> None:
        """Write what came out into the page (UPDATE_DOCS=1)."""
        lines = self.page.read_text(encoding="utf-8").splitlines()
        for start, end, output in sorted(self.edits, reverse=True):
            lines[start:end] = output
        self.page.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Repl:
    """A Python in the page's folder."""

    def __init__(self, zygote: Zygote, folder: Path, env: dict[str, str]) -> None:
        self._zygote = zygote
        questions, ask = os.pipe()
        answer, answers = os.pipe()
        with (folder.parent / "repl.log").open("ab") as log:
            self._pid = zygote.start(["repl"], folder, env, questions, answers, log.fileno())
        os.close(questions)
        os.close(answers)
        self._ask = os.fdopen(ask, "w", encoding="utf-8")
        self._answer = os.fdopen(answer, encoding="utf-8")

    def run(self, code: str, name: str) -> dict[str, Any]:
        """Run a piece of code; what it printed and raised."""
        self._ask.write(json.dumps({"code": code, "name": name}) + "\n")
        self._ask.flush()
        late = threading.Timer(PATIENCE, os.killpg, (self._pid, signal.SIGKILL))
        late.start()
        line = self._answer.readline()
        late.cancel()
        assert line, f"{name}: Python ended, or took longer than {PATIENCE:g} s"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it as a reader would, with its last input."""
        self._ask.close()
        self._zygote.wait(self._pid)
        self._answer.close()
