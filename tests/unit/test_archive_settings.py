"""What ARCHIVE_URL may say."""

from __future__ import annotations

import pytest

from pipeline import config
from pipeline.common import settings

NEEDED = {"DATABASE_URL": "postgresql://h/d", "RABBITMQ_URL": "rabbitmq-stream://h"}
S3 = {"S3_ENDPOINT": "http://h", "S3_BUCKET": "b", "S3_ACCESS_KEY": "k", "S3_SECRET_KEY": "hunter2"}


@pytest.mark.parametrize("url", ["file:///srv/archive", "s3://bucket", "s3://bucket/some/prefix"])
def test_an_archive_is_a_folder_or_a_prefix_of_a_bucket(url: str) -> None:
    archive = config.load({**NEEDED, **S3, "ARCHIVE_URL": f"{url}/", "ARCHIVE_OUTBOX_MAX": "1MiB"}).archive
    assert archive is not None
    assert (archive.url, archive.interval_s, archive.outbox_bytes_max) == (url, 300, 2**20)
    assert "hunter2" not in repr(archive)
    assert config.load(NEEDED).archive is None


@pytest.mark.parametrize(
    "url", ["/srv/archive", "file://host/x", "file:///", "s3:///x", "http://h/b", "s3://b?x"]
)
def test_anything_else_is_refused(url: str) -> None:
    with pytest.raises(settings.ConfigError, match="expected s3://bucket/prefix or file:///folder"):
        settings.read({**S3, "ARCHIVE_URL": url})


def test_a_bucket_needs_the_settings_of_its_store() -> None:
    with pytest.raises(settings.ConfigError, match="ARCHIVE_URL is in an object store"):
        settings.read({"ARCHIVE_URL": "s3://bucket/prefix"})
