"""Builds the image of a Dockerfile without an engine, and runs it as a container runtime would.

Each step is a layer, as an engine makes one: an overlay over the layers below, kept in the cache folder under
a key of all that decides its content. The layer at the bottom is a Debian 13 root folder as small as the
image `debian:trixie-slim`. A process of the image gets the layers alone, read-only, in mount and process
namespaces of its own: it is process 1 there, of the image's user, and has no right to write a file.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deploy.local import processes, rootfs
from tests.support import dockerfile
from tests.support.dockerfile import Stage, Step

ROOT: Final = Path(__file__).resolve().parents[2]
DOCKERFILE: Final = ROOT / "deploy/image/Dockerfile"
DIGEST: Final = f"sha256:{'0' * 64}"
BASE: Final = f"debian:trixie-slim@{DIGEST}"
SLIM: Final = rootfs.Recipe("trixie-slim", "minbase", ())

# $1 the folder of layers, $2 the layers from the top down, $3 the new layer, $4 its folder for the kernel's
# work, $5 the mount point, $6 the authorities of the package registries or nothing.
_STEP: Final = """
cd "$1"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$3,workdir=$4" "$5"
root=$5 authorities=$6; shift 6
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/run"
if [ -n "$authorities" ]; then cp "$authorities" "$root/run/authorities.pem"; fi
cp -L /etc/resolv.conf "$root/run/resolv.conf"
mount --bind "$root/run/resolv.conf" "$root/etc/resolv.conf"
workdir=$1; shift
mkdir -p "$root$workdir"
exec chroot "$root" /bin/sh -ec 'cd "$1" && shift && exec "$@"' sh "$workdir" "$@"
"""
_COPY: Final = """
cd "$1"
mount -t overlay overlay -o "lowerdir=$2" "$3"
cp -a "$3$4" "$5"
"""
# $1 the folder of layers, $2 the layers from the top down, $3 the mount point, $4 user and group, $5 the
# working folder, then pairs of folders outside and inside up to `--`, then the command. A container runtime
# makes a missing mount point, too; here the folders and files below /run can be missing.
_RUN: Final = """
cd "$1"
mount -t overlay overlay -o "lowerdir=$2" "$3"
root=$3 user=$4 workdir=$5; shift 5
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
while [ "$1" != -- ]; do
    case "$2" in /run/*)
        mkdir -p "$(dirname "$root$2")"
        if [ -d "$1" ]; then mkdir -p "$root$2"; else : >"$root$2"; fi ;;
    esac
    mount --bind "$1" "$root$2"
    shift 2
done
shift
# The kernel forgets who ends with whom when a process changes its user, so that is asked for afterwards.
exec chroot "$root" /usr/bin/setpriv --reuid="${user%:*}" --regid="${user#*:}" --clear-groups --no-new-privs \
    --pdeathsig KILL /bin/sh -ec 'cd "$1" && shift && exec "$@"' sh "$workdir" "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A built image: its layers from the top down, and what the last stage says."""

    layers: tuple[str, ...]
    store: Path
    stage: Stage

    def start(
        self,
        *arguments: str,
        env: Mapping[str, str],
        folder: Path,
        mounts: Mapping[str, Path] | None = None,
        entrypoint: Sequence[str] | None = None,
    ) -> Container:
        """Start a process of the image. ``mounts`` has folders and files of ours by their places inside."""
        point = folder / f"root-{os.urandom(4).hex()}"
        point.mkdir()
        pairs = [str(part) for inside, outside in (mounts or {}).items() for part in (outside, inside)]
        user = self.stage.user or "0:0"
        inside = [*(self.stage.entrypoint if entrypoint is None else entrypoint)]
        inside += arguments or self.stage.command
        lower = ":".join(self.layers)
        shell = ["/bin/sh", "-ec", _RUN, "sh", str(self.store), lower, str(point), user, self.stage.workdir]
        log = point.with_suffix(".log")
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*rootfs.NAMESPACE, *shell, *pairs, "--", *inside],
                env={**self.stage.environment, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        return Container(process, log)

    def run(
        self,
        *arguments: str,
        env: Mapping[str, str],
        folder: Path,
        mounts: Mapping[str, Path] | None = None,
        entrypoint: Sequence[str] | None = None,
    ) -> tuple[int, str]:
        """Run a process of the image to its end; its exit code and all that it printed."""
        container = self.start(*arguments, env=env, folder=folder, mounts=mounts, entrypoint=entrypoint)
        try:
            return container.process.wait(120), container.printed()
        finally:
            container.kill()

    def find(self, path: str) -> Path:
        """Where a file or folder of the image is on this host: in the uppermost layer that has it."""
        for layer in self.layers:
            if (found := self.store / layer / path.lstrip("/")).exists():
                return found
        raise FileNotFoundError(path)


@dataclass(slots=True)
class Container:
    """A running process of the image; outside it is a grandchild of ours."""

    process: subprocess.Popen[bytes]
    log: Path
    stopped: bool = field(default=False)

    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, *, timeout_s: float = 60) -> int:
        """Send SIGTERM to the process, as an orchestrator does; its exit code."""
        for pid in processes.children(self.process.pid):
            os.kill(pid, signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """Kill the process if it runs, with all its children."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def impossible() -> str | None:
    """The reason why no image can be built here, or None."""
    if reason := rootfs.impossible():
        return reason
    where = rootfs.cache_folder()
    where.mkdir(parents=True, exist_ok=True)
    for name in ("lower", "upper", "work", "merged"):
        (where / "overlay-try" / name).mkdir(parents=True, exist_ok=True)
    script = 'cd "$0" && mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged'
    tried = subprocess.run(
        ("unshare", "--mount", "/bin/sh", "-ec", script, str(where / "overlay-try")),
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        return f"overlays cannot be mounted in {where}, so set SPENDSTREAM_CACHE: {tried.stderr}"
    return None


def build(text: str | None = None) -> Image:
    """Build the last stage of our Dockerfile, or of ``text``. Layers that are the same come from the cache.

    Raises RuntimeError with the end of a step's output if a step fails.
    """
    stages = read() if text is None else dockerfile.read(text, {})
    bottom = rootfs.build(SLIM)
    (bottom / "etc/resolv.conf").touch()
    store = rootfs.cache_folder() / "image"
    with rootfs.exclusive(rootfs.cache_folder() / "image.lock"):
        store.mkdir(exist_ok=True)
        layers: dict[str, tuple[str, ...]] = {BASE: (str(bottom),)}
        for stage in stages.values():
            below = layers[stage.base]
            for step in stage.steps:
                below = (_layer(store, below, step, layers), *below)
            layers[stage.name] = below
        _forget(store, used={name for stack in layers.values() for name in stack})
    last = next(reversed(stages.values()))
    return Image(layers=layers[last.name], store=store, stage=last)


def _forget(store: Path, *, used: set[str]) -> None:
    """Delete what a killed build has left, and layers that no build has used for three days.

    A younger layer may be another checkout's, or of another Dockerfile.
    """
    now = time.time()
    for layer in store.iterdir():
        if layer.suffix == ".tmp":
            shutil.rmtree(layer)
        elif layer.name in used:
            os.utime(layer, (now, now))
        elif layer.stat().st_mtime < now - 3 * 86400:
            shutil.rmtree(layer)


def read(arguments: Mapping[str, str] | None = None) -> dict[str, Stage]:
    """The stages of our Dockerfile."""
    return dockerfile.read(DOCKERFILE.read_text(), {"BASE_DIGEST": DIGEST, **(arguments or {})})


def context() -> list[Path]:
    """The files that are sent to the build, relative to the clone: what .dockerignore lets through."""
    kept, ignored = (
        [],
        [line for line in (ROOT / ".dockerignore").read_text().split("\n") if line[:1] not in ("", "#")],
    )
    if ignored[0] != "*":
        raise ValueError("the first pattern of .dockerignore leaves everything out")
    tops = {line[1:] for line in ignored if line.startswith("!")}
    anywhere = [line.removeprefix("**/") for line in ignored if line.startswith("**/")]
    if len(ignored) != 1 + len(tops) + len(anywhere):
        raise ValueError("a pattern of .dockerignore is of a kind that is not known here")
    for top in sorted(tops):
        files = [ROOT / top] if (ROOT / top).is_file() else sorted((ROOT / top).rglob("*"))
        for path in files:
            parts = path.relative_to(ROOT).parts
            if path.is_file() and not any(fnmatch.filter(parts, pattern) for pattern in anywhere):
                kept.append(path.relative_to(ROOT))
    return kept


def _layer(store: Path, below: tuple[str, ...], step: Step, stages: Mapping[str, tuple[str, ...]]) -> str:
    """Make the layer of a step if the store has it not; its name in the store."""
    decides = [*below, step.keyword, step.text, json.dumps(dict(step.environment)), step.workdir]
    copied: list[Path] = []
    if step.keyword == "COPY" and step.from_stage is None:
        *sources, _ = step.text.split()
        copied = [path for path in context() if any(_is_in(path, source) for source in sources)]
        if not copied:
            raise RuntimeError(f"COPY {step.text}: no such file in the context")
        decides += [f"{path}:{hashlib.sha256((ROOT / path).read_bytes()).hexdigest()}" for path in copied]
    elif step.from_stage is not None:
        decides += stages[step.from_stage]
    # The root folder at the bottom counts by its name, which has the hash of its recipe.
    decides[len(below) - 1] = Path(below[-1]).name
    name = hashlib.sha256("\0".join(decides).encode()).hexdigest()[:16]
    if (store / name).is_dir():
        return name
    new = store / f"{name}.tmp"
    shutil.rmtree(new, ignore_errors=True)
    for part in ("layer", "work", "merged"):
        (new / part).mkdir(parents=True)
    lower = ":".join(below)
    if step.keyword == "RUN":
        _run(store, lower, new, step)
    elif step.from_stage is not None:
        source, target = step.text.split()
        place = new / "layer" / target.lstrip("/")
        place.parent.mkdir(parents=True)
        other = ":".join(stages[step.from_stage])
        _ended(_COPY, str(store), other, str(new / "merged"), source, str(place))
    else:
        *sources, target = step.text.split()
        folder = new / "layer" / step.workdir.lstrip("/")
        for path in copied:
            (top,) = (source for source in sources if _is_in(path, source))
            within = Path(target) / (path.relative_to(top) if path != Path(top) else path.name)
            (folder / within).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / within)
    _as_in_an_archive(new / "layer")
    os.utime(new / "layer")
    (new / "layer").rename(store / name)
    shutil.rmtree(new)
    return name


def _is_in(path: Path, source: str) -> bool:
    return path == Path(source) or Path(source) in path.parents


def _run(store: Path, lower: str, new: Path, step: Step) -> None:
    environment = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    environment |= {name: os.environ[name] for name in ("PIP_INDEX_URL",) if name in os.environ}
    if authorities := os.environ.get("PIP_CERT", ""):
        environment["PIP_CERT"] = "/run/authorities.pem"
    environment |= {
        "DEBIAN_FRONTEND": "noninteractive",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
    }
    environment |= step.environment
    inside = ("/bin/sh", "-c", step.text)
    parts = (str(new / "layer"), str(new / "work"), str(new / "merged"), authorities, step.workdir)
    _ended(_STEP, str(store), lower, *parts, *inside, environment=environment)


def _ended(script: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        [*rootfs.NAMESPACE, "/bin/sh", "-ec", script, "sh", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-30:])
        raise RuntimeError(f"{' '.join(arguments[-1:])[:200]} … failed:\n{tail}")


def _as_in_an_archive(layer: Path) -> None:
    """Cut times to whole seconds. A layer is stored as an archive, which keeps no more of them."""
    for folder, folders, files in os.walk(layer):
        for name in (*folders, *files):
            path = Path(folder) / name
            seconds = int(path.lstat().st_mtime)
            os.utime(path, (seconds, seconds), follow_symlinks=False)


def version() -> str:
    """The version in pyproject.toml."""
    (found,) = re.findall(r'(?m)^version = "(.*)"$', (ROOT / "pyproject.toml").read_text())
    return str(found)
