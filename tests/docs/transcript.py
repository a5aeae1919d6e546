"""Is what a page shows what came out? Ids, times, addresses and the like may differ, nothing else.

The law: pure. `…` stands for anything in a line, a line of it alone for any lines; runs of blanks are one.
The ids that a page shows are remembered with the true ones, so that its later commands can name them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import groupby

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_SPAN = r"(?:\d[\d,.]* (?:ms|s|seconds)\b|\d+ min \d\d s|\d+ h \d\d min)"

# What differs from run to run: how it looks in a page, and what may stand there instead.
_MASKS: tuple[tuple[str, str], ...] = (
    (_UUID, _UUID),
    (r"\b[0-9a-f]{8}-[0-9a-f]{4}\b", r"[0-9a-f]{8}-[0-9a-f]{4}(?:-[0-9a-f-]+)?"),
    (r"\b[0-9a-f]{64}\b", r"[0-9a-f]{64}"),
    (r"\b(?=[a-f]*\d)[0-9a-f]{12}\b", r"[0-9a-f]{12}"),  # the digest of what an approval shows
    (
        r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)?",
        r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)?",
    ),
    (r"\b\d\d:\d\d:\d\d\b", r"\d\d:\d\d:\d\d"),
    (r"https?://127\.0\.0\.1:\d+", r"https?://127\.0\.0\.1:\d+"),
    (r"127\.0\.0\.1:\d+(?:/\w+)?", r"127\.0\.0\.1:\d+(?:/\w+)?"),
    (
        r"\b(?:Postgres|Redis|pgvector|trellis) \d+(?:\.\d+)+",
        r"(?:Postgres|Redis|pgvector|trellis) \d+(?:\.\d+)+",
    ),
    (r"\b(?:trellis|worker|gpu)@[\w.-]+", r"\w+@[\w.-]+"),
    (r"\bworker [\w.-]+:\d+", r"worker [\w.-]+:\d+"),
    (r'"worker": "[^"]*"', r'"worker": "[^"]*"'),
    (r"file://\S+", r"file://\S+"),
    (r"(?<![\w.])/(?:[\w.-]+/)+[\w.-]+", r"(?:/[\w.-]+)+"),
    (r"\bpid \d+", r"pid \d+"),
    (r"│ \d{2,7} +│", r"│ \d{2,7} +│"),
    (r"\d+ slots", r"\d+ slots"),
    (_SPAN, _SPAN),
    (r"passed in \d+\.\d\ds", r"passed in \d+\.\d\ds"),
    (r'"seconds": [\d.]+', r'"seconds": [\d.e-]+'),
    (r"[━─]{2,}", r"[━─]{2,}"),
    (r"…", r".*"),
    (r"\s+", r"\s+"),
)
_ANY = re.compile("|".join(f"(?P<m{number}>{seen})" for number, (seen, _) in enumerate(_MASKS)))
_LOGGED = re.compile(r"^\d\d:\d\d:\d\d ")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# On a terminal a bar stands there, which is gone at the end. And on a machine that is busy with other tests a worker
# may take its time to answer, which is said and means nothing.
_PASSING = re.compile(r"^(?:[\d,]+/[\d,]+ steps: |(?:nothing moves: )?no worker answers)")


def pattern(line: str) -> re.Pattern[str]:
    """What a line of output may look like if the page shows this."""
    parts: list[str] = []
    at = 0
    for found in _ANY.finditer(line):
        parts.append(re.escape(line[at : found.start()]))
        assert found.lastgroup is not None
        parts.append(_MASKS[int(found.lastgroup[1:])][1])
        at = found.end()
    parts.append(re.escape(line[at:]))
    return re.compile("".join(parts))


def lines_of(output: str) -> list[str]:
    """The lines of an output as a person sees them in the end."""
    plain = [_ANSI.sub("", line).rstrip() for line in output.splitlines()]
    kept = [line for line in plain if not _PASSING.match(line)]
    while kept and not kept[-1]:
        kept.pop()
    while kept and not kept[0]:
        kept.pop(0)
    return kept


def differs(shown: Sequence[str], output: Sequence[str], remember: Callable[[str, str], None]) -> str | None:
    """What is different, in a sentence; None where nothing is."""
    shown = _settled([line.strip() for line in shown if line.strip()])
    output = _settled([line.strip() for line in output if line.strip()])
    at = 0
    for number, line in enumerate(shown):
        if line == "…":
            following = next((pattern(later) for later in shown[number + 1 :] if later != "…"), None)
            if following is None:
                return None
            while at < len(output) and not following.fullmatch(output[at]):
                at += 1
            continue
        if at == len(output):
            return f"nothing came where the page shows {line!r}"
        if not pattern(line).fullmatch(output[at]):
            return f"the page shows {line!r}, what came is {output[at]!r}"
        for documented, true in zip(re.findall(_UUID, line), re.findall(_UUID, output[at]), strict=False):
            remember(documented, true)
        at += 1
    if at < len(output):
        return f"the page does not show {output[at]!r}"
    return None


def _settled(lines: list[str]) -> list[str]:
    """With neighbouring lines of a log in one order: two workers may tell them in either."""
    settled: list[str] = []
    for is_log, group in groupby(lines, lambda line: bool(_LOGGED.match(line))):
        together = list(group)
        settled += sorted(together, key=lambda line: line[9:]) if is_log else together
    return settled
