"""The page of an evaluation in headless Chromium: plays, sorts, filters, searches.

QA_JAX_SCREENSHOTS=DIR keeps screenshots. QA_JAX_ANSWERS=FILE are the answers then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from qa_jax.evaluate import read_answers, read_run, score
from qa_jax.evaluate.report import write_html
from tests.browser.chromium import NEEDS_BROWSER, chromium, click, find, text_of
from tests.evaluate.layouts.data import Clips
from tests.serve.server import wait_until

pytestmark = NEEDS_BROWSER
ANSWERS = ("the white rabbit sleeps", "the rabbit sleeps now", "a white rabbit", "")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("espeakng_loader", reason="eSpeak NG is not installed")
    directory = tmp_path_factory.mktemp("report")
    page = directory / "report.html"
    given = os.environ.get("QA_JAX_ANSWERS")
    if given:
        rows = read_answers([given])
        write_html(str(page), score(rows), read_run([given], rows), 60)
        return page
    clips = Clips(directory / "clips")
    rows = []
    for i in range(60):
        clips.put(i, directory / f"{i}.wav")
        rows.append(
            {"id": f"utterance-{i}", "benchmark": "librispeech", "language": "en",
             "subset": "test-clean" if i % 3 else "dev-clean", "audio": [f"{directory}/{i}.wav"],
             "reference": "the white rabbit sleeps", "prediction": ANSWERS[i % 4],
             "seconds": 1 + i / 4, "speaker": str(i % 5)}
        )  # fmt: skip
    rows[7].pop("prediction")
    rows[7]["error"] = "7.wav: contains no samples"
    write_html(str(page), score(rows), {"rtfx": 12.0, "device": "1 x cpu"}, num_clips=20)
    return page


@pytest.fixture
def browser(report: Path, tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path) as driver:
        driver.get(report.as_uri())
        wait_until(lambda: bool(find(driver, "article")), 60)
        yield driver


def choose(browser: webdriver.Chrome, name: str, value: str) -> None:
    Select(browser.find_element(By.ID, name)).select_by_value(value)


def names(browser: webdriver.Chrome) -> list[str]:
    return [element.text for element in find(browser, "article strong")]


def keep(browser: webdriver.Chrome, name: str) -> None:
    if directory := os.environ.get("QA_JAX_SCREENSHOTS"):
        browser.save_screenshot(f"{directory}/{name}.png")


own = pytest.mark.skipif("QA_JAX_ANSWERS" in os.environ, reason="of the answers made here")


@own
def test_scores_and_groups(browser: webdriver.Chrome) -> None:
    rows = [element.text for element in find(browser, "#scores tr")]
    assert rows[0].startswith("dev-clean WER") and "1.3 (report)" in rows[0]
    assert any(row.startswith("all WER") for row in rows)
    assert "12.0 times real time" in text_of(browser, "run")
    titles = [element.text for element in find(browser, "#groups h3")]
    assert "WER by length" in titles and "WER by speaker" in titles


@own
def test_sort_filter_search(browser: webdriver.Chrome) -> None:
    assert names(browser)[0] == "utterance-7"  # the error first, then the empty answers
    assert (
        find(browser, "article")[0]
        .find_element(By.CSS_SELECTOR, ".error")
        .text.endswith("contains no samples")
    )
    assert text_of(browser, "count") == "60 of 60" and len(names(browser)) == 50
    click(browser, "more")
    assert len(names(browser)) == 60 and not find(browser, "#more")[0].is_displayed()
    choose(browser, "show", "right")
    assert text_of(browser, "count") == "15 of 60"
    assert not find(browser, "article del, article ins")
    choose(browser, "show", "wrong")
    choose(browser, "subset", "dev-clean")
    choose(browser, "order", "-seconds")
    assert names(browser)[:2] == ["utterance-3", "utterance-6"]
    browser.find_element(By.ID, "search").send_keys("utterance-2")
    assert names(browser) == ["utterance-21", "utterance-27"]
    wrong = find(browser, "article")[0]  # "the rabbit sleeps now"
    assert [e.text for e in wrong.find_elements(By.TAG_NAME, "del")] == ["white"]
    assert [e.text for e in wrong.find_elements(By.TAG_NAME, "ins")] == ["now"]


def test_a_clip_plays(browser: webdriver.Chrome) -> None:
    choose(browser, "show", "clips")
    (audio, *_) = find(browser, "article audio")
    assert audio.get_attribute("controls")
    audio.send_keys(Keys.SPACE)
    wait_until(lambda: browser.execute_script("return arguments[0].currentTime", audio) > 0.1, 30)
    assert browser.execute_script("return arguments[0].error", audio) is None


def test_narrow_and_wide(browser: webdriver.Chrome) -> None:
    choose(browser, "show", "clips")
    browser.set_window_size(1100, 1250)
    keep(browser, "report")
    browser.set_window_size(420, 800)
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= browser.execute_script("return window.innerWidth")
    keep(browser, "report_narrow")
