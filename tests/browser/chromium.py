"""Headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
NEEDS_BROWSER = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="Chromium and ChromeDriver are not installed"
)
_OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage "
    "--use-fake-ui-for-media-stream --use-fake-device-for-media-stream --window-size=1100,800"
).split()


@contextmanager
def chromium(directory: Path, *more: str) -> Iterator[webdriver.Chrome]:
    """A browser with a profile and downloads in a directory; fails at the end if a page had an
    error."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for option in (*_OPTIONS, f"--user-data-dir={directory / 'profile'}", *more):
        options.add_argument(option)
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(directory / "downloads")}
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    try:
        yield driver
        told = [line["message"] for line in driver.get_log("browser")]
        assert not [m for m in told if "Content Security Policy" in m or "Uncaught" in m], told
    finally:
        driver.quit()


def find(browser: webdriver.Chrome, css: str) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, css)


def text_of(browser: webdriver.Chrome, name: str) -> str:
    return browser.find_element(By.ID, name).text


def click(browser: webdriver.Chrome, name: str) -> None:
    browser.find_element(By.ID, name).click()
