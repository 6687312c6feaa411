"""The page in a browser: upload, answers, filter, more like this, broken file, narrow screen."""

# ruff: noqa: E402

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import numpy as np
import pytest

pytest.importorskip("lancedb")
pytest.importorskip("uvicorn")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

import uvicorn
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from pipelines.service.app import build
from pipelines.service.desk import Input
from pipelines.service.plan import Settings, desk_of, encoding_of, plan_of
from tests.pipelines.processes import free_port
from tests.pipelines.service.test_app import TOKEN, place  # noqa: F401

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER),
        reason="no chromium and chromedriver: apt-get install chromium-driver",
    ),
]
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(params=["", TOKEN], ids=["open", "token"])
def address(request: pytest.FixtureRequest, place: Path) -> Iterator[tuple[str, str]]:  # noqa: F811
    """Where a service listens, and its token."""
    token = request.param
    settings = Settings(str(place / "gallery"), token=token)
    plan = plan_of(settings)
    desk, encoding = desk_of(plan), encoding_of(plan)

    async def embed(asked: Input) -> np.ndarray:
        return encoding.embed([asked])[0]

    app: Any = build(desk, embed, trouble=AsyncMock(return_value=""), token=token, max_bytes=2**20)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{port}/", token
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    driver = opened(tmp_path)
    yield driver
    driver.quit()


def opened(tmp_path: Path) -> Any:
    """A browser with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


def until(true: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What a condition gives as soon as it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := true():
            return value
        time.sleep(0.05)
    raise AssertionError("did not happen in time")


def test_a_search_from_the_first_click_to_more_like_this(
    address: tuple[str, str],
    browser: Any,
    place: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    url, token = address
    browser.get(url)

    def one(name: str) -> Any:
        return browser.find_element(By.ID, name)

    def answers() -> list[Any]:
        return browser.find_elements(By.CSS_SELECTOR, "#answers li")

    if token:
        until(lambda: one("token").is_displayed())
        one("token").send_keys(token, Keys.ENTER)
    until(lambda: "10 rows of 2 cameras" in one("facts").text)
    assert not one("text").is_displayed(), "this encoder embeds no sentences"

    one("image").send_keys(str(place / "images" / "visible" / "2.png"))
    one("go").click()
    until(lambda: len(answers()) == 10)
    assert "10 answers to the image" in one("message").text
    assert "%" in answers()[0].text
    images = browser.find_elements(By.CSS_SELECTOR, "#answers img")
    assert images[0].get_attribute("alt") == "Answer 1: visible, camera 1"
    assert all(image.get_property("naturalWidth") for image in images)

    Select(one("modality")).select_by_value("infrared")
    Select(one("camera")).select_by_value("2")
    one("top").send_keys(Keys.ENTER)
    until(lambda: len(answers()) == 2)
    Select(one("camera")).select_by_value("")
    answers()[0].find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    until(lambda: "answer 1" in one("message").text and len(answers()) == 3)

    (tmp_path / "broken.png").write_bytes(b"no image")
    one("image").send_keys(str(tmp_path / "broken.png"))
    one("go").click()
    until(lambda: "cannot be used" in one("message").text)
    assert one("message").get_attribute("class") == "wrong"
    assert not answers()

    browser.set_window_size(500, 900)
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= browser.execute_script("return window.innerWidth"), "nothing is cut off"
    errors = [line for line in browser.get_log("browser") if "400" not in line["message"]]
    assert not [
        line for line in errors if "401" not in line["message"] and "favicon" not in line["message"]
    ]
