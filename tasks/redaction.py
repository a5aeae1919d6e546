"""Secrets are taken out of whatever is shown: pure.

The law: a password in an address, and the value of a field that is named like a secret, never leave.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"pass(word|wd|phrase)?$|secret|token|api_?key|authorization|credential|private_?key|cookie",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://[^\s:/@]*):(?P<password>[^\s@/]+)@", re.IGNORECASE)


def redact(value: Any, name: str = "") -> Any:
    """The value with passwords in addresses and secret-named fields replaced by ***, at any depth."""
    if name and _SECRET_NAME.search(name) and value is not None:
        return HIDDEN
    if isinstance(value, str):
        return _ADDRESS.sub(rf"\g<scheme>:{HIDDEN}@", value)
    if isinstance(value, Mapping):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value
