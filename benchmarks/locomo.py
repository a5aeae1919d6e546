"""Retrieval on conversations in LoCoMo's form: of the turns that answer a question, how many are among the first hits?

The law: only the product's public interface is used, with its own settings; a question goes in as it stands, answers
are never read. Each conversation is an agent of its own, each of its sessions an episode, each turn an entry: its
text with the caption of its picture, its speaker as `actor`, its session's time as `at`.

Recall at k is the mean over questions of |first k hits and evidence| / |evidence|. Evidence that names no turn is
dropped, a question that is left without any is skipped, and so is category 5 (adversarial: it has no answer in the
conversation).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from trellis.memory import EpisodicMemory, Hit, Scope
from trellis.memory.connections import MemoryDatabase
from trellis.memory.embedders import Embedder

KS = (5, 10, 20)
ALL = 1_000  # hits from which the lists by meaning and by words alone are read
ADVERSARIAL = 5
_ID = re.compile(r"D:?(\d+):(\d+)")


@dataclass(frozen=True, slots=True)
class Turn:
    """What somebody said."""

    id: str
    session: str
    speaker: str
    text: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns in their order, and questions with the ids of the turns that answer them."""

    name: str
    turns: list[Turn]
    questions: list[tuple[str, frozenset[str]]]


def files(paths: Iterable[Path]) -> list[Path]:
    """The files, those of folders among them."""
    found = [each for path in paths for each in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not found:
        raise SystemExit("no conversation: give files in LoCoMo's form, or a folder of them")
    return found


def read(path: Path) -> list[Conversation]:
    """The conversations of a file: one, or a list of them."""
    document = json.loads(path.read_text(encoding="utf-8"))
    whole = document if isinstance(document, list) else [document]
    return [_conversation(each, f"{path.stem}-{n}") for n, each in enumerate(whole)]


def _conversation(document: dict[str, Any], name: str) -> Conversation:
    spoken = document.get("conversation", document)
    turns: list[Turn] = []
    numbers = sorted(int(found[1]) for key in spoken if (found := re.fullmatch(r"session_(\d+)", key)))
    for number in numbers:
        session = f"session_{number}"
        at = _time(str(spoken.get(f"{session}_date_time", "")))
        for turn in spoken[session] or ():
            caption = turn.get("blip_caption")
            text = f"{turn.get('text') or ''} [{caption}]" if caption else turn.get("text") or ""
            turns.append(Turn(_id(turn["dia_id"]), session, turn["speaker"], text, at))
    known = {turn.id for turn in turns}
    questions = []
    for each in document["qa"]:
        evidence = frozenset(
            f"D{int(a)}:{int(b)}" for said in each.get("evidence") or () for a, b in _ID.findall(str(said))
        )
        if evidence & known and each.get("category") != ADVERSARIAL:
            questions.append((str(each["question"]), evidence & known))
    return Conversation(name, turns, questions)


def _id(text: str) -> str:
    found = _ID.search(text)
    return f"D{int(found[1])}:{int(found[2])}" if found else text


def _time(text: str) -> datetime:
    """`1:56 pm on 8 May, 2023`."""
    return datetime.strptime(text.replace(",", ""), "%I:%M %p on %d %B %Y")


def measure(
    conversations: Sequence[Conversation], embedder: Embedder, database: MemoryDatabase, say: Any
) -> dict[str, Any]:
    """Recall at 5, 10 and 20 by meaning alone, by words alone, and by both."""
    recalls: dict[str, list[list[float]]] = {"dense": [], "text": [], "hybrid": []}
    for conversation in conversations:
        memory = EpisodicMemory(embedder, Scope("locomo", conversation.name), database=database)
        _remember(memory, conversation)
        for question, evidence in conversation.questions:
            every = memory.search(question, ALL)
            lists = {
                "dense": sorted(every, key=lambda hit: hit.parts["dense_rank"]),
                "text": sorted(every, key=lambda hit: hit.parts["text_rank"]),
                "hybrid": memory.search(question, max(KS)),
            }
            for name, hits in lists.items():
                recalls[name].append([_recall(hits[:k], evidence) for k in KS])
        say(f"{conversation.name}: {len(conversation.turns)} turns, {len(conversation.questions)} questions")
    count = len(recalls["hybrid"])
    means = {
        name: [round(sum(each[n] for each in found) / max(count, 1), 4) for n in range(len(KS))]
        for name, found in recalls.items()
    }
    return {**means, "questions": count}


def _remember(memory: EpisodicMemory, conversation: Conversation) -> None:
    for session in dict.fromkeys(turn.session for turn in conversation.turns):
        memory.extend(
            session,
            [
                (turn.text, {"actor": turn.speaker, "at": turn.at, "metadata": {"turn": turn.id}})
                for turn in conversation.turns
                if turn.session == session
            ],
        )


def _recall(hits: Sequence[Hit], evidence: frozenset[str]) -> float:
    return len(evidence & {hit.metadata["turn"] for hit in hits}) / len(evidence)
