"""A Debian 13 root folder with the servers, built once by mmdebstrap and kept in the cache.

The RabbitMQ of Debian 12 and Ubuntu is too old, and packages of Debian 13 would upgrade the libc of the host.
A root folder leaves the host alone.  The folder is built under a temporary name and then renamed, so an
interrupted build is never used.  The build runs in a mount and pid namespace of its own, so an interrupted
build leaves no mount and no process behind.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUITE = "trixie"
PACKAGES = ("rabbitmq-server", "postgresql-17", "postgresql-17-timescaledb", "redis-server")
HOOK = r"""
mkdir -p "$1/usr/sbin" "$1/etc/postgresql-common"
printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
chmod +x "$1/usr/sbin/policy-rc.d"
echo 'create_main_cluster = false' >"$1/etc/postgresql-common/createcluster.conf"
"""
LEFT_OUT = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/lib/*/libLLVM*",
    "/usr/lib/*/bitcode/*",
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a root folder is made of: its name in the cache, mmdebstrap's variant, and the packages."""

    name: str
    variant: str
    packages: tuple[str, ...]

    def text(self) -> str:
        """All that decides what is in the folder."""
        variant = () if self == SERVERS else (self.variant,)  # folders from before there were recipes
        return "\n".join((SUITE, *variant, *self.packages, HOOK, *LEFT_OUT))


SERVERS = Recipe(SUITE, "apt", PACKAGES)
NAMESPACE = ("unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child")


def cache_folder() -> Path:
    """The folder that keeps built things: $SPENDSTREAM_CACHE, else the user's cache folder."""
    if given := os.environ.get("SPENDSTREAM_CACHE"):
        return Path(given).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "spendstream"


def path(recipe: Recipe = SERVERS) -> Path:
    """The path of the root folder. Its name changes with the recipe."""
    return cache_folder() / f"{recipe.name}-{hashlib.sha256(recipe.text().encode()).hexdigest()[:12]}"


def impossible() -> str | None:
    """The reason why a root folder cannot be built and entered here, or None."""
    if not sys.platform.startswith("linux") or shutil.which("apt-get") is None:
        return "needs Debian or Ubuntu"
    if os.geteuid() != 0:
        return "needs root (to build the folder and to chroot into it)"
    return no_namespaces()


def no_namespaces() -> str | None:
    """The reason why we cannot make namespaces, which give a server its own mounts and processes, or None.

    The function tries to make them.
    """
    attempt = [*NAMESPACE, "mount", "-t", "proc", "proc", "/proc"]
    try:
        tried = subprocess.run(attempt, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"namespaces cannot be made: {error}"
    return f"namespaces cannot be made: {tried.stderr.strip()}" if tried.returncode else None


def build(recipe: Recipe = SERVERS) -> Path:
    """Build the root folder if it is missing (the servers': half a minute and 450 MB); returns its path.

    Raises RuntimeError with the end of the log if the build fails.
    """
    final = path(recipe)
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(final.parent / "build.lock") as lock:
        if final.is_dir():  # another process has just built it
            return final
        for unfinished in final.parent.glob(f"{recipe.name}-*.tmp"):
            _run(lock, "rm", "-rf", "--one-file-system", str(unfinished))
        if shutil.which("mmdebstrap") is None:
            _say("installing mmdebstrap")
            _run(lock, "apt-get", "update")
            install = ("apt-get", "install", "-y", "--no-install-recommends")
            _run(lock, *install, "mmdebstrap", "debian-archive-keyring")
        _say(f"building the Debian 13 root folder {final} (once)")
        temporary = final.with_name(final.name + ".tmp")
        _run(
            lock,
            *(*NAMESPACE, "--mount-proc", "mmdebstrap", "--mode=root", f"--variant={recipe.variant}"),
            *([f"--include={','.join(recipe.packages)}"] if recipe.packages else []),
            f"--setup-hook={HOOK}",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
            *(SUITE, str(temporary)),
        )
        temporary.chmod(0o755)
        temporary.rename(final)
    return final


@contextmanager
def exclusive(lock: Path) -> Iterator[int]:
    """Hold a lock file against other processes and threads; yields its descriptor.

    The kernel frees the lock when we have died, and all processes to which we passed the descriptor.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if lock.exists() and os.path.samestat(lock.stat(), os.fstat(file.fileno())):
                yield file.fileno()
                return
        # Somebody deleted the file while we waited: who comes now makes another one, so ours would keep
        # nobody out.


def _run(lock: int, *argv: str) -> None:
    """Run a command to its end.  The command holds the lock too.

    So if we are killed, the next build waits until the command has ended.
    """
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        argv,
        env=env,
        pass_fds=(lock,),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise RuntimeError(f"{argv[0]} ... failed with exit code {done.returncode}:\n{tail}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
