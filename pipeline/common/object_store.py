"""The options of s3fs with which exports and the archive reach the object store.

Requests and links are signed by Signature Version 4, which every store accepts today. In newer regions and
for keys of KMS, AWS accepts only this version.
"""

from __future__ import annotations

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

    def options(self, *, connect_s: int, read_s: int, attempts: int) -> dict[str, Any]:
        """The arguments of ``s3fs.S3FileSystem``: timeouts in seconds, and the most attempts of a call."""
        return {
            "key": self.access_key,
            "secret": self.secret_key,
            "endpoint_url": self.endpoint,
            "client_kwargs": {"region_name": self.region},
            "config_kwargs": {
                "connect_timeout": connect_s,
                "read_timeout": read_s,
                "retries": {"total_max_attempts": attempts},
                "signature_version": "s3v4",
                "s3": {"addressing_style": self.addressing},
            },
            "use_listings_cache": False,
            "skip_instance_cache": True,
        }
