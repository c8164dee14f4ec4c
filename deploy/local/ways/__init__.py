"""The three ways to run a server, and the choice between them.

`compose` drives a Docker engine.  `binaries` runs the host's binaries or those of the root folder, inside
namespaces that vanish with the server.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from ..server import Unavailable, Way
from . import binaries, compose


def choose(wanted: str | None = None) -> Way:
    """Choose the first way that works here, or the `wanted` way.

    Raises Unavailable, with the reason for every way tried.
    """
    ways: Mapping[str, Callable[[], Way]] = {
        "compose": compose.compose,
        "host": binaries.host,
        "rootfs": binaries.debian,
    }
    if wanted and wanted not in ways:
        raise Unavailable(f"no way named {wanted!r}: choose from {', '.join(ways)}")
    return first_possible({name: make for name, make in ways.items() if wanted in (None, name)})


def recorded(name: str, root: str | None) -> Way:
    """The way of a stack that exists already. Nothing is checked or built."""
    if name == "compose":
        return compose.Compose(compose.compose_command() or ("docker", "compose"))
    return binaries.Processes(name, Path(root) if root else None)


def first_possible(ways: Mapping[str, Callable[[], Way]]) -> Way:
    reasons = []
    for name, make in ways.items():
        try:
            return make()
        except Unavailable as reason:
            reasons.append(f"  {name}: {reason}")
    raise Unavailable("the local stack cannot run here:\n" + "\n".join(reasons))
