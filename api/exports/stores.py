"""Where files go: a bucket or a folder. An upload is there as a whole or not at all."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote, urlencode
from uuid import UUID

from api.config import S3Config
from pipeline.common import private

log = logging.getLogger(__name__)

LINK_S: Final = 24 * 3600
"""How long a signed link is good: 24 hours."""

MEDIA_TYPES: Final = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
_PART_BYTES: Final = 8 << 20


class Upload(Protocol):
    """A file that is being uploaded; `commit` or `abort` ends the upload."""

    def write(self, block: bytes, /) -> Any: ...

    def seal(self) -> None:
        """Make what was written durable. Nobody sees the file yet."""

    def commit(self) -> None:
        """Put the file in its place, in one step. A file that was there is replaced."""

    def abort(self) -> None:
        """Delete what was uploaded. Never raises."""


class Store(Protocol):
    """A place for files. Every method raises OSError when the place cannot be used."""

    def upload(self, key: str, *, org_id: UUID, job_id: UUID) -> Upload: ...

    def delete(self, key: str) -> None:
        """Delete one file. Idempotent."""

    def clear(self, stem: str, *, keep: str | None = None) -> None:
        """Delete every file whose key begins with ``stem``, except ``keep``, and remains of uploads."""

    def uri(self, key: str) -> str:
        """The name of an object, for people and for accounting. It is not a link."""

    def link(self, key: str, job_id: UUID, lasts_s: int = LINK_S) -> str:
        """A link that is good for ``lasts_s``: absolute, or relative to this server's own address."""


# --- a folder ------------------------------------------------------------------------------------


class FolderStore:
    """Files below one folder. This server signs their links and serves them."""

    def __init__(self, folder: Path, secret: bytes, base: str) -> None:
        self._folder = folder
        self._secret = secret
        self._base = base

    def upload(self, key: str, *, org_id: UUID, job_id: UUID) -> Upload:
        target = self.path(key)
        private.make_folder(target.parent, below=self._folder)
        return _FolderUpload(target)

    def delete(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

    def clear(self, stem: str, *, keep: str | None = None) -> None:
        begins = self.path(stem)
        for path in begins.parent.glob(f"{begins.name}*"):
            if keep is None or path != self.path(keep):
                path.unlink(missing_ok=True)

    def uri(self, key: str) -> str:
        return f"file:{key}"

    def link(self, key: str, job_id: UUID, lasts_s: int = LINK_S) -> str:
        expires = int(time.time()) + lasts_s
        query = urlencode({"expires": expires, "signature": self._sign(job_id, expires)})
        return f"{self._base}/exports/{job_id}/file?{query}"

    def is_signed(self, job_id: UUID, expires: int, signature: str) -> bool:
        """Did we sign this link, and is it still good?"""
        good = hmac.compare_digest(signature.encode("utf-8", "replace"), self._sign(job_id, expires).encode())
        return good and time.time() < expires

    def path(self, key: str) -> Path:
        return self._folder / key

    def _sign(self, job_id: UUID, expires: int) -> str:
        return hmac.digest(self._secret, f"export|{job_id}|{expires}".encode(), "sha256").hex()


class _FolderUpload:
    def __init__(self, target: Path) -> None:
        self._target = target
        self._part = target.with_name(f"{target.name}.{secrets.token_hex(8)}.part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.fdopen(private.opener(str(self._part), flags), "wb")

    def write(self, block: bytes, /) -> None:
        self._file.write(block)

    def seal(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def commit(self) -> None:
        self._part.replace(self._target)

    def abort(self) -> None:
        with suppress(OSError, ValueError):
            self._file.close()
        with suppress(OSError):
            self._part.unlink()


# --- a bucket ------------------------------------------------------------------------------------


class S3Store:
    """Objects in a bucket: multipart uploads, encrypted at rest, tagged with org and job."""

    def __init__(self, config: S3Config) -> None:
        self._bucket = config.bucket
        self._encryption = {"ServerSideEncryption": "AES256"} if config.encryption == "aes256" else {}
        # Every wait ends well before a lease does: a runner that lost its job hardly finishes it later.
        self._files = config.store.files(connect_s=5, read_s=15, attempts=3)

    def upload(self, key: str, *, org_id: UUID, job_id: UUID) -> Upload:
        file = self._files.open(
            f"{self._bucket}/{key}",
            "wb",
            block_size=_PART_BYTES,
            autocommit=False,
            **self._encryption,
            Tagging=urlencode({"org": str(org_id), "job": str(job_id)}),
            ContentType=MEDIA_TYPES[key.rpartition(".")[2]],
        )
        return _S3Upload(file)

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self._files.rm_file(f"{self._bucket}/{key}")

    def clear(self, stem: str, *, keep: str | None = None) -> None:
        folder, _, name = stem.rpartition("/")
        for path in self._files.find(f"{self._bucket}/{folder}", prefix=name):
            if keep is None or path != f"{self._bucket}/{keep}":
                self._files.rm_file(path)

    def uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{quote(key)}"

    def link(self, key: str, job_id: UUID, lasts_s: int = LINK_S) -> str:
        return str(self._files.sign(f"{self._bucket}/{key}", expiration=lasts_s))


class _S3Upload:
    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, block: bytes, /) -> None:
        self._file.write(block)

    def seal(self) -> None:
        self._file.close()

    def commit(self) -> None:
        self._file.commit()

    def abort(self) -> None:
        try:
            self._file.discard()
        except Exception as error:  # the bucket's own rules clear what is left
            log.warning("upload_not_aborted", extra={"error": str(error) or type(error).__name__})
