"""A real browser without a window, told what to do through its DevTools."""

import base64
import json
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--remote-debugging-port=0", "--window-size=1000,1150",
]  # fmt: skip


class Page:
    """An open page.

    Args:
        socket: to the DevTools of its tab.
    """

    def __init__(self, socket):
        self._socket, self._number = socket, 0
        self.errors: list[str] = []
        self.requested: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict:
        """Tell the browser to do something; what happens meanwhile is noted."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            given = message.get("params", {})
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(given["exceptionDetails"]["exception"]["description"])
            elif message.get("method") == "Log.entryAdded" and given["entry"]["level"] == "error":
                self.errors.append(f"{given['entry']['text']} {given['entry'].get('url')}")
            elif message.get("method") == "Network.requestWillBeSent":
                self.requested.append(given["request"]["url"])

    def open(self, url: str) -> None:
        """Go to a URL."""
        self.call("Page.navigate", url=url)

    def get(self, script: str):
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str):
        """Wait until an expression is true; returns it."""
        end = time.monotonic() + 60
        while not (found := self.get(script)):
            assert time.monotonic() < end, f"{script}: not within a minute; the page says: {self.get('document.body.innerText')}"
            time.sleep(0.1)
        return found

    def picture(self, file: Path) -> None:
        """Write what is seen."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browsing(folder: Path):
    """A browser with an empty page."""
    if CHROMIUM is None:
        pytest.skip("no chromium; apt-get install chromium")
    client = pytest.importorskip("websockets.sync.client")
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'browser'}", "about:blank"], stderr=subprocess.PIPE, text=True
    )
    try:
        address = next(found[1] for line in process.stderr if (found := re.search(r"listening on (ws://\S+)", line)))
        with client.connect(address, max_size=None) as browser:
            browser.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
            while (message := json.loads(browser.recv(timeout=60))).get("id") != 1:
                pass
        (tab,) = [one["targetId"] for one in message["result"]["targetInfos"] if one["type"] == "page"]
        with client.connect(f"{address.partition('/devtools')[0]}/devtools/page/{tab}", max_size=None) as socket:
            yield Page(socket)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
