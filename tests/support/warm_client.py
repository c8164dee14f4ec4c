"""The client of `tests.support.warm`: asks the server for a process, and stands for that process."""

import json
import os
import signal
import socket
import struct
import sys


def order(
    server: socket.socket,
    module: str,
    arguments: "list[str] | tuple[str, ...]",
    env: "dict[str, str]",
    fds: "list[int]",
) -> None:
    """Send the order for a process that has these inputs and outputs."""
    asked = {"module": module, "arguments": [*arguments], "env": {**env}, "cwd": os.getcwd()}
    body = json.dumps(asked).encode()
    socket.send_fds(server, [struct.pack("!I", len(body))], fds)
    server.sendall(body)


def main() -> None:
    path, module, *arguments = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        order(server, module, arguments, dict(os.environ), [0, 1, 2])
        pid = int(server.recv(32))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        code = int(server.recv(32))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
