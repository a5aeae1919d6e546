"""`trellis run` and its kin, as a person and as a script use them: real processes, a real worker and beat."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from forks import ran
from stack import Stack, eventually, stack_of

from trellis.tasks.embedded import Servers

TRELLIS = Path(sys.executable).with_name("trellis")
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")

FLOW = """
import time
from pathlib import Path
from trellis.workflows import Context, Param, Retry, Workflow, action

@action
def load(months: list[int]) -> list[int]:
    return months

@action(retries=Retry(2, base=0.05))
def flaky(ctx: Context) -> str:
    if ctx.attempt < 2:
        raise ConnectionError("no route to host")
    return "there"

@action
def square(n: int) -> int:
    return n * n

@action
def report(squares: list[int], note: str, label: str) -> dict[str, object]:
    return {"sum": sum(squares), "note": note, "label": label}

@action
def breaks() -> int:
    return 1 // 0

@action
def waits(file: str, ctx: Context) -> str:
    while not Path(file).exists():
        ctx.heartbeat({"waits for": file})
        time.sleep(0.02)
    return "went on"

demo = Workflow("demo", params={"months": Param(list[int], default=[1, 2, 3]), "label": Param(str, default="x")})
raw = demo.step("raw", load, months=demo.params.months)
squares = demo.map("squares", square, over=raw, n=demo.item)
demo.step("report", report, squares=squares, note=demo.step("flaky", flaky), label=demo.params.label)

bad = Workflow("bad")
bad.step("behind", square, n=bad.step("broken", breaks))

slow = Workflow("slow", params={"file": str})
slow.step("behind", load, months=[], after=slow.step("waits", waits, file=slow.params.file))
"""
OTHER = """
from trellis.workflows import Workflow, action

@action
def nobody_knows() -> None: ...

wf = Workflow("other")
wf.step("a", nobody_knows)
"""
NESTED = """
from trellis.workflows import Workflow, action

@action
def one() -> int:
    return 1

wf = Workflow("nested")
wf.step("a", one)
"""
YAML = """
name: from_yaml
params:
  n: {type: integer}
steps:
  first: {action: flow.square, inputs: {n: "${params.n}"}}
  second: {action: flow.square, inputs: {n: "${steps.first}"}}
"""


class Project:
    """A user's folder, and the commands that are typed in it."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self.folder = folder
        files = {"flow.py": FLOW, "other.py": OTHER, "flows/nested.py": NESTED, "flow.yaml": YAML}
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    def environment(self, **env: str) -> dict[str, str]:
        return self.stack.environment(TRELLIS_IMPORTS="", PYTHONPATH="", COLUMNS="", **env)

    def __call__(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return ran(["trellis", *arguments], self.folder, self.environment(**env))

    def json(self, *arguments: str) -> Any:
        """What a program reads: nothing but JSON on stdout."""
        return json.loads(self(*arguments, "--json").stdout)

    def begin(self, **env: str) -> tuple[subprocess.Popen[str], Path]:
        """`trellis run slow --wait` as a process, and the file that it waits for."""
        file = self.folder / f"go-{time.monotonic_ns()}"
        command = [str(TRELLIS), "run", "flow.py:slow", "--wait", "-p", f"file={file}"]
        popen = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment(PYTHONUNBUFFERED="1", **env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return popen, file

    def latest(self) -> str:
        """The newest run that waits."""
        found = self.stack.client.list("slow", state="running", limit=1)
        return found[0].id if found else ""


@pytest.fixture(scope="module")
def trellis(servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    for stack in stack_of(servers, template, "cli_runs", 127, tmp_path_factory.mktemp("cli")):
        folder = stack.folder / "project"
        folder.mkdir()
        project = Project(stack, folder)
        stack.worker(TRELLIS_IMPORTS="flow,flows.nested", PYTHONPATH=str(folder))
        stack.beat()
        yield project


def test_a_run_is_watched_to_its_end(trellis: Project) -> None:
    """Plain lines where there is no terminal; a table, the retry, the result of the last step."""
    ended = trellis("run", "flow.py:demo", "--wait", "-p", "months=[1, 2]", "-p", "label=007")
    assert ended.returncode == 0, ended.stderr
    assert "\x1b" not in ended.stdout
    lines = [line.rstrip() for line in ended.stdout.splitlines()]
    assert any(line.endswith("ConnectionError: no route to host") for line in lines)
    assert any(re.match(r"✓  squares\[0…1\]  2 succeeded ", line) for line in lines)
    assert any(re.match(r"✓  flaky .* 2 \(1 retry\)$", line) for line in lines)
    assert "5 steps: 5 succeeded; 1 retry" in lines
    assert lines[-1] == 'report → {"sum": 5, "note": "there", "label": "007"}'


def test_without_wait_stdout_is_the_id(trellis: Project) -> None:
    """So that a script can keep it; how to watch it stands on stderr."""
    ended = trellis("run", "flow.yaml", "--import", "flow", "-p", "n=3")
    assert ended.returncode == 0, ended.stderr
    run = ended.stdout.strip()
    assert ID.fullmatch(run)
    assert ended.stderr == f"watch it: trellis show {run} --watch\n"
    watched = trellis("show", run[:20], "--watch", "--json")
    assert watched.returncode == 0, watched.stderr
    document = json.loads(watched.stdout)
    assert document["id"] == run
    assert document["state"] == "succeeded"
    assert document["progress"] == {"total": 2, "done": 2, "by_state": {"succeeded": 2}}
    assert [step["name"] for step in document["steps"]] == ["first", "second"]
    assert document["result"] == {"second": 81}
    shown = trellis("show", run)
    assert shown.returncode == 0
    assert shown.stdout.rstrip().endswith("second → 81")


def test_a_failed_run_is_exit_1_and_shows_where(trellis: Project) -> None:
    ended = trellis("run", "flow.py:bad", "--wait")
    assert ended.returncode == 1
    assert re.search(r"^✗  broken +failed ", ended.stdout, re.MULTILINE)
    assert re.search(r"^⊘  behind +cancelled", ended.stdout, re.MULTILINE)
    assert "broken: ZeroDivisionError: " in ended.stdout
    assert "return 1 // 0" in ended.stdout
    document = trellis.json("run", "flow.py:bad", "--wait")
    assert document["error"]["step"] == "broken"
    assert document["result"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nothing"], "there is no workflow 'nothing'"),
        (["run", "flwo.py"], "there is no file 'flwo.py'; did you mean 'flow.py'?"),
        (
            ["run", "flow.py:demo", "-p", "lable=x"],
            "parameter 'lable': does not exist; did you mean 'label'?",
        ),
        (["run", "flow.py:demo", "-p", "months=1,2"], "write e.g. -p months='[1, 2]'"),
        (["run", "flow.yaml", "-p", "n=3"], "there is no action 'flow.square'"),
        (["show", "zzz"], "there is no run 'zzz'"),
        (["show", "00000000-0000-7000-8000-000000000000"], "there is no run"),
        (["graph", "nothing"], "there is no workflow or run 'nothing'"),
    ],
)
def test_a_slip_is_one_message_and_exit_2(trellis: Project, arguments: list[str], message: str) -> None:
    ended = trellis(*arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_same_key_is_the_same_run(trellis: Project) -> None:
    first = trellis("run", "flow.py:demo", "--key", "nightly")
    again = trellis("run", "flow.py:demo", "--key", "nightly", "-p", "label=other")
    assert first.stdout == again.stdout
    assert "the key 'nightly' has this run since" in again.stderr


def test_a_run_is_cancelled_by_the_beginning_of_its_id(trellis: Project) -> None:
    popen, _ = trellis.begin()
    run = eventually(trellis.latest, 60, "the run")
    cancelled = trellis("cancel", run[:20])
    assert (cancelled.returncode, cancelled.stdout) == (0, f"{run} cancelled\n")
    out, _ = popen.communicate(timeout=60)
    assert popen.returncode == 1
    assert f"{run}  cancelled after" in out
    late = trellis("cancel", run)
    assert late.returncode == 1
    assert late.stderr == f"{run} is over already: it was cancelled\n"


def test_a_slip_in_one_of_several_ids_cancels_none(trellis: Project) -> None:
    file = trellis.folder / "go-slip"
    run = trellis("run", "flow.py:slow", "-p", f"file={file}").stdout.strip()
    assert trellis("cancel", run, "zzz").returncode == 2
    file.touch()
    assert trellis.stack.client.wait(run, 60).state == "succeeded"


def test_ctrl_c_where_nobody_can_be_asked_leaves_the_run_alone(trellis: Project) -> None:
    popen, file = trellis.begin()
    run = eventually(trellis.latest, 60, "the run")
    assert popen.stdout is not None
    assert "steps:" in popen.stdout.readline()  # it watches
    popen.send_signal(signal.SIGINT)
    _, err = popen.communicate(timeout=60)
    assert popen.returncode == 130
    assert f"trellis show {run} --watch" in err
    assert "Traceback" not in err
    file.touch()
    assert trellis.stack.client.wait(run, 60).state == "succeeded"


def test_on_a_terminal_ctrl_c_asks(trellis: Project) -> None:
    """The bar, what runs with its progress, the question, and the end."""
    file = trellis.folder / "never"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(trellis.folder)
        env = {**trellis.environment(TERM="xterm"), "LINES": "40"}
        env["COLUMNS"] = "100"
        os.execve(TRELLIS, [str(TRELLIS), "run", "flow.py:slow", "-w", "-p", f"file={file}"], env)
    seen = b""

    def until(what: str) -> str:
        nonlocal seen
        deadline = time.monotonic() + 60
        while what.encode() not in seen:
            assert time.monotonic() < deadline, seen.decode(errors="replace")
            try:
                seen += os.read(terminal, 4096)
            except OSError:  # how Linux says that the other side is gone
                break
        text, seen = seen.decode(errors="replace"), b""
        assert what in text
        return text

    text = until('{"waits for"')
    assert "━" in text
    assert "0/2" in text
    os.write(terminal, b"\x03")
    until("[d]etach and let it run, [c]ancel it, or [w]atch on?")
    os.write(terminal, b"c\n")
    until("2 cancelled")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 1


def test_an_action_that_no_worker_knows_is_told(trellis: Project) -> None:
    """At once, and in the live view, since such a run waits for ever."""
    ended = trellis("run", "other.py")
    assert ended.returncode == 0
    assert "no worker knows action 'other.nobody_knows'" in ended.stderr
    assert "trellis worker --import other" in ended.stderr
    trellis("cancel", ended.stdout.strip())


def test_a_file_runs_under_the_name_that_workers_know(trellis: Project) -> None:
    """The worker imports flows.nested; nobody told the command line."""
    ended = trellis("run", "flows/nested.py", "--wait")
    assert ended.returncode == 0
    assert "a → 1" in ended.stdout


def test_runs_are_listed_newest_first(trellis: Project) -> None:
    trellis("run", "flow.py:bad", "--wait")
    failed = trellis.json("runs", "--workflow", "bad", "--state", "failed", "--limit", "1")
    assert [(run["workflow"], run["state"]) for run in failed] == [("bad", "failed")]
    listed = trellis("runs", "-n", "2").stdout.splitlines()
    assert listed[0].split()[:3] == ["run", "workflow", "state"]
    assert listed[1].split()[:3] == [failed[0]["id"], "bad", "failed"]
    assert trellis("runs", "--workflow", "bda").stderr == "no runs of workflow 'bda'; did you mean 'bad'?\n"


def test_graphs_of_files_names_and_runs(trellis: Project, tmp_path: Path) -> None:
    assert "squares[]  flow.square" in trellis("graph", "flow.py:demo").stdout
    assert trellis("graph", "demo", "--import", "flow", "-f", "mermaid").stdout.startswith("flowchart TD")
    picture = tmp_path / "demo.svg"
    assert trellis("graph", "flow.yaml", "-o", str(picture)).returncode == 0
    assert picture.read_text().startswith("<svg")
    run = json.loads(trellis("run", "flow.py:bad", "--wait", "--json").stdout)["id"]
    drawn = trellis("graph", run).stdout
    assert "✗ broken" in drawn
    assert "⊘ behind" in drawn


def test_files_and_modules_are_drawn_without_a_database(trellis: Project) -> None:
    nowhere = {"TRELLIS_DATABASE_URL": "postgresql://trellis:hidden@127.0.0.1:1/trellis"}
    assert trellis("graph", "flow.py:demo", **nowhere).returncode == 0
    ended = trellis("runs", **nowhere)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: cannot reach Postgres")
    assert "Traceback" not in ended.stderr


def test_the_schema_takes_what_run_takes(trellis: Project) -> None:
    schema = json.loads(trellis("schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate({"name": "x", "steps": {"a": {"action": "b"}}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "x", "steps": {"a": {"acton": "b"}}}, schema)
