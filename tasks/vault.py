"""Secrets at rest: a text is encrypted where it is written, and opened where it is used.

The law: AES-256-GCM (NIST SP 800-38D) with a random nonce of 96 bits a text, under a key derived from the setting's
secret by HKDF-SHA256 (RFC 5869). What is kept says which key opens it: `trellis-secret:KEY:BASE64`, a plain text, so
that it travels wherever JSON does. The first key encrypts, all of them open. Nothing is loaded before the first secret.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from functools import lru_cache
from os import urandom
from typing import Any

from .errors import ConfigurationError, SecretError

PREFIX = "trellis-secret:"
HIDDEN = "**********"  # as pydantic shows a SecretStr
TOKEN = re.compile(r"trellis-secret:(?P<key>[\w.-]{1,100}):(?P<data>[A-Za-z0-9_=-]{40,})")
_NONCE = 12  # bytes


def is_sealed(value: Any) -> bool:
    """Whether a value is an encrypted text."""
    return isinstance(value, str) and value.startswith(PREFIX) and TOKEN.fullmatch(value) is not None


def hidden(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values to be shown: encrypted ones as asterisks."""
    return {name: HIDDEN if is_sealed(value) else value for name, value in values.items()}


class Vault:
    """The keys of a process."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        """keys: by name; the first one encrypts, all of them open."""
        self._keys = dict(keys)

    @property
    def newest(self) -> str | None:
        """The name of the key that encrypts; None where there is none."""
        return next(iter(self._keys), None)

    def seal(self, text: str, what: str) -> str:
        """A text as it is kept. Raises ConfigurationError, which names `what`, without a key."""
        name = self.newest
        if name is None:
            raise ConfigurationError(
                f"{what} is secret, and TRELLIS_SECRET_KEYS is not set, so it cannot be kept: set it for clients and "
                'workers alike; a new one is NAME:SECRET, for example "2026:" and the output of `openssl rand -hex 32`'
            )
        nonce = urandom(_NONCE)
        sealed = _cipher(self._keys[name]).encrypt(nonce, text.encode("utf-8", "surrogatepass"), _bound(name))
        return f"{PREFIX}{name}:{urlsafe_b64encode(nonce + sealed).decode()}"

    def open(self, sealed: str, what: str) -> str:
        """The text. Raises SecretError, which names `what`, where its key is missing or it was changed."""
        found = TOKEN.fullmatch(sealed)
        if found is None:
            raise SecretError(f"{what} is no encrypted text")
        name = found["key"]
        if name not in self._keys:
            raise SecretError(
                f"{what} is encrypted with key {name!r}, which TRELLIS_SECRET_KEYS does not name here"
            )
        from cryptography.exceptions import InvalidTag

        try:
            data = urlsafe_b64decode(found["data"])
            opened: bytes = _cipher(self._keys[name]).decrypt(data[:_NONCE], data[_NONCE:], _bound(name))
        except (InvalidTag, ValueError):
            raise SecretError(
                f"{what} does not open with key {name!r}: it was changed, or that key's secret was"
            ) from None
        return opened.decode("utf-8", "surrogatepass")

    def renewed(self, text: str) -> str:
        """A text with each encrypted text in it under the newest key. Raises as `open` and `seal`."""

        def again(found: re.Match[str]) -> str:
            if found["key"] == self.newest:
                return found[0]
            what = "a secret of the journal"
            return self.seal(self.open(found[0], what), what)

        return TOKEN.sub(again, text)


def _bound(name: str) -> bytes:
    return f"trellis secret\0{name}".encode()


@lru_cache(maxsize=100)
def _cipher(secret: bytes) -> Any:
    # Loaded with the first secret: it takes as long as all the rest of a short command.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return AESGCM(HKDF(SHA256(), 32, salt=None, info=b"trellis secrets at rest").derive(secret))
