"""The collector's configuration: what is told, and what contradicts."""

from pathlib import Path

import pytest

from pipeline.collector import config
from pipeline.common.settings import ConfigError

STREAM = {"RABBITMQ_URL": "embedded:///nowhere"}


def faults(**environment: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        config.load(STREAM | environment)
    return refused.value.faults


def test_a_stream_is_all_that_a_collector_needs() -> None:
    loaded = config.load(STREAM)
    assert (loaded.hosts, loaded.port, loaded.spool, loaded.database_url) == (
        ("127.0.0.1",),
        8086,
        None,
        None,
    )
    assert loaded.service_name == "spendstream-collector"
    with pytest.raises(ConfigError, match="RABBITMQ_URL is not set"):
        config.load({})


def test_a_spool_is_configured_by_its_folder(tmp_path: Path) -> None:
    spool = config.load(
        STREAM | {"COLLECTOR_SPOOL": str(tmp_path), "COLLECTOR_SPOOL_BYTES_MAX": "64MiB"}
    ).spool
    assert spool is not None
    assert (spool.folder, spool.bytes_max, spool.after_s) == (tmp_path, 64 * 2**20, 0.25)
    missing = config.load(STREAM | {"COLLECTOR_SPOOL": str(tmp_path / "missing")}).spool
    assert missing is not None
    assert missing.folder == tmp_path / "missing"
    (tmp_path / "file").touch()
    for wrong in ("relative", str(tmp_path / "file")):
        assert "absolute path of a folder" in faults(COLLECTOR_SPOOL=wrong)[0]


def test_without_authentication_a_collector_listens_on_loopback_alone() -> None:
    config.load(STREAM | {"COLLECTOR_HOST": "127.0.0.1,::1"})
    config.load(STREAM | {"COLLECTOR_HOST": "0.0.0.0", "AUTH_MODE": "gateway"})
    assert "COLLECTOR_HOST must be a loopback address" in faults(COLLECTOR_HOST="0.0.0.0")[0]


@pytest.mark.parametrize(
    ("body", "unpacked", "memory", "is_enough"),
    [
        ("12MiB", "12MiB", "48MiB", True),
        ("12MiB", "12MiB", "47MiB", False),
        ("4MiB", "20MiB", "80MiB", True),
        ("4MiB", "20MiB", "79MiB", False),
        ("20MiB", "4MiB", "48MiB", True),
        ("20MiB", "4MiB", "47MiB", False),
    ],
)
def test_one_request_fits_in_half_of_the_memory(
    body: str, unpacked: str, memory: str, is_enough: bool
) -> None:
    settings = {
        "COLLECTOR_BODY_BYTES_MAX": body,
        "COLLECTOR_UNPACKED_BYTES_MAX": unpacked,
        "COLLECTOR_MEMORY_MAX": memory,
    }
    if is_enough:
        config.load(STREAM | settings)
    else:
        assert "COLLECTOR_MEMORY_MAX must be at least" in faults(**settings)[0]


def test_no_secret_is_shown() -> None:
    secret = "a secret of more than 32 characters, indeed"
    loaded = config.load(
        STREAM
        | {
            "DATABASE_URL": "postgresql://collector:hunter22@db/spend",
            "API_KEY_SECRET": secret,
            "REDIS_URL": "redis://:hunter22@redis",
        }
    )
    assert "hunter22" not in repr(loaded)
    assert secret not in repr(loaded)
    assert {secret, "hunter22"} <= set(loaded.secrets)
