"""Artifacts: data too large for the journal, kept behind fsspec and passed by reference.

The law: a step writes below a folder of its own attempt, so a late attempt can never overwrite what a
winner has written; the journal holds only the address.
"""

from __future__ import annotations

from typing import IO, Any, Literal, cast

import fsspec
from pydantic import BaseModel, ConfigDict, Field

Mode = Literal["rb", "wb", "rt", "wt", "r", "w", "ab", "at"]


class Artifact(BaseModel):
    """A reference to data outside the journal: return it from a step, take it as an input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(description="Any address that fsspec opens: file:///…, s3://…")

    def open(self, mode: Mode = "rb") -> IO[Any]:
        """A file object. Writing creates the folders that are missing."""
        if "r" not in mode:
            filesystem, path = fsspec.core.url_to_fs(self.uri)
            filesystem.makedirs(filesystem._parent(path), exist_ok=True)
        return cast("IO[Any]", fsspec.open(self.uri, mode).open())

    def read_bytes(self) -> bytes:
        """All of it."""
        with self.open("rb") as file:
            return cast(bytes, file.read())

    def write_bytes(self, data: bytes) -> Artifact:
        """Write all of it; answers with itself, so that a step can return it."""
        with self.open("wb") as file:
            file.write(data)
        return self

    def read_text(self) -> str:
        """All of it, as UTF-8."""
        return self.read_bytes().decode("utf-8")

    def write_text(self, text: str) -> Artifact:
        """Write all of it as UTF-8; answers with itself."""
        return self.write_bytes(text.encode("utf-8"))

    def exists(self) -> bool:
        """Whether it was written."""
        filesystem, path = fsspec.core.url_to_fs(self.uri)
        return bool(filesystem.exists(path))


def address(root: str, run: str, step: str, attempt: int, name: str) -> str:
    """Where a step's artifact of this name lives. Raises ValueError for a name that leaves its folder."""
    parts = name.split("/")
    if not name or name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise ValueError(
            f"artifact name {name!r}: use a relative name such as 'report.md' or 'parts/1.parquet'"
        )
    safe = step.replace("/", "_")
    return f"{root.rstrip('/')}/{run}/{safe}/{attempt}/{name}"
