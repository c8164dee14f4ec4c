"""How exports and the archive reach the object store.

Requests and links are signed by Signature Version 4, which every store accepts today. In newer regions and
for keys of KMS, AWS accepts only this version.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.common.settings import of, required


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStore:
    """The address of the store and our credentials. ``addressing`` puts the bucket into path or host."""

    endpoint: str = required("S3_ENDPOINT")
    access_key: str = required("S3_ACCESS_KEY")
    secret_key: str = required("S3_SECRET_KEY")
    region: str = of("S3_REGION")
    addressing: Literal["path", "virtual"] = of("S3_ADDRESSING")

    def files(self, *, connect_s: int, read_s: int, attempts: int) -> Any:
        """A file system of s3fs: timeouts in seconds, and the most attempts of a call.

        Of itself, s3fs closes its session on the loop of the thread that drops the last reference. That may
        be our own loop, where the close fails and leaves the connection open. This file system closes the
        session on the loop on which the session runs.
        """
        import s3fs

        class Files(s3fs.S3FileSystem):  # type: ignore[misc]
            @staticmethod
            def close_session(loop: Any, session: Any) -> None:
                if loop is not None and loop.is_running() and _is_on_another_loop(loop):
                    asyncio.run_coroutine_threadsafe(session.__aexit__(None, None, None), loop)
                else:
                    s3fs.S3FileSystem.close_session(loop, session)

        return Files(
            key=self.access_key,
            secret=self.secret_key,
            endpoint_url=self.endpoint,
            client_kwargs={"region_name": self.region},
            config_kwargs={
                "connect_timeout": connect_s,
                "read_timeout": read_s,
                "retries": {"total_max_attempts": attempts},
                "signature_version": "s3v4",
                "s3": {"addressing_style": self.addressing},
            },
            use_listings_cache=False,
            skip_instance_cache=True,
        )


def _is_on_another_loop(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is not loop
    except RuntimeError:
        return False
