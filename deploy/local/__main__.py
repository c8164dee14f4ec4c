"""Bring a local stack of real servers up and down: RabbitMQ 4 with streams, TimescaleDB, Redis, S3.

  eval "$(python -m deploy.local up)"      start (or find) the stack, and export its URLs
  python -m deploy.local up --services rabbitmq    a broker alone; then it is stopped alone, too:
  python -m deploy.local down --services rabbitmq
  python -m deploy.local status            which servers answer, and their URLs
  python -m deploy.local run -- CMD ...    a fresh stack for one command, gone when it ends
  python -m deploy.local run --cluster [--synchronous] -- CMD ...
                                           the same with three nodes of RabbitMQ, and PostgreSQL with
                                           a standby, in a network of their own (Linux as root)

up, down and status take --folder, which has the state and the data: another folder has servers of its own.

If a Docker engine runs, the servers run by Docker compose.  Otherwise they run from the host's binaries
(RabbitMQ >= 4.0, PostgreSQL 17 with TimescaleDB, redis-server).  If these are missing, on Debian or Ubuntu as
root, they run from a Debian 13 root folder, which is built once (half a minute) in $SPENDSTREAM_CACHE or the
user's cache folder.  The servers listen on 127.0.0.1 only, on free ports, which they keep.  Servers that the
stack did not start are never touched.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from . import network
from .cluster import Cluster, enter
from .server import ServerFailed, Unavailable
from .stack import SERVICES, Stack, default_folder


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    if options.command is run:
        if options.folder is not None:
            parser.error("run has a stack of its own, which is deleted: leave --folder out")
        if options.synchronous and not options.cluster:
            parser.error("--synchronous is for a standby: add --cluster")
        if options.cluster and options.services is not None:
            parser.error("a cluster is whole: leave --services out")
    try:
        if options.command is run and options.cluster and not network.entered():
            again = sys.argv[1:] if argv is None else argv
            enter((sys.executable, "-m", "deploy.local", *again))
        code: int = options.command(options)
    except (Unavailable, ServerFailed, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return code


def up(options: argparse.Namespace) -> int:
    stack = _stack(options)
    began = time.monotonic()
    before = [server.name for server in stack.servers.values() if server.is_running()]
    stack.start(wanted(options.services, stack))
    _say(f"up in {time.monotonic() - began:.1f} s by {stack.way.name}, in {stack.folder}")
    if before:
        _say(f"running before this call: {', '.join(before)}; another --folder has servers of its own")
    for name, value in stack.env.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def down(options: argparse.Namespace) -> int:
    stack = _stack(options)
    if not stack.folder.exists():
        _say(f"no stack in {stack.folder}")
    elif options.services is not None:
        if options.purge:
            raise RuntimeError("--purge is for the whole stack: leave --services out")
        for name in options.services:
            stack.servers[name].stop()
        _say(f"{', '.join(options.services)} down; the data stays in {stack.folder}")
    elif options.purge:
        stack.purge()
        _say("down, and its data deleted")
    else:
        stack.stop()
        _say(f"down; its data stays in {stack.folder} (--purge deletes it)")
    return 0


def status(options: argparse.Namespace) -> int:
    """Exit code 0 when every server answers that was ever started in the folder; else 3, also if none was."""
    stack, states = _stack(options), []
    for server in stack.servers.values():
        state = "up" if server.is_up() else "running, no answer" if server.is_running() else "down"
        if not server.was_started():
            state = "never started"
        states.append(state)
        print(f"{server.name:9} {state:19} {server.url if server.is_running() else ''}".rstrip())
    return 0 if set(states) in ({"up"}, {"up", "never started"}) else 3


def run(options: argparse.Namespace) -> int:
    """The command's exit code; 128 + n when signal n ended it."""
    command = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
    if not command:
        raise RuntimeError("run what? Give a command: run -- CMD ...")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    durable = not options.not_durable
    with tempfile.TemporaryDirectory(prefix="spendstream-") as folder:
        if options.cluster:
            with Cluster(Path(folder), synchronous=options.synchronous, durable=durable) as cluster:
                cluster.start(wanted(None, cluster.beside))
                return _run(command, cluster.env)
        with Stack(Path(folder) / "stack", way=options.way, durable=durable, temporary=True) as stack:
            stack.start(wanted(options.services, stack))
            return _run(command, stack.env)


def _run(command: Sequence[str], env: Mapping[str, str]) -> int:
    child = subprocess.Popen(command, env={**os.environ, **env})
    try:
        return _wait(child)
    finally:
        child.terminate()
        child.wait()


def wanted(services: Sequence[str] | None, stack: Stack) -> Sequence[str]:
    """The services that were asked for. The default is all services that can run here.

    A message says if S3 is left out. After the README's first command S3's server is not installed, and the
    other three servers work without S3.
    """
    if services is not None:
        return services
    if stack.s3.is_running() or (reason := stack.s3.lacking(stack.way)) is None:
        return SERVICES
    _say(f"s3 is left out: {reason}")
    return [name for name in SERVICES if name != stack.s3.name]


def _wait(child: "subprocess.Popen[bytes]") -> int:
    while True:
        try:
            code = child.wait()
            return code if code >= 0 else 128 - code
        except KeyboardInterrupt:  # Ctrl-C reached the command too, and the command decides when to end
            continue


def _stack(options: argparse.Namespace) -> Stack:
    return Stack(options.folder, way=options.way, durable=not options.not_durable)


def _services(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(SERVICES):
        raise argparse.ArgumentTypeError(
            f"no service {', '.join(sorted(unknown))}: there are {', '.join(SERVICES)}"
        )
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m deploy.local", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--way", help="compose, host or rootfs (default: $SPENDSTREAM_WAY, else what works)")
    common.add_argument("--not-durable", action="store_true", help="let PostgreSQL skip fsync")
    folder = f"of the stack's state and data (default: {default_folder()}); not for run"
    parser.add_argument("--folder", type=Path, help=folder)
    kept = argparse.ArgumentParser(add_help=False)
    # Without a default here, a --folder before the command stays what it is.
    kept.add_argument("--folder", type=Path, default=argparse.SUPPRESS, help=folder)
    starting = argparse.ArgumentParser(add_help=False)
    starting.add_argument(
        "--services", type=_services, help=f"some of {','.join(SERVICES)} (default: all that can be had)"
    )
    commands = parser.add_subparsers(required=True, metavar="up | down | status | run")

    def command(
        action: Callable[[argparse.Namespace], int], parents: list[argparse.ArgumentParser], text: str
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(action.__name__, parents=[common, *parents], help=text, description=text)
        one.set_defaults(command=action)
        return one

    command(up, [kept, starting], "start what is not up, and print `export` lines")
    stopping = command(down, [kept], "stop what `up` started, and nothing else")
    stopping.add_argument("--purge", action="store_true", help="delete the data too")
    stopping.add_argument(
        "--services", type=_services, help=f"some of {','.join(SERVICES)} (default: all that `up` started)"
    )
    command(status, [kept], "say which servers answer (exit code 3 unless all do that were ever started)")
    running = command(run, [starting], "run a command with a stack of its own, and delete that stack")
    running.add_argument("--cluster", action="store_true", help="three nodes of RabbitMQ, and a standby")
    running.add_argument("--synchronous", action="store_true", help="a commit waits for the standby")
    running.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD ...")
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
