"""Secrets are taken out of whatever is shown: pure.

The law: a password in an address, and the value of a field that is named like a secret, never leave.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"pass(word|wd|phrase)?$|secret|token|api_?key|authorization|credential|private_?key|audit_?keys|cookie",
    re.IGNORECASE,
)
# Anchored at "://", and bounded: a pattern that begins with the scheme tries every position of a long word (40 kB
# took 22 s, with the interpreter locked). Up to the last @, since passwords may hold @ and /.
_ADDRESS = re.compile(r"(?<=://)(?P<user>[^\s:/@]{0,200}):[^\s]{1,500}@")
_QUERY = re.compile(r"(?P<name>[?&;](?:password|passwd|token|secret|api_?key)=)[^\s&;]+", re.IGNORECASE)


def redact(value: Any, name: str = "") -> Any:
    """The value with passwords in addresses and secret-named fields replaced by ***, at any depth."""
    if name and _SECRET_NAME.search(name) and value is not None:
        return HIDDEN
    if isinstance(value, str):
        if "://" not in value:
            return value
        return _QUERY.sub(rf"\g<name>{HIDDEN}", _ADDRESS.sub(rf"\g<user>:{HIDDEN}@", value))
    if isinstance(value, Mapping):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value
