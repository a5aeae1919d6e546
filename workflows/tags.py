"""Texts by which people find their runs: tags, keys, correlation ids.

The law: pure. What Postgres could not keep, or nobody could read, is refused before it is written.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..tasks.errors import DefinitionError

_TAGS = 50
_TAG_CHARACTERS = 200


def tags_of(tags: Sequence[str], workflow: str | None = None) -> list[str]:
    """Tags, each once, in their order. Raises DefinitionError for what is none."""
    if isinstance(tags, str):
        raise DefinitionError(f"tags={tags!r}: give a list of texts, e.g. [{tags!r}]", workflow=workflow)
    found = list(dict.fromkeys(tags))
    for tag in found:
        if not isinstance(tag, str) or len(tag) > _TAG_CHARACTERS or not is_plain(tag):
            raise DefinitionError(
                f"{tag!r} is no tag: a tag is a text of 1 to {_TAG_CHARACTERS} characters, without NUL and lone "
                "surrogates",
                workflow=workflow,
            )
    if len(found) > _TAGS:
        raise DefinitionError(f"{len(found)} tags: a run has {_TAGS} at most", workflow=workflow)
    return found


def is_plain(value: str) -> bool:
    """Whether a text is short enough, not empty, and one that Postgres keeps."""
    if not 0 < len(value) <= 500 or "\x00" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
