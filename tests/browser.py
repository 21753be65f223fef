"""A real browser for the tests: headless Chromium, driven over the WebDriver protocol (w3.org/TR/webdriver2)."""
from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request

from conftest import wait_until

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id, as the protocol defines it
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004", "Space": " "}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


class Browser:
    """A browser with one window."""

    def __init__(self, directory, environment):
        with open(str(directory / "chromedriver.txt"), "wb") as output:
            self.driver = subprocess.Popen([DRIVER, "--port=0"], stdout=output, stderr=subprocess.STDOUT, env=environment)
        text = wait_until(lambda: re.search(rb"started successfully on port (\d+)", (directory / "chromedriver.txt").read_bytes()), 30,
                          "chromedriver runs")
        self.url, self.session = "http://127.0.0.1:%s" % text.group(1).decode(), ""
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900", "--mute-audio",
                     "--ignore-certificate-errors", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
                     "--user-data-dir=%s" % (directory / "chromium")]
        wanted = {"browserName": "chrome", "goog:chromeOptions": {"binary": CHROMIUM, "args": arguments},
                  "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        try:
            self.session = "/session/" + self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        except BaseException:
            self.driver.kill()
            raise

    def renew(self):
        """Gives it another window, at its first size and in its first colours, and forgets what was written and asked before."""
        fresh = self._call("POST", "/window/new", {"type": "window"})["handle"]
        self._call("DELETE", "/window")
        self._call("POST", "/window", {"handle": fresh})
        self.console()
        self.requested()

    def close(self):
        try:
            self._call("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait(20)

    def _call(self, method, path, body=None):
        data = None if method in ("GET", "DELETE") else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.url + self.session + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read().decode())["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError("%s %s: %s" % (method, path, json.loads(error.read().decode())["value"]["message"])) from None

    def open(self, url):
        self._call("POST", "/url", {"url": url})

    def reload(self):
        self._call("POST", "/refresh")

    @property
    def address(self):
        return self._call("GET", "/url")

    def run(self, script, *arguments):
        """What a script in the page returns; it may be a promise."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector="main"):
        return self.run("return document.querySelector(arguments[0])?.innerText || ''", selector)

    def shows(self, text, selector="main", timeout=20):
        """Waits until the text stands in the element."""
        wait_until(lambda: text in self.text(selector), timeout, "%r in %s" % (text, selector))

    def count(self, selector):
        return self.run("return document.querySelectorAll(arguments[0]).length", selector)

    def find(self, selector, text=None):
        """The first element for the selector that holds the text."""
        script = ("return [...document.querySelectorAll(arguments[0])].find(node => arguments[1] === null || "
                  "node.innerText.includes(arguments[1]) || node.getAttribute('aria-label') === arguments[1])")
        return wait_until(lambda: self.run(script, selector, text), 20, "an element %s with %r" % (selector, text))

    def click(self, selector, text=None):
        self._call("POST", "/element/%s/click" % self.find(selector, text)[ELEMENT])

    def type(self, selector, text):
        self._call("POST", "/element/%s/value" % self.find(selector)[ELEMENT], {"text": text})

    def press(self, *keys):
        """Presses keys one after the other, wherever the focus is."""
        actions = [action for key in keys for action in (
            {"type": "keyDown", "value": KEYS.get(key, key)}, {"type": "keyUp", "value": KEYS.get(key, key)})]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def devtools(self, command, **parameters):
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def size(self, width, height):
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def dark(self, dark=True):
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def screenshot(self, path):
        with open(str(path), "wb") as file:
            file.write(base64.b64decode(self._call("GET", "/screenshot")))

    def console(self):
        """What the page has written to the console since the last call, as text: errors of scripts and of the policy among it."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def requested(self):
        """The addresses that the page has asked since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self._call("POST", "/se/log", {"type": "performance"})]
        return [message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"]
