"""Secrets are taken out of whatever is shown: pure.

The law: a password in an address, and the value of a field that is named like a secret, never leave. The database has
the same rule for what its triggers write (`audit_redacted`): what is changed here is changed there, by a migration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_NAMES = (
    r"passw(or)?d|passphrase|passcode|pwd|secret|token|jwt|authorization|credential|cookie"
    r"|(api|access|private|signing|encryption|audit)[-_. ]?keys?"
)
# In ASCII, which is how the database reads the same patterns whatever its locale.
_FLAGS = re.IGNORECASE | re.ASCII
_SECRET_NAME = re.compile(rf"{_NAMES}|pass$|bearer$", _FLAGS)
# Anchored at "://", and bounded: a pattern that begins with the scheme tries every position of a long word (40 kB
# took 22 s, with the interpreter locked). Up to the last @, since passwords may hold @ and /.
_ADDRESS = re.compile(r"(?<=://)([^\s:/@]{0,200}):[^\s]{1,500}@", _FLAGS)
# Of a query, or of an address in words: `host=h password=p`, `Server=h;Pwd=p`. A value may be quoted.
_PAIR = re.compile(rf"((?:^|[?&;,\s])[\w.-]{{0,50}}(?:{_NAMES})=)(?:'[^']*'?|[^\s&;'][^\s&;]*)", _FLAGS)


def redact(value: Any, name: str = "") -> Any:
    """The value with passwords in addresses and secret-named fields replaced by ***, at any depth."""
    if name and _SECRET_NAME.search(name) and value is not None:
        return HIDDEN
    if isinstance(value, str):
        if "://" in value:
            value = _ADDRESS.sub(rf"\1:{HIDDEN}@", value)
        return _PAIR.sub(rf"\1{HIDDEN}", value) if "=" in value else value
    if isinstance(value, Mapping):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value
