"""The tests on Debian 13's own Python 3.13: `tox -e py313`, or `python -m tests.debian FOLDER ARGUMENTS`.

The root folder of the local stack (`deploy/local/rootfs.py`) has Python 3.13, with every server beside it.
The tests run inside that folder, which is read-only for them; the clone is at /srv, and FOLDER in the clone
takes the virtual environment, /tmp, /etc and all else that they write. They are an ordinary user there, and
servers start as they do on a host that has them installed. Where no root folder can be had, the reason is
printed and nothing is run; with `CI=true` that fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pip

from deploy.local import rootfs
from deploy.local.ways.binaries import PATH

CLONE = Path(__file__).resolve().parents[1]
SEEN = Path("/srv")
USER = 2000  # of nobody outside
# $1 root folder, $2 clone, $3 folder of what is written; then the command, run at /srv.
ENTER = """
root=$1 clone=$2 own=$3; shift 3
mount --bind "$root" "$root"
mount -o remount,ro,bind "$root"
for name in etc root tmp mnt var/tmp run; do mount --bind "$own/$name" "$root/$name"; done
mount --bind "$clone" "$root/srv"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t proc proc "$root/proc"
exec chroot --userspec=2000:2000 "$root" /bin/sh -ec 'cd /srv && exec "$@"' sh "$@"
"""


def main(folder: Path, arguments: list[str]) -> int:
    """Make the environment inside, once for each lock, and run pytest there; its exit code."""
    if reason := rootfs.impossible():
        print(f"skipped: Debian 13's Python 3.13 {reason}", file=sys.stderr)
        return 1 if os.environ.get("CI") == "true" else 0
    own = folder.resolve() / "debian"
    root = rootfs.build()
    _furnish(root, own)
    seen = SEEN / own.relative_to(CLONE)
    python = seen / "venv/bin/python"
    lock = CLONE / "tests/requirements.lock"
    installed = own / "installed.lock"
    if not installed.exists() or installed.read_bytes() != lock.read_bytes():
        shutil.rmtree(own / "venv", ignore_errors=True)
        _enter(root, own, "python3.13", "-m", "venv", "--without-pip", str(seen / "venv"))
        # The folder's Python has no pip of its own; that of tox's environment serves every Python.
        install = (str(python), str(SEEN / Path(pip.__file__).parent.relative_to(CLONE)), "install", "-q")
        _enter(root, own, *install, "-r", str(SEEN / lock.relative_to(CLONE)))
        _enter(
            root, own, *install, "--no-deps", "--no-index", "--no-build-isolation", "--editable", str(SEEN)
        )
        shutil.copy(lock, installed)
    return _enter(root, own, str(python), "-m", "pytest", "-p", "no:cacheprovider", *arguments, check=False)


def _furnish(root: Path, own: Path) -> None:
    """The folders that the tests may write: /etc is the root folder's, with the host's name servers."""
    shutil.rmtree(own / "etc", ignore_errors=True)
    shutil.rmtree(own / "tmp", ignore_errors=True)
    shutil.copytree(root / "etc", own / "etc", symlinks=True)
    (own / "etc/resolv.conf").unlink(missing_ok=True)
    shutil.copy("/etc/resolv.conf", own / "etc/resolv.conf")
    for name in ("passwd", "group"):
        with (own / "etc" / name).open("a") as file:
            file.write("tester:x:2000:2000::/root:/bin/sh\n" if name == "passwd" else "tester:x:2000:\n")
    for name in ("root", "tmp", "mnt", "var/tmp", "run"):
        (own / name).mkdir(parents=True, exist_ok=True)
        shutil.chown(own / name, USER, USER)
    shutil.chown(own, USER, USER)
    for above in own.relative_to(CLONE).parents:  # tox lets nobody else into the folder of its environments
        (CLONE / above).chmod((CLONE / above).stat().st_mode | 0o001)
    if authorities := os.environ.get("PIP_CERT"):
        shutil.copy(authorities, own / "etc/pip-authorities.pem")


def _enter(root: Path, own: Path, *command: str, check: bool = True) -> int:
    environment = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("SPENDSTREAM_")}
    environment |= {name: os.environ[name] for name in ("CI", "PIP_INDEX_URL") if name in os.environ}
    if "PIP_CERT" in os.environ:
        environment["PIP_CERT"] = "/etc/pip-authorities.pem"
    environment |= {
        "PATH": PATH,
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "NUMBA_BOUNDSCHECK": "1",
        "NUMBA_CACHE_DIR": "/root/numba",
        "HYPOTHESIS_STORAGE_DIRECTORY": "/root/hypothesis",
    }
    inside = [*rootfs.NAMESPACE, "/bin/sh", "-ec", ENTER, "sh", str(root), str(CLONE), str(own), *command]
    return subprocess.run(inside, env=environment, check=check).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
