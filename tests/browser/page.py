"""Page: the web page in a tab of its own, as a reader uses it. Made by the fixture `page`."""

import json
import time
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

SECONDS = 30  # that anything may take; nothing is asserted about time
WATCH = """
  window.complaints = [];
  document.addEventListener("securitypolicyviolation", (e) => complaints.push(`blocked: ${e.violatedDirective}`));
  window.addEventListener("error", (e) => complaints.push(`error: ${e.message}`));
  window.addEventListener("unhandledrejection", (e) => complaints.push(`rejected: ${e.reason}`));
"""
FIND = (
    "[...document.querySelectorAll(arguments[0])].find((e) => e.checkVisibility() && "
    "(e.textContent + (e.getAttribute('aria-label') ?? '')).includes(arguments[1]))"
)


class Page:
    """Waits for what it is asked about: `text`, `find` and the like return as soon as it is there."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser
        self.complaints: list[str] = []
        browser.switch_to.new_window("tab")  # storage of the session is the tab's own
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})

    def open(self, url: str, *, width: int = 1280, height: int = 800, scheme: str = "light") -> None:
        """Show the page with nothing stored, without animations."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.cdp("Emulation.setDeviceMetricsOverride", **metrics)
        self.cdp("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"},
        ])  # fmt: skip
        self.cdp("Storage.clearDataForOrigin", origin=url.rstrip("/"), storageTypes="all")
        self.browser.get(url)

    def close(self) -> None:
        """Collect complaints, close the tab, go back to the first one."""
        self.collect()
        self.browser.close()
        self.browser.switch_to.window(self.browser.window_handles[0])

    def collect(self) -> None:
        """Keep what was complained about so far; a reload forgets it."""
        self.complaints += self.run("return window.complaints ?? []")
        self.complaints += [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]

    def expect_complaint(self, part: str) -> None:
        """Take one complaint out that the test caused on purpose."""
        self.collect()
        found = [complaint for complaint in self.complaints if part in complaint]
        assert found, f"nobody complained of {part!r}: {self.complaints}"
        self.complaints = [complaint for complaint in self.complaints if part not in complaint]

    def cdp(self, command: str, **arguments: Any) -> Any:
        return self.browser.execute_cdp_cmd(command, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def until(self, expression: str, *arguments: Any) -> Any:
        """The value of a JavaScript expression, once it is true."""
        end = time.monotonic() + SECONDS
        while not (value := self.run(f"return {expression}", *arguments)):
            if time.monotonic() > end:
                raise AssertionError(f"never true: {expression} {arguments}; the page shows: {self.body[:500]!r}")
            time.sleep(0.03)
        return value

    def find(self, selector: str, text: str = "") -> WebElement:
        """The first visible element with such a text, once it is there."""
        return self.until(FIND, selector, text)

    def click(self, selector: str, text: str = "") -> None:
        self.find(selector, text).click()

    def count(self, selector: str) -> int:
        return len(self.browser.find_elements(By.CSS_SELECTOR, selector))

    def write(self, text: str) -> None:
        """Type into the composer and send it."""
        self.wait_ready()
        self.find("#composer-input").send_keys(text, Keys.ENTER)

    def press(self, *keys: str) -> None:
        """Keys on whatever has the focus."""
        self.browser.switch_to.active_element.send_keys("".join(keys))

    def wait_ready(self) -> None:
        """Until the model is there."""
        self.find(".model-chip.ready")

    def wait_answer(self) -> None:
        """Until no answer is being written."""
        self.until("!document.querySelector('.send-button.running') && document.querySelector('.model-chip.ready')")

    def set_settings(self, **settings: Any) -> None:
        self.run("localStorage.setItem('deepzig.settings', arguments[0])", json.dumps(settings))

    @property
    def body(self) -> str:
        return self.browser.find_element(By.TAG_NAME, "body").text

    def text(self, selector: str, text: str = "") -> str:
        """What the reader sees of the first such element, once it shows anything."""
        return self.until(f"{FIND}?.innerText", selector, text)
