"""A headless Chromium, driven by its DevTools protocol (https://chromedevtools.github.io/devtools-protocol)."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from rlserve.processes import end_all

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "headless_shell")
_START_S = 60.0
_WAIT_S = 60.0


def find_browser() -> str | None:
    """A Chromium of this machine."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


class Tab:
    """A page of the browser. Notes what it complained about, breaches of its content security policy among it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []
        self.requested: list[str] = []
        """Addresses that the page asked for."""

    async def read(self) -> None:
        """Take what the browser says, until it ends."""
        async for message in self._socket:
            content = message.json()
            if (waiting := self._answers.pop(content.get("id", 0), None)) is not None:
                waiting.set_result(content)
            elif content.get("method") == "Log.entryAdded":
                self.complaints.append(content["params"]["entry"]["text"])
            elif content.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(str(content["params"]["exceptionDetails"]))
            elif content.get("method") == "Network.requestWillBeSent":
                self.requested.append(content["params"]["request"]["url"])

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol."""
        number = next(self._ids)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        answer = await asyncio.wait_for(self._answers[number], _WAIT_S)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    async def open(self, url: str) -> None:
        """Go to an address, and wait until all of it is there."""
        for domain in ("Log", "Runtime", "Network", "Page"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)
        await self.wait_for("location.href !== 'about:blank' && document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def wait_for(self, expression: str) -> None:
        """Ask again and again until a JavaScript expression is true, for a minute at most."""
        deadline = time.monotonic() + _WAIT_S
        while not await self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < deadline, (expression, await self.evaluate("document.body.innerText"))
            await asyncio.sleep(0.05)

    async def type(self, selector: str, text: str) -> None:
        """Type into a field, as a keyboard does."""
        await self.evaluate(f"document.querySelector('{selector}').focus()")
        await self.call("Input.insertText", text=text)

    async def press_enter(self) -> None:
        """In the field that has the focus."""
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **key)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    async def click(self, selector: str) -> None:
        """The middle of an element, as a mouse does."""
        middle = await self.evaluate(
            f"(() => {{ const box = document.querySelector('{selector}').getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            x, y = middle
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def screenshot(self) -> str:
        """PNG, in base64."""
        return str((await self.call("Page.captureScreenshot"))["data"])


@asynccontextmanager
async def browsing(program: str, folder: Path) -> AsyncIterator[Tab]:
    """A tab of a browser that keeps its files in ``folder``."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "--window-size=1200,800", "about:blank"]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = await _port(folder / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                tabs = await response.json()
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            async with session.ws_connect(address, max_msg_size=0) as socket:
                tab = Tab(socket)
                reading = asyncio.create_task(tab.read())
                yield tab
                reading.cancel()
    finally:
        end_all([*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)])
        process.wait()


async def _port(file: Path) -> int:
    """That the browser chose; it writes it down when it listens."""
    deadline = time.monotonic() + _START_S
    while not file.exists() or not file.read_text():
        assert time.monotonic() < deadline, "the browser does not start"
        await asyncio.sleep(0.05)
    return int(file.read_text().splitlines()[0])
