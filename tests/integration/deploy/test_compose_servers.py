"""SeaweedFS as the compose file starts it: its check of health, its buckets, and who may read them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from deploy.local.ports import free_port
from tests.support import image
from tests.support.processes import get, wait_for

FOLDER: Final = image.ROOT / "deploy/compose"
SERVICES: Final[Mapping[str, Any]] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
PARTS: Final = ("s3", "master", "volume", "filer")


class Store:
    """SeaweedFS with the compose file's command. Only addresses, ports and folders are of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secrets = folder / "secrets"
        subprocess.run(("sh", str(FOLDER / "secrets.sh"), str(self.secrets)), check=True)
        self.ports = {name: free_port() for part in PARTS for name in (part, f"{part}.grpc")}
        ours = [
            f"-{name.replace('.grpc', '')}.port{'.grpc' * ('grpc' in name)}={p}"
            for name, p in self.ports.items()
        ]
        ours += [f"-{part}.localSocket={folder}/{part}.sock" for part in ("s3", "filer")]
        ours += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        command = self._here("s3").replace(" -s3.port=8333", "")
        command = command.replace("-dir=/data", f"-dir={folder}/data").replace("-ip=s3", "-ip=127.0.0.1")
        command = command.replace("-ip.bind=0.0.0.0", "-ip.bind=127.0.0.1")
        (folder / "data").mkdir()
        with (folder / "weed.log").open("wb") as out:
            self.process = subprocess.Popen(
                ("/bin/sh", "-ec", f"{command} {' '.join(ours)}"), env=self._env, stdout=out, stderr=out
            )

    @property
    def _env(self) -> dict[str, str]:
        path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
        return {"PATH": path, "HOME": str(self.folder)}

    def _here(self, service: str) -> str:
        """A service's command, with the secrets of this folder."""
        (command,) = SERVICES[service]["command"]
        return str(command).replace("$$", "$").replace("/run/secrets", str(self.secrets))

    def make_buckets(self) -> subprocess.CompletedProcess[str]:
        """Run the service `buckets`."""
        master = f"127.0.0.1:{self.ports['master']}.{self.ports['master.grpc']}"
        script = self._here("buckets").replace("s3:9333", master)
        command = (*SERVICES["buckets"]["entrypoint"], script)
        return subprocess.run(command, env=self._env, capture_output=True, text=True, check=False)

    def health(self) -> int:
        """The status of the page that the check of health asks. 0 while nothing listens."""
        (path,) = re.findall(r"http://127\.0\.0\.1:8333(/\S+)", SERVICES["s3"]["healthcheck"]["test"][1])
        try:
            return get(f"http://127.0.0.1:{self.ports['s3']}{path}", timeout_s=10)[0]
        except OSError:
            return 0

    def client(self, secret_key: str | None = None) -> Any:
        """A client with the keys that our processes have, or with another secret."""
        import botocore.session  # type: ignore[import-untyped]

        keys = [(self.secrets / name).read_text().strip() for name in ("s3_access_key", "s3_secret_key")]
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.ports['s3']}",
            region_name="us-east-1",
            aws_access_key_id=keys[0],
            aws_secret_access_key=secret_key or keys[1],
        )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(tmp_path_factory.mktemp("weed"))
    try:
        log = store.folder / "weed.log"
        wait_for(lambda: store.health() == 200, 120, lambda: log.read_text(errors="replace")[-2000:])
        yield store
    finally:
        store.process.kill()
        store.process.wait()
        shutil.rmtree(store.folder / "data")


def test_buckets_are_made_and_made_again_without_a_fault(store: Store) -> None:
    for _ in range(2):  # an upgrade runs the service once more
        done = store.make_buckets()
        assert done.returncode == 0, done.stdout + done.stderr
    wanted = {SERVICES["api"]["environment"]["S3_BUCKET"]}
    wanted.add(SERVICES["worker"]["environment"]["ARCHIVE_URL"].removeprefix("s3://").partition("/")[0])
    assert {bucket["Name"] for bucket in store.client().list_buckets()["Buckets"]} == wanted


def test_our_keys_write_an_encrypted_object_and_no_other_key_reads(store: Store) -> None:
    store.make_buckets()
    name = {"Bucket": "exports", "Key": "a/b.csv"}
    # The exporter asks for SSE-S3, which needs the encryption key of the service.
    store.client().put_object(**name, Body=b"x", ServerSideEncryption="AES256", Tagging="a=b")
    assert store.client().get_object(**name)["Body"].read() == b"x"
    with pytest.raises(Exception, match="SignatureDoesNotMatch"):
        store.client("wrong" * 8).list_buckets()


def test_a_bucket_that_is_missing_fails_the_service(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = SERVICES["buckets"]["command"]
    wrong = command.replace("in exports archive", "in exports archive elsewhere")
    monkeypatch.setitem(SERVICES["buckets"], "command", [wrong])
    assert store.make_buckets().returncode != 0
