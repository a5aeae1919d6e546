"""Artifacts: data too large for the journal, kept behind fsspec and passed by reference.

The law: a step writes below a folder of its own attempt, so a late attempt can never overwrite what a
winner has written; the journal holds only the address. Where retention has purged the artifacts of a run, a mark stands
in its folder, and who opens one of them is told so.
"""

from __future__ import annotations

import re
from typing import IO, Any, Literal, cast

import fsspec
from pydantic import BaseModel, ConfigDict, Field

from ..tasks.errors import ArtifactPurged

_PURGED = ".purged"  # in a run's folder, where else folders of steps are, no name of which begins with a dot
_RUN = re.compile(r"/(?P<run>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/")

Mode = Literal["rb", "wb", "rt", "wt", "r", "w", "ab", "at"]


class Artifact(BaseModel):
    """A reference to data outside the journal: return it from a step, take it as an input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(description="Any address that fsspec opens: file:///…, s3://…")

    def open(self, mode: Mode = "rb") -> IO[Any]:
        """A file object. Writing creates the folders that are missing.

        Raises ArtifactPurged where the artifacts of its run were not kept for so long, FileNotFoundError.
        """
        if "r" not in mode:
            filesystem, path = fsspec.core.url_to_fs(self.uri)
            filesystem.makedirs(filesystem._parent(path), exist_ok=True)
        try:
            return cast("IO[Any]", fsspec.open(self.uri, mode).open())
        except FileNotFoundError as error:
            run = _purged(self.uri)
            if run is None:
                raise
            raise ArtifactPurged(self.uri, run) from error

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


def drop(root: str, run: str) -> None:
    """Delete the folder of a run's artifacts, if there is one."""
    filesystem, path = fsspec.core.url_to_fs(f"{root.rstrip('/')}/{run}")
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def purge(root: str, run: str) -> None:
    """Delete the artifacts of a run, if there are any, and leave the mark. Twice is as good as once."""
    filesystem, path = fsspec.core.url_to_fs(f"{root.rstrip('/')}/{run}")
    if not filesystem.exists(path):
        return
    mark = f"{path}/{_PURGED}"
    there = [
        name for name in filesystem.ls(path, detail=False) if not name.rstrip("/").endswith(f"/{_PURGED}")
    ]
    if there:
        filesystem.pipe_file(mark, b"")  # first, so that a purge that is broken off has said so
    for name in there:
        filesystem.rm(name, recursive=True)


def _purged(uri: str) -> str | None:
    """The run whose artifacts were purged, of which this was one."""
    filesystem, path = fsspec.core.url_to_fs(uri)
    for found in _RUN.finditer(path):
        if filesystem.exists(f"{path[: found.end()]}{_PURGED}"):
            return found["run"]
    return None
