"""The doctor's checks of Redis, the object store and the archive, as the processes will use them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pipeline.admin.doctor.finding import TIMEOUT_S, Finding, Level, first_line
from pipeline.common import settings
from pipeline.common.object_store import ObjectStore


def redis(values: settings.Values) -> Iterator[Finding]:
    if not values["REDIS_URL"]:
        yield Finding(Level.OK, "redis", "not configured: the database answers freshness")
        return
    import redis

    try:
        with redis.Redis.from_url(
            values["REDIS_URL"], socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        ) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        yield Finding(
            Level.FAIL,
            "redis",
            f"cannot be used: {first_line(error)}",
            "is Redis running, and does REDIS_URL fit? Unset it to do without: the database then answers",
        )
    else:
        yield Finding(Level.OK, "redis", "answers")


def object_store(values: settings.Values) -> Iterator[Finding]:
    if not values["S3_ENDPOINT"]:
        yield Finding(Level.OK, "object store", "not configured")
    else:
        yield _bucket("object store", values, values["S3_BUCKET"])


def archive(values: settings.Values) -> Iterator[Finding]:
    url = values["ARCHIVE_URL"]
    if url is None:
        yield Finding(Level.OK, "archive", "not configured (ARCHIVE_URL)")
        return
    parts = urlsplit(url)
    if parts.scheme == "s3":
        yield _bucket("archive", values, parts.netloc)
        return
    folder = Path(url2pathname(parts.path))
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        state = "can be written" if there == folder else f"is not there yet, and can be made in {there}"
        yield Finding(Level.OK, "archive", f"folder {folder} {state}")
    else:
        yield Finding(
            Level.FAIL,
            "archive",
            f"folder {folder} cannot be written",
            f"let this user write in {there}, or change ARCHIVE_URL; until then events wait in the database",
        )


def _bucket(name: str, values: settings.Values, bucket: str) -> Finding:
    """Can the bucket be listed, with the same options as exports and archive use?"""
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

    store = values.make(ObjectStore).files(connect_s=TIMEOUT_S, read_s=TIMEOUT_S, attempts=1)
    store.retries = 1
    try:
        store.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except (OSError, BotoCoreError) as error:
        return Finding(
            Level.FAIL,
            name,
            f"bucket {bucket} cannot be listed: {first_line(error)}",
            "does the bucket exist at S3_ENDPOINT, and may the key list, read and write it?",
        )
    return Finding(Level.OK, name, f"bucket {bucket} can be listed")
