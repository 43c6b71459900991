"""A headless Chromium that opens a page, through the pipe of its debugging protocol: no driver, no package."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")

Message = dict[str, Any]


class Page:
    """An open page: `problems` of its console, and the addresses that it `requested`."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer, self._rest, self._number = reader, writer, b"", 0
        self._session: str | None = None
        self.problems: list[str] = []
        self.requested: list[str] = []
        self._events: list[str] = []

    def attach(self) -> None:
        """Open an empty page and listen to it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> Message:
        """Answer of the browser to a command. Raises RuntimeError where it is an error."""
        self._number += 1
        message: Message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._hear(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: Message = answer["result"]
        return result

    def open(self, path: Path, width: int = 1200, height: int = 900, *, dark: bool = False) -> None:
        """Load a file at a size and in a colour scheme."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._hear(self._next())

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression, awaited. Raises RuntimeError where it throws."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def _next(self) -> Message:
        while b"\0" not in self._rest:
            if not (more := os.read(self._reader, 1 << 16)):
                raise RuntimeError("the browser has gone")
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        message: Message = json.loads(text)
        return message

    def _hear(self, message: Message) -> None:
        method, params = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
            self.problems.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("warning", "error", "assert"):
            self.problems.append(str(params["args"]))


@contextmanager
def opened(profile: Path) -> Iterator[Page]:
    """A page of a browser that ends with the context; `profile` is its folder."""
    if CHROMIUM is None:
        raise RuntimeError("no Chromium on the path")
    (commands, to_browser), (from_browser, answers) = os.pipe(), os.pipe()
    call = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    fds = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (commands, answers)]  # above those that they become
    launch = f"import os, sys; os.dup2({fds[0]}, 3); os.dup2({fds[1]}, 4); os.execv(sys.argv[1], sys.argv[1:])"
    browser = subprocess.Popen([sys.executable, "-c", launch, *call], pass_fds=fds, stderr=subprocess.DEVNULL)
    for fd in (commands, answers, *fds):
        os.close(fd)
    try:
        page = Page(from_browser, to_browser)
        page.attach()
        yield page
    finally:
        browser.kill()
        browser.wait()
        os.close(to_browser)
        os.close(from_browser)
