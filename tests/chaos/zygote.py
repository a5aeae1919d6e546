"""Starts workers and beats by forking a process that has imported them: 0.1 s of work instead of 2 s each.

The law: what runs is the real program, in a session of its own, with the environment and arguments that are asked
for; only the imports are shared. Nothing that reads a setting is imported before. When the harness ends, however it
ends, the socket closes, and everything that was started here is killed.

Requests are messages on a Unix socket (argument 1: its descriptor), in JSON: `start` is answered with the pid, `poll`
with whether it has ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from typing import Any

import rule_engine  # noqa: F401
import sitecustomize
from celery.__main__ import main as celery_main
from celery.fixups.django import fixup as django_fixup

import trellis.tasks.transport
import trellis.workflows.answering
import trellis.workflows.client
import trellis.workflows.draining
import trellis.workflows.events
import trellis.workflows.foreign
import trellis.workflows.misfit
import trellis.workflows.natives
import trellis.workflows.recovery
import trellis.workflows.schedules  # noqa: F401
from trellis.tasks.app import app
from trellis.tasks.settings import current


def become(request: dict[str, Any]) -> None:
    """Turn this child into the program."""
    out = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for target, descriptor in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, out)):
        os.dup2(descriptor, target)
    os.environ.clear()
    os.environ.update(request["environment"])
    sitecustomize.use(os.environ.get("CHAOS_CLOCK"))
    sys.argv = ["celery", *request["arguments"]]
    django_fixup(app)  # Celery looks at the environment when an application is made, and ours was made before
    celery_main()


def start(request: dict[str, Any], control: socket.socket) -> int:
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
    os.close(say)
    os.close(ready)
    status = 1
    try:
        become(request)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:  # nothing of the zygote's own end is the program's business
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Serve until the socket closes."""
    assert current.cache_info().currsize == 0, "something that is imported here reads the settings"
    control = socket.socket(fileno=int(sys.argv[1]))
    running: set[int] = set()
    try:
        while message := control.recv(1 << 20):
            request = json.loads(message)
            if "poll" in request:
                pid = request["poll"]
                if pid in running and os.waitpid(pid, os.WNOHANG)[0]:
                    running.discard(pid)
                control.send(json.dumps(pid not in running).encode())
            else:
                pid = start(request, control)
                running.add(pid)
                control.send(json.dumps(pid).encode())
    finally:
        for pid in running:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
