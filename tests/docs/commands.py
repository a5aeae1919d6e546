"""Commands that a page shows and a test cannot run (servers, containers, installations): would they be taken?

The law: nothing is executed. Options are parsed by the real command line interfaces, files and targets are
looked up, variables are compared with the settings. A program that is not known here is refused, so that
nobody writes one without deciding how it is checked.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import typer
import yaml
from celery.bin.celery import celery
from fences import ROOT

from trellis.tasks import cli
from trellis.tasks.settings import PREFIX, Settings

_ASSIGNMENT = re.compile(r"^(?P<name>[A-Z][A-Z0-9_]*)=")
_PLACEHOLDER = re.compile(r"…")


def lines_of(text: str) -> Iterator[str]:
    """The commands of a block: no comments, continued lines joined, a prompt left out."""
    joined = text.replace("\\\n", " ")
    for line in joined.splitlines():
        bare = line.removeprefix("$ ").strip()
        if bare and not bare.startswith("#"):
            yield bare


def check(line: str) -> None:
    """Raise ValueError, or what the command line interface raises, for a command that would be refused."""
    for part in re.split(r"\s(?:&&|\||;)\s", line):
        words = shlex.split(part, comments=True)
        while words and (found := _ASSIGNMENT.match(words[0])):
            _variable(found["name"])
            words.pop(0)
        if words:
            program, *arguments = words
            _known(program)(arguments)


def _known(program: str) -> Callable[[list[str]], None]:
    if program not in _PROGRAMS:
        raise ValueError(f"{program!r} is not known: say in tests/docs/commands.py how it is checked")
    return _PROGRAMS[program]


def _variable(name: str) -> None:
    if name.startswith(PREFIX) and name.removeprefix(PREFIX).lower() not in Settings.model_fields:
        raise ValueError(f"there is no setting {name}")


def _export(arguments: list[str]) -> None:
    for each in arguments:
        _variable(each.partition("=")[0])


@cache
def application() -> Any:
    """The command `trellis`, with the commands of all floors (typer has a click of its own)."""
    for entry in entry_points(group=cli.GROUP):
        entry.load()(cli.app)
    return typer.main.get_command(cli.app)


def _click(group: Any, name: str) -> Callable[[list[str]], None]:
    def parse(arguments: list[str]) -> None:
        at = next((n for n, each in enumerate(arguments) if each in group.commands), None)
        if at is None:
            if any(each not in ("--version", "--help") for each in arguments):
                raise ValueError(f"{name} has no command among {arguments}")
            return
        command = group.commands[arguments[at]]
        rest = arguments[at + 1 :]
        if any(each in getattr(command, "commands", {}) for each in rest):
            _click(command, f"{name} {arguments[at]}")(rest)
            return
        given = [_PLACEHOLDER.sub("x", each) for each in arguments[at + 1 :]]
        if "--help" not in given:
            command.make_context(arguments[at], given, resilient_parsing=False)

    return parse


def _celery(arguments: list[str]) -> None:
    """Option names alone: Celery's commands want an application before they parse anything."""
    at = next(n for n, each in enumerate(arguments) if each in celery.commands)
    for group, given in ((celery, arguments[:at]), (celery.commands[arguments[at]], arguments[at:])):
        known = {option for each in group.params for option in each.opts}
        for each in given:
            if each.startswith("-") and each.partition("=")[0] not in known:
                raise ValueError(f"celery has no option {each}")


def _make(arguments: list[str]) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for each in arguments:
        if "=" not in each and each not in targets:
            raise ValueError(f"the Makefile has no target {each!r}")


def _pip(arguments: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for each in arguments:
        found = re.fullmatch(r"celery-trellis(?:\[([\w,]+)\])?(?:[=<>].*)?", each)
        if each.startswith("celery") and not found:
            raise ValueError(f"pip cannot install {each!r}")
        for extra in (found.group(1) or "").split(",") if found else ():
            if extra and extra not in extras:
                raise ValueError(f"there is no extra {extra!r}")


def _docker(arguments: list[str]) -> None:
    if arguments[:2] != ["compose", "-f"]:
        return
    services = yaml.safe_load((ROOT / arguments[2]).read_text())["services"]
    for each in arguments[3:]:
        scaled = re.fullmatch(r"([a-z]+)=\d+", each)
        if scaled and scaled.group(1) not in services:
            raise ValueError(f"{arguments[2]} has no service {scaled.group(1)!r}")


def _cp(arguments: list[str]) -> None:
    if not (ROOT / arguments[0]).exists():
        raise ValueError(f"there is no file {arguments[0]!r}")


def _anything(_: list[str]) -> None:
    """Programs of the system, with arguments that are none of ours."""


_PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "trellis": _click(application(), "trellis"),
    "celery": _celery,
    "make": _make,
    "pip": _pip,
    "docker": _docker,
    "export": _export,
    "cp": _cp,
    **dict.fromkeys(("cd", "git", "mkdir", "pytest", "python3", "source", "tail"), _anything),
}
