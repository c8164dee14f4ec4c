"""The name of the person who runs a command, for the audit log."""

from __future__ import annotations

import getpass
import os
import socket


def actor() -> str:
    """``user@host``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
