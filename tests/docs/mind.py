"""The language model of a page: a server that speaks its protocol, and takes the facts that the page speaks of."""

from __future__ import annotations

import json
import re
from typing import Any

from endpoints import Answer, Endpoint, completion, quoted

TELLING = re.compile(r"I (?P<verb>drink|adopted) (?P<what>.+)")
NAMES = {"drink": ("drink", "drinks"), "adopted": ("dog", "has adopted")}


def mind() -> Endpoint:
    """A model that is asked at `url`."""
    return Endpoint(_answer)


def _answer(body: dict[str, Any]) -> Answer:
    facts = []
    for turn in quoted(body)["turns"]:
        found = TELLING.search(turn["text"])
        if found is not None:
            who = turn["from"].partition(" ")[0]
            what, verb = NAMES[found["verb"]]
            told = {"about": who, "what": what, "fact": f"{who} {verb} {found['what']}", "worth": "normal"}
            facts.append({"turns": [turn["turn"]], **told})
    return 200, {}, completion(json.dumps({"facts": facts}))
