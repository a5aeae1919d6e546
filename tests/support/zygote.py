"""Starts Trellis' programs by forking a process that has imported them: 0.1 s instead of 2 s each.

The law: what runs is the real program in a real process of its own, with the environment, folder and
arguments that are asked for; only the imports are shared. Nothing that reads a setting is imported before.

A fork is cheap for as long as it leaves alone what it shares: measured, an empty program takes 0.53 s of processor,
nearly all of it when the interpreter ends, since the collector and the taking apart of all modules write to every page
that the fork has not copied yet. So what is there is frozen before the first fork (0.11 s), and a program ends as
`multiprocessing` ends its children: threads are waited for, exit functions run, streams flushed, and that is all
(0.014 s).

Each request is one message on a Unix socket (argument 1: its descriptor), with the descriptors that become
the program's stdin, stdout and stderr; it is answered with the pid. `poll` is answered with the exit status of a
pid, or null. When the socket closes, everything that was started here is killed.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

import celery.apps.beat
import celery.apps.worker
import celery.bin.celery
import celery.concurrency.prefork
import celery.worker.consumer  # noqa: F401
import flower.command  # noqa: F401  # the command `celery` loads it, whatever it is asked for
import rule_engine  # noqa: F401
from celery.__main__ import main as celery_main
from celery.fixups.django import fixup as django_fixup

import trellis.memory.console
import trellis.tasks.doctor
import trellis.tasks.transport
import trellis.workflows.answering
import trellis.workflows.cli
import trellis.workflows.draining
import trellis.workflows.events
import trellis.workflows.foreign
import trellis.workflows.misfit
import trellis.workflows.natives
import trellis.workflows.recovery
import trellis.workflows.schedules  # noqa: F401
from trellis.tasks import cli
from trellis.tasks.app import app
from trellis.tasks.settings import current


def repl() -> None:
    """Run blocks of Python in one namespace: lines of JSON come in, and go out."""
    import ast
    import io
    import traceback
    from contextlib import redirect_stdout

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line in sys.stdin:
        request = json.loads(line)
        out = io.StringIO()
        error, frames = None, ""
        code = compile(ast.parse(request["code"]), request["name"], "exec", flags=0, dont_inherit=True)
        with redirect_stdout(out):
            try:
                exec(code, namespace)
            except Exception as raised:
                error, frames = f"{type(raised).__name__}: {raised}", traceback.format_exc()
        answers.write(json.dumps({"out": out.getvalue(), "error": error, "traceback": frames}) + "\n")
        answers.flush()


def become(request: dict[str, Any]) -> None:
    """Turn this child into the program."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in os.environ
    program, *arguments = request["command"]
    sys.argv = [program, *arguments]
    sys.path[:0] = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    if program == "trellis":
        sys.exit(cli.main())
    sys.path.insert(0, request["folder"])
    if program == "celery":
        # Celery looks at the environment when an application is made, and ours was made before.
        django_fixup(app)
        celery_main()
    elif program == "python":
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        repl()


def end(status: int) -> NoReturn:
    """End this process as an interpreter would, but leave its memory alone."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run(request: dict[str, Any]) -> NoReturn:
    """Be the program to its end."""
    try:
        become(request)
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            end(leaving.code or 0)
        print(leaving.code, file=sys.stderr)
        end(1)
    except Exception:
        sys.excepthook(*sys.exc_info())
        end(1)
    end(0)


def start(request: dict[str, Any], descriptors: list[int], control: socket.socket) -> int:
    """Fork the program; its session is its own when this returns."""
    ready, say = os.pipe()
    pid = os.fork()
    if pid:
        os.close(say)
        os.read(ready, 1)
        os.close(ready)
        return pid
    control.close()
    os.setsid()
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.close(say)
    os.close(ready)
    run(request)


def poll(pid: int, running: set[int]) -> int | None:
    """The exit status of a program that is over."""
    found, status = os.waitpid(pid, os.WNOHANG)
    if not found:
        return None
    running.discard(pid)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    """Serve until the socket closes."""
    sys.path.pop(0)  # this folder is none of the programs' business
    assert current.cache_info().currsize == 0, "something that is imported here reads the settings"
    control = socket.socket(fileno=int(sys.argv[1]))
    gc.collect()
    gc.freeze()
    ours, running = os.getpid(), set[int]()
    try:
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 3)
            if not message:
                return
            request = json.loads(message)
            if "poll" in request:
                control.send(json.dumps(poll(request["poll"], running)).encode())
                continue
            pid = start(request, list(descriptors), control)
            running.add(pid)
            for descriptor in descriptors:
                os.close(descriptor)
            control.send(json.dumps(pid).encode())
    finally:
        for pid in running if os.getpid() == ours else ():  # a program's end comes by here as well
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
