"""Secret parameters and inputs: those that are declared as pydantic's SecretStr.

The law: a secret parameter is encrypted before the first row is laid out, so what the journal gets of it (parameters,
inputs, plans) is encrypted, and is opened at the call of an action that takes it as SecretStr. It goes nowhere else:
no text, condition, key or list is made of it, since those would be kept. A definition is kept as it is written, so no
secret stands in one. What declares no secret comes by nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from ..tasks.errors import DefinitionError
from ..tasks.vault import Vault, is_sealed


class Keys(Protocol):
    """The settings that say which keys there are."""

    def encrypting_keys(self) -> dict[str, bytes]:
        """The keys of secrets at rest by name; the first one encrypts."""


class _Every(frozenset[str]):
    """Whatever is asked for is among them; there are none to be named."""

    def __contains__(self, _: object) -> bool:
        return True


EVERY = _Every()  # the inputs of an action that this process does not know: any of them may be secret


def declared(schema: Any) -> bool:
    """Whether a JSON Schema is that of a SecretStr, or of one that may be left out (None)."""
    if not isinstance(schema, Mapping):
        return False
    if schema.get("format") == "password":
        return bool(schema.get("writeOnly"))
    return any(declared(each) for each in schema.get("anyOf") or ())


def within(schema: Any) -> bool:
    """Whether a secret is declared anywhere in a JSON Schema."""
    if isinstance(schema, Mapping):
        return declared(schema) or any(within(each) for each in schema.values())
    return isinstance(schema, list) and any(within(each) for each in schema)


def names(schemas: Mapping[str, Any]) -> frozenset[str]:
    """Those of parameters or inputs that are secret."""
    return frozenset(name for name, schema in schemas.items() if declared(schema))


def sealed(
    params: Mapping[str, Any],
    schemas: Mapping[str, Any],
    settings: Keys,
    workflow: str,
    *,
    ours: bool = False,
) -> dict[str, Any]:
    """Parameters as they are kept: the secret ones encrypted.

    ours: whether encrypted texts among them come from the journal, and stay as they are; anybody else's are texts like
    all others, so that nobody has them opened by handing them in.

    Raises ConfigurationError without a key.
    """
    secret = names(schemas)
    if not secret:
        return dict(params)
    vault = Vault(settings.encrypting_keys())
    found = dict(params)
    for name in secret & found.keys():
        value = found[name]
        if value is not None and not (ours and is_sealed(value)):
            found[name] = vault.seal(value, f"parameter {name!r} of workflow {workflow!r}")
    return found


def opened(
    inputs: Mapping[str, Any], secret: Iterable[str], settings: Keys, action: str
) -> Mapping[str, Any]:
    """Inputs as the action takes them. Raises SecretError."""
    found = dict(inputs)
    vault: Vault | None = None
    for name in secret:
        if is_sealed(found.get(name)):
            vault = vault or Vault(settings.encrypting_keys())
            found[name] = vault.open(found[name], f"input {name!r} of action {action!r}")
    return found


def refuse(schemas: Mapping[str, Any], what: str, workflow: str) -> None:
    """Raise DefinitionError where a parameter is secret. what: who would keep or carry it as it is."""
    for name in sorted(names(schemas)):
        raise DefinitionError(
            f"parameter {name!r} is secret, and {what}: start the run with `client.start`, or let the action read the "
            "secret where it runs",
            workflow=workflow,
        )
