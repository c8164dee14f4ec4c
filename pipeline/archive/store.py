"""The store of archive files: an S3 bucket or a folder. It writes and reads whole files, whatever they hold.

A name always has the same content, so a file may be written again. Nobody ever sees half of a file.
"""

from __future__ import annotations

import glob
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pipeline.common import private
from pipeline.config import ArchiveConfig

_CONNECT_S: Final = 5
_READ_S: Final = 20
_CALL_S: Final = 30
_BYTES_S_MIN: Final = 2**18
"""A call may take `_CALL_S`, and one more second for each `_BYTES_S_MIN` bytes that it sends.

The time-outs of the S3 client are not enough: they do not begin while a server has accepted the connection
and said nothing at all.
"""


class StoreError(Exception):
    """The store cannot be used now, or refuses. The remedy: repeat the call; every call is safe to repeat."""


class Missing(StoreError):
    """The store has no file of this name. The remedy: restore the file from a backup."""


class Store(Protocol):
    """Keeps whole files under names. Its methods block, so call them in a thread."""

    def write(self, name: str, data: bytes) -> None:
        """Keep a file durably under its name, and replace an earlier file. Raises `StoreError`."""

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises `Missing`, `StoreError`."""

    def delete(self, name: str) -> None:
        """Delete a file; nothing happens if there is none. Raises `StoreError`."""


def open_store(config: ArchiveConfig) -> Store:
    """The store that ARCHIVE_URL names: a folder for ``file://``, else a bucket."""
    parts = urlsplit(config.url)
    if parts.scheme == "file":
        return Folder(Path(url2pathname(parts.path)))
    return Bucket(config, f"{parts.netloc}{parts.path}".rstrip("/"))


class Folder:
    """Files below a local folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, name: str, data: bytes) -> None:
        path = self._folder / name
        try:
            private.make_folder(path.parent, below=self._folder)
            part = path.with_name(f".{path.name}.{os.getpid()}.part")
            try:
                with open(part, "wb", opener=private.opener) as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(path)
            except BaseException:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
                raise
            _remove_parts(path)
            for folder in path.parents:  # the names of new folders must outlive a power cut, too
                _sync_folder(folder)
                if folder == self._folder:
                    break
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror or error}") from error

    def read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError as error:
            raise Missing(f"{self._folder / name} is not there") from error
        except OSError as error:
            raise StoreError(f"{self._folder / name}: {error.strerror or error}") from error

    def delete(self, name: str) -> None:
        path = self._folder / name
        try:
            path.unlink(missing_ok=True)
            for folder in (path.parent, path.parent.parent):  # its hour and its day
                with suppress(OSError):  # not empty, or gone
                    folder.rmdir()
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror or error}") from error


def _remove_parts(path: Path) -> None:
    """Remove the parts of this file that were left where a process ended in the middle of a write.

    The archiver writes every file of a cut again until all of them are there, so no part stays for ever.
    Another archiver that is just writing the same file writes the same bytes, and tries again.
    """
    with suppress(OSError):
        for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Bucket:
    """Objects below a prefix of an S3 bucket."""

    def __init__(self, config: ArchiveConfig, root: str) -> None:
        self._config = config
        self._root = root
        self._files: Any = None

    def write(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        timeout_s = _CALL_S + len(data) / _BYTES_S_MIN
        self._run(path, lambda files: files.pipe_file(path, data, timeout=timeout_s))

    def read(self, name: str) -> bytes:
        path = f"{self._root}/{name}"
        return bytes(self._run(path, lambda files: files.cat_file(path, timeout=4 * _CALL_S)))

    def delete(self, name: str) -> None:
        path = f"{self._root}/{name}"
        with suppress(Missing):
            self._run(path, lambda files: files.rm_file(path, timeout=_CALL_S))

    def _run(self, path: str, work: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

        try:
            if self._files is None:
                self._files = self._connect()
            return work(self._files)
        except FileNotFoundError as error:
            raise Missing(f"s3://{path} is not there") from error
        except (OSError, BotoCoreError, ClientError, TimeoutError) as error:
            self._files = None
            cause = str(error).strip().partition("\n")[0]
            raise StoreError(f"s3://{path}: {cause or type(error).__name__}") from error

    def _connect(self) -> Any:
        assert self._config.store is not None
        files = self._config.store.files(connect_s=_CONNECT_S, read_s=_READ_S, attempts=2)
        files.retries = 1
        return files
