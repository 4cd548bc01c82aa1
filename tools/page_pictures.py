"""Makes the pictures of the web page in docs/: `python tools/page_pictures.py`, with Chromium and its driver installed.

Stories and status come from `deepzig serve` with the bundled model; the chat's answer is scripted, since that model
cannot chat. Uses the browser of tests/browser.
"""

import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from selenium import webdriver

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.browser.conftest import FLAGS, chromium, deepzig_serve  # noqa: E402
from tests.browser.page import Page  # noqa: E402
from tests.browser.scripted_server import Event, ScriptedServer, delta, ending  # noqa: E402

DESK, PHONE = (1280, 800), (390, 844)
OPENING = "Lily found a tiny door behind the old oak tree."
THOUGHTS = "They ask about memory. A formula, a small table and one function will do."
ANSWER = r"""The **latent cache** is why DeepSeek-V3 needs so little memory for a long context. It keeps one small
vector a token instead of keys and values of every head:

$$c_t = W^{DKV} h_t,\quad\begin{pmatrix} k_t \\ v_t \end{pmatrix}=\begin{pmatrix} W^{UK} \\ W^{UV} \end{pmatrix}c_t$$

With the rotary part that is $512 + 64$ numbers a layer.

| form | a token and layer | 61 layers |
|:--|--:|--:|
| expanded, bf16 | 80 KB | 4.8 MB |
| latent, bf16 | 1.15 KB | 70 KB |

The query can be folded into the latent space, so that no key is ever expanded:

```python
def absorb_query(q_nope: np.ndarray, w_uk: np.ndarray) -> np.ndarray:
    return np.einsum("thn,hnr->thr", q_nope, w_uk)  # f32 (T, H, R)
```
"""


def answer(body: dict[str, Any]) -> Iterable[Event]:
    yield delta(reasoning_content=THOUGHTS)
    yield 1.0
    yield delta(content=ANSWER.replace("small\nvector", "small vector"))
    yield from ending(completion=301)


def take(page: Page, name: str) -> None:
    """The window as it is, without the blinking cursor."""
    page.run("document.activeElement.blur()")
    time.sleep(0.5)
    page.browser.save_screenshot(str(ROOT / "docs" / f"web-{name}.png"))


def tell_story(page: Page, url: str, size: tuple[int, int], scheme: str) -> None:
    page.open(url, width=size[0], height=size[1], scheme=scheme)
    page.set_settings(seed=11, temperature=0.6, max_tokens=90)
    page.write(OPENING)
    page.wait_answer()


def pictures(page: Page, url: str, chat: str) -> None:
    page.open(url, width=DESK[0], height=DESK[1])
    page.find(".opening")
    take(page, "begin-desktop-light")
    tell_story(page, url, DESK, "light")
    page.write("Then she heard a little voice.")
    page.wait_answer()
    take(page, "story-desktop-light")
    page.run("location.hash = 'status'")
    page.find(".card", "The busiest expert")
    take(page, "status-desktop-light")
    tell_story(page, url, PHONE, "dark")
    take(page, "story-phone-dark")
    for name, size, scheme in (("desktop-dark", DESK, "dark"), ("phone-light", PHONE, "light")):
        page.open(chat, width=size[0], height=size[1], scheme=scheme)
        page.write("Why does the latent cache save so much memory?")
        page.wait_answer()
        page.run("document.getElementById('main').scrollTop = 0")
        take(page, f"chat-{name}")


def main() -> None:
    binary, driver = chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    scripted = ScriptedServer(answer)
    try:
        with tempfile.TemporaryDirectory() as folder, deepzig_serve(Path(folder) / "log", "--expert-load") as url:
            pictures(Page(browser), url, scripted.url)
    finally:
        browser.quit()
        scripted.close()


if __name__ == "__main__":
    main()
