"""The server's page in headless Chromium.

QA_JAX_SCREENSHOTS=DIR keeps screenshots. QA_JAX_CHECKPOINT=DIR is the model then, and
QA_JAX_CLIP and QA_JAX_LONG_CLIP are the recordings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

import qa_jax
from tests.browser.chromium import NEEDS_BROWSER, chromium, click, find, text_of
from tests.conftest import make_waveform
from tests.serve.server import KEY, Running, running, wait_until

pytestmark = NEEDS_BROWSER
NAME = "demo"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("QA_JAX_CLIP")
    if given:
        return Path(given)
    path = tmp_path_factory.mktemp("clips") / "spoken words.wav"
    soundfile.write(path, make_waveform(1.5), 16_000)
    return path


@pytest.fixture(scope="module")
def page_server(tiny_checkpoint: Path) -> Iterator[Running]:
    given = os.environ.get("QA_JAX_CHECKPOINT")
    model = qa_jax.load(given or tiny_checkpoint, num_slots=2, capacity=1024, long_audio="window")
    settings = {"keys": (), "max_new_tokens": 64, "window_seconds": 3.0, "warm_up": bool(given)}
    with running(model, models={NAME: model}, **settings) as found:  # type: ignore[arg-type]
        yield found


@pytest.fixture
def browser(page_server: Running, clip: Path, tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path, f"--use-file-for-fake-audio-capture={clip}") as driver:
        driver.get(page_server.url)
        wait_until(lambda: text_of(driver, "status") == "ready", 300)
        yield driver


def upload(browser: webdriver.Chrome, path: Path) -> None:
    browser.find_element(By.ID, "file").send_keys(str(path))
    wait_until(lambda: find(browser, "#clips li"))


def write(browser: webdriver.Chrome, text: str, *keys: str) -> None:
    browser.find_element(By.ID, "text").send_keys(text, *keys)


def answers(browser: webdriver.Chrome) -> list[WebElement]:
    return find(browser, ".turn.assistant:not(.busy) .about")


def screenshot(browser: webdriver.Chrome, name: str) -> None:
    directory = os.environ.get("QA_JAX_SCREENSHOTS")
    if directory:
        browser.save_screenshot(str(Path(directory) / f"page_{name}.png"))


def test_audio_analysis_and_voice_chat(browser: webdriver.Chrome, clip: Path) -> None:
    """An uploaded clip with an instruction, then one from the microphone alone."""
    upload(browser, clip)
    assert clip.name in find(browser, "#clips .name")[0].text
    write(browser, "Transcribe.", Keys.ENTER)
    wait_until(lambda: len(answers(browser)) == 1)
    assert find(browser, ".turn.user .body")[0].text == "Transcribe."
    assert "tokens" in answers(browser)[0].text
    record = browser.find_element(By.ID, "record")
    record.click()
    wait_until(lambda: record.get_attribute("aria-pressed") == "true")
    wait_until(lambda: browser.execute_script("return performance.now()") > 0)
    browser.execute_async_script("setTimeout(arguments[0], 2200)")
    record.click()
    wait_until(lambda: find(browser, "#clips li"))
    click(browser, "send")
    wait_until(lambda: len(answers(browser)) == 2)
    assert "recording-" in find(browser, ".turn.user:nth-of-type(3) .name")[0].text
    assert "cached" in answers(browser)[1].text
    screenshot(browser, "conversation")
    click(browser, "clear")
    assert not find(browser, ".turn")


def test_a_transcript_with_times(browser: webdriver.Chrome, tmp_path: Path) -> None:
    long = Path(os.environ.get("QA_JAX_LONG_CLIP", tmp_path / "long.wav"))
    if not long.exists():
        soundfile.write(long, make_waveform(10.0), 16_000)
    click(browser, "tab-transcript")
    upload(browser, long)
    click(browser, "send")
    wait_until(lambda: find(browser, "#downloads:not([hidden])"))
    times = [button.text for button in find(browser, "#segments button")]
    assert len(times) >= 4
    assert times[0] == "00:00.0"
    browser.find_element(By.CSS_SELECTOR, "[data-form=srt]").click()
    wait_until((tmp_path / "downloads" / "transcript.srt").exists)
    assert " --> " in (tmp_path / "downloads" / "transcript.srt").read_text()
    click(browser, "theme")
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    screenshot(browser, "transcript")


def test_errors_are_told_and_nothing_is_lost(browser: webdriver.Chrome, tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"nothing that can be played")
    upload(browser, broken)
    write(browser, "What is this?", Keys.ENTER)
    wait_until(lambda: "not readable as audio" in text_of(browser, "error"))
    field = browser.find_element(By.ID, "text")
    assert field.get_attribute("value") == "What is this?"
    assert not find(browser, ".turn")
    other = tmp_path / "other.xyz"
    other.write_bytes(b"neither")
    find(browser, "#clips li button[aria-label^=Remove]")[0].click()
    browser.find_element(By.ID, "file").send_keys(str(other))
    wait_until(lambda: "no audio that this browser can read" in text_of(browser, "error"))


def test_stopping_an_answer(browser: webdriver.Chrome, page_server: Running) -> None:
    runner = page_server.app.service.models[NAME].runner
    write(browser, "tell me everything", Keys.ENTER)
    wait_until(lambda: find(browser, "#stop:not([hidden])") or answers(browser))
    browser.find_element(By.ID, "text").send_keys(Keys.ESCAPE)
    wait_until(lambda: find(browser, "#send:not([hidden])"))
    wait_until(lambda: runner.num_running == 0)


def test_a_narrow_screen(browser: webdriver.Chrome, clip: Path) -> None:
    browser.set_window_size(500, 800)
    upload(browser, clip)
    width: Any = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]
    screenshot(browser, "narrow")


def test_everything_has_a_name(browser: webdriver.Chrome) -> None:
    """For screen readers: every control that can be reached."""
    controls = "button, input, textarea, select"
    named = [e for e in find(browser, controls) if e.is_displayed()]
    assert len(named) > 8
    click(browser, "open-settings")
    inner = find(browser, "#settings :is(button, input, textarea)")
    assert len(inner) == 8
    for element in inner:
        assert element.accessible_name
    browser.find_element(By.ID, "set-system").send_keys(Keys.ESCAPE)
    for element in named:
        assert element.accessible_name, element.get_attribute("outerHTML")
    click(browser, "open-settings")
    browser.find_element(By.ID, "set-system").send_keys("Be brief.", Keys.ESCAPE)
    browser.refresh()
    value = browser.find_element(By.ID, "set-system").get_attribute("value")
    assert value == "Be brief."


def test_a_server_with_a_key_asks_for_it(page_server: Running, browser: webdriver.Chrome) -> None:
    with running(page_server.model) as locked:
        browser.get(locked.url)
        wait_until(lambda: "no valid key" in text_of(browser, "error"))
        wait_until(lambda: find(browser, "#settings[open]"))
        browser.find_element(By.ID, "set-key").send_keys(KEY)
        find(browser, "#settings button")[0].click()
        wait_until(lambda: text_of(browser, "status") == "ready")
        browser.get_log("browser")  # the refusal
