"""A file system that is full while a file named `disk-full` lies in the suite's folder."""

from __future__ import annotations

import errno
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from .trigger import folder

FLAG = "disk-full"


class _Torn:
    """A file of which half is written before the disk is full."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Torn:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


class FullDisk(LocalFileSystem):
    """The local file system, with an end."""

    protocol = ("chaosdisk",)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("chaosdisk://"))

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> Any:
        file = super()._open(path, mode, block_size, **kwargs)
        return _Torn(file) if "w" in mode and (folder() / FLAG).exists() else file
