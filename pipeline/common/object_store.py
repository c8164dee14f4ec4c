"""How exports and the archive reach the object store: the one set of options for s3fs.

Requests and links are signed by Signature Version 4, which every store of today takes. AWS takes nothing else
in newer regions or for keys of KMS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.common.settings import of, required


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStore:
    """Where the store is, and who we are there. ``addressing``: is the bucket in the path or in the host?"""

    endpoint: str = required("S3_ENDPOINT")
    access_key: str = required("S3_ACCESS_KEY")
    secret_key: str = required("S3_SECRET_KEY")
    region: str = of("S3_REGION")
    addressing: Literal["path", "virtual"] = of("S3_ADDRESSING")

    def options(self, *, connect_s: int, read_s: int, attempts: int) -> dict[str, Any]:
        """The arguments of ``s3fs.S3FileSystem``: waits in seconds, and how often a call is made at most."""
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
