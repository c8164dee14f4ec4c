"""Servers as containers of compose.yaml, for machines with a Docker engine."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..server import Server, Unavailable
from .attempt import attempt, last_line

COMPOSE_FILE = Path(__file__).parent.with_name("compose.yaml")


def compose() -> "Compose":
    if shutil.which("docker") is None:
        raise Unavailable("no docker command on PATH")
    engine = attempt("docker", "info", "--format", "{{.ServerVersion}}")
    if engine.returncode != 0 or not engine.stdout.strip():
        raise Unavailable(f"docker is installed, but no engine answers: {last_line(engine)}")
    if (command := compose_command()) is None:
        raise Unavailable("docker runs, but neither `docker compose` nor `docker-compose` does")
    return Compose(command)


def compose_command() -> tuple[str, ...] | None:
    commands = (("docker", "compose"), ("docker-compose",))
    return next((command for command in commands if attempt(*command, "version").returncode == 0), None)


@dataclass(frozen=True, slots=True)
class Compose:
    """The way that runs the containers of compose.yaml, in a project with the name of the stack."""

    command: tuple[str, ...]
    name: str = "compose"
    root: None = None

    def spawn(self, server: Server) -> None:
        self._run(server, "up", "--detach", "--no-deps", server.name)

    def alive(self, server: Server) -> bool:
        running = self._run(server, "ps", "--quiet", "--status=running", "--status=paused", server.name)
        return bool(running.strip())

    def stop(self, server: Server) -> None:
        self.resume(server)
        self._run(server, "stop", f"--timeout={server.patience_s:.0f}", server.name)
        self._run(server, "rm", "--force", server.name)

    def kill(self, server: Server) -> None:
        if self.alive(server):
            self._run(server, "kill", "--signal=SIGKILL", server.name)

    def pause(self, server: Server) -> None:
        self._run(server, "pause", server.name)

    def resume(self, server: Server) -> None:
        if self._run(server, "ps", "--quiet", "--status=paused", server.name).strip():
            self._run(server, "unpause", server.name)

    def leave(self, server: Server, *, purge: bool) -> None:
        self._run(server, "down", "--remove-orphans", *(["--volumes"] if purge else []))

    def log_tail(self, server: Server) -> str:
        return self._run(server, "logs", "--no-color", "--tail=40", server.name)

    def _run(self, server: Server, *argv: str) -> str:
        env = os.environ | server.compose_env()
        project = (*self.command, "--file", str(COMPOSE_FILE), "--project-name", server.stack_name)
        done = subprocess.run([*project, *argv], env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"docker compose {' '.join(argv)} failed:\n{done.stderr.strip()}")
        return done.stdout
