"""A real browser without a window, driven over Chrome DevTools, and a record of everything that a page did.

Chromium is taken from PATH. Otherwise it is installed from Debian's packages, if we are root on Debian or
Ubuntu, like the servers of the local stack. The browser can reach this machine only: no other name resolves.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from deploy.local import Unavailable
from tests.support import packages

_PACKAGE: Final = "chromium-headless-shell"
_NAMES: Final = (_PACKAGE, "chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS: Final = (
    "--headless",
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
)
_TIMEOUT_S: Final = 180
_KEYS: Final = {
    "Tab": (9, ""),
    "Enter": (13, "\r"),
    "Space": (32, " "),
    "Escape": (27, ""),
    "ArrowDown": (40, ""),
    "ArrowUp": (38, ""),
}
"""By a key's name its code, and the text that it types."""


def executable() -> str:
    """The path of the browser, which is installed first if it is missing. Raises `Unavailable`."""
    return packages.executable(_PACKAGE, _NAMES)


@dataclass(slots=True)
class Page:
    """An open page, with its requests and its complaints."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, exceptions, and requests that failed."""
    _socket: aiohttp.ClientWebSocketResponse | None = None
    _session: str = ""
    _target: str = ""
    _answers: dict[int, asyncio.Future[Any]] = field(default_factory=dict)

    async def goto(self, url: str) -> None:
        await self._call("Page.navigate", url=url)

    async def value(self, script: str) -> Any:
        """Run a script in the page; returns its value. Raises `AssertionError` if the script throws."""
        answer = await self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until the script is true."""
        deadline = time.monotonic() + _TIMEOUT_S
        while not await self.value(script):
            assert time.monotonic() < deadline, script
            await asyncio.sleep(0.05)

    async def looks(self, *, width: int = 1360, height: int = 900, dark: bool = False) -> None:
        """Give the page a window of this size, on a machine with these colours."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self._call("Emulation.setDeviceMetricsOverride", **size)
        colours = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        await self._call("Emulation.setEmulatedMedia", features=[colours, still])

    async def sends(self, headers: dict[str, str]) -> None:
        """Send these headers with every request, as a gateway in between does."""
        await self._call("Network.setExtraHTTPHeaders", headers=headers)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key as a person does: Tab, Enter, Space, ArrowDown, or a character."""
        code, text = _KEYS.get(key, (0, key))
        named = {
            "key": " " if key == "Space" else key,
            "windowsVirtualKeyCode": code,
            "modifiers": 8 if shift else 0,
        }
        await self._call(
            "Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **named
        )
        await self._call("Input.dispatchKeyEvent", type="keyUp", **named)

    async def write(self, text: str) -> None:
        """Type a text into what has the focus."""
        await self._call("Input.insertText", text=text)

    async def downloads_to(self, folder: Path) -> None:
        """Keep the files that the page downloads in a folder."""
        session, self._session = self._session, ""  # downloads are a matter of the whole browser
        asked = self._call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        try:
            await asked
        finally:
            self._session = session

    async def picture(self, *, height: int) -> bytes:
        """A PNG of the page from its top, of the window's width and at most this height."""
        width = await self.value("innerWidth")
        whole = await self.value("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": min(whole, height), "scale": 1}
        shot = await self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    async def _call(self, method: str, **parameters: Any) -> Any:
        assert self._socket is not None
        number = len(self._answers) + 1
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.send_json({"id": number, "method": method, "params": parameters, **session})
        async with asyncio.timeout(_TIMEOUT_S):
            return await answer

    async def _open(self) -> None:
        target = await self._call("Target.createTarget", url="about:blank")
        self._target = target["targetId"]
        attached = await self._call("Target.attachToTarget", targetId=self._target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Network", "Log", "Runtime", "Page"):
            await self._call(f"{domain}.enable")

    async def _close(self) -> None:
        await self._call("Target.closeTarget", targetId=self._target)

    async def _listen(self) -> None:
        assert self._socket is not None
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                answer = self._answers[said["id"]]
                if "error" in said:
                    answer.set_exception(RuntimeError(said["error"]["message"]))
                else:
                    answer.set_result(said["result"])
            else:
                self._note(said["method"], said.get("params", {}))

    def _note(self, event: str, about: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif event == "Network.loadingFailed":
            self.complaints.append(about["errorText"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(about["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(about["args"]))
        elif event == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(about["entry"]["text"])


@contextmanager
def running() -> Iterator[str]:
    """Run a browser; yields the address at which it is driven. Raises `Unavailable`."""
    path = executable()
    with tempfile.TemporaryDirectory(prefix="spendstream-browser-", ignore_cleanup_errors=True) as folder:
        # The browser has a session of its own, so that its helper processes end with it in every case.
        argv = (path, *_FLAGS, f"--user-data-dir={folder}")
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL, cwd=folder, start_new_session=True) as process:
            try:
                yield _address(process, Path(folder) / "DevToolsActivePort")
            finally:
                os.killpg(process.pid, signal.SIGKILL)


def _address(process: subprocess.Popen[bytes], note: Path) -> str:
    """Wait until the browser has written its port and path into its folder; returns the address."""
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Unavailable(f"the browser has ended with code {process.returncode}")
        if note.exists() and len(lines := note.read_text().splitlines()) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.05)
    raise Unavailable("the browser does not listen")


@asynccontextmanager
async def page(browser: str) -> AsyncIterator[Page]:
    """Open a new page in the browser at this address."""
    async with aiohttp.ClientSession() as session, session.ws_connect(browser, max_msg_size=0) as socket:
        opened = Page(_socket=socket)
        listening = asyncio.create_task(opened._listen())
        try:
            await opened._open()
            yield opened
            await opened._close()  # a page that stays open keeps its connections, and a host has six of them
        finally:
            listening.cancel()
