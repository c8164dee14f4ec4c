"""The client of `tests.support.warm`: asks the server for a process, and stands for that process."""

import json
import os
import signal
import socket
import struct
import sys


def main() -> None:
    path, module, *arguments = sys.argv[1:]
    order = {"module": module, "arguments": arguments, "env": dict(os.environ), "cwd": os.getcwd()}
    body = json.dumps(order).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [struct.pack("!I", len(body))], [0, 1, 2])
        server.sendall(body)
        with server.makefile("r") as answers:
            pid = int(answers.readline())
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda number, _: os.kill(pid, number))
            code = int(answers.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
