"""Headless Chromium, `deepzig serve` in a process of its own, and a page that watches for errors.

Chromium and its driver are Debian's `chromium` and `chromium-driver`; without them these tests are skipped.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver

from tests.browser.page import Page
from tests.browser.scripted_server import Reply, ScriptedServer

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--no-default-browser-check", "--lang=en",
)  # fmt: skip
START_SECONDS = 60


def chromium() -> tuple[str, str]:
    """Paths of browser and driver; skips the test where one is missing."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("Chromium or its driver is not installed (Debian: apt-get install chromium chromium-driver)")
    return browser, driver


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """One browser with a fresh profile; each test gets a tab of its own and empty storage."""
    binary, driver = chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, scripted: Callable[..., ScriptedServer]) -> Iterator[Page]:
    """A new tab. At the end of the test nothing may have been logged as an error, and nothing blocked.

    Closed before the servers of `scripted`: one that ends first resets what the page is asking it for.
    """
    page = Page(browser)
    yield page
    page.close()
    assert page.complaints == []


@contextmanager
def deepzig_serve(log: Path, *arguments: str) -> Iterator[str]:
    """The real server with the bundled model on a free port; the page's address."""
    command = [sys.executable, "-m", "deepzig", "serve", "--port", "0", "--threads", "1", *arguments]
    with log.open("w") as output, subprocess.Popen(command, stderr=output, stdin=subprocess.DEVNULL) as process:
        try:
            yield _address(log, process)
        finally:
            process.terminate()


def _address(log: Path, process: "subprocess.Popen[bytes]") -> str:
    for _ in range(10 * START_SECONDS):
        if found := re.search(r"http://[\d.]+:\d+", log.read_text(encoding="utf-8")):
            return f"{found[0]}/"
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        break
    raise RuntimeError(f"deepzig serve did not start: {log.read_text(encoding='utf-8')}")


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of `deepzig serve` without a key."""
    chromium()
    with deepzig_serve(tmp_path_factory.mktemp("serve") / "log") as url:
        yield url


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
    """scripted(reply, model=..., status=...): a server that answers so."""
    servers: list[ScriptedServer] = []

    def start(reply: Reply, **options: object) -> ScriptedServer:
        servers.append(ScriptedServer(reply, **options))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.close()
