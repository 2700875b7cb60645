"""The report: one file, nothing from a network, text that stays text, and controls that work in a real browser."""

import json
import re
import shutil

import pytest
from records_by_hand import DECODING, cell, curve_by_hand, frames_by_hand, results_of, write_results

from benchmarks.analysis.frames import load_results
from benchmarks.analysis.report import render, write_report
from benchmarks.store.folders import write_cell

HOSTILE = "<script>window.hacked = true</script>"
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    write_results(folder, tasks=("mcid", "sst2"))
    for task in ("mcid", HOSTILE):
        place = folder / "cells" / ("mcid" if task == "mcid" else "hostile") / "minilm-l6"
        write_cell(place / "hostile" / "default" / "seed0", cell(HOSTILE, task=task), frames_by_hand("deebert"))
    (folder / "cells" / "sst2" / "minilm-l6" / "pabee" / "default" / "seed0" / "record.json").write_text("{")
    return load_results(folder)


@pytest.fixture(scope="module")
def page(results):
    return write_report(results, results.folder).read_text(encoding="utf-8")


def charts_of(page):
    return json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_is_one_file_that_loads_nothing(page):
    own = re.sub(r"<script>(?!\nconst options).*?</script>", "", page, flags=re.DOTALL)
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", re.sub(r"<script type=.*?</script>", "", own))
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "default-src 'none'" in own
    assert "unsafe-eval" not in own
    assert len(page) < 2_500_000  # the libraries; records come on top


def test_text_from_data_is_escaped_and_every_fault_is_named(results, page):
    assert HOSTILE not in page
    assert "&lt;script&gt;window.hacked" in page
    assert "\\u003cscript\\u003ewindow.hacked" in page
    assert len(results.records) == 25
    assert "pabee/default/seed0/record.json is damaged" in page


def test_without_the_full_model_there_are_scores_alone():
    page = render(results_of([(cell("deebert"), {"curve": curve_by_hand([5.0, 6.0], [0.7, 0.8])})]))
    assert "The full model was not run" in page
    assert "data:image/png" not in page.partition('id="curves"')[0]
    assert "points against the full model" not in json.dumps(charts_of(page)["#curves-chart"]["params"][:2])


def test_the_full_model_alone_and_generation_have_a_report():
    page = render(results_of([(cell("full"), {"curve": curve_by_hand([6.0, 6.0], [0.9, 0.9])})]))
    assert "#curves-chart" not in charts_of(page)
    assert "Score kept at" in render(load_results(DECODING))


def test_curves_have_every_cost(page):
    (columns,) = charts_of(page)["#curves-chart"]["data"]["values"]
    points = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    own = [p for p in points if (p["task"], p["method"]) == ("sst2", "deebert")]
    assert own
    for point in own:
        assert 0 < point["x_layers"] <= 100
        assert point["x_flops"] == pytest.approx(point["x_layers"], abs=0.01)
        assert point["x_b1"] == pytest.approx(point["x_layers"], abs=0.01)
        assert point["points"] == pytest.approx(point["score"] - 91, abs=0.01)
    assert "mean of 2 tasks" in columns["task"]


def wait_until(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20, poll_frequency=0.05).until(lambda _: condition())


@pytest.fixture(scope="module")
def browser(results, page):
    """Open the page once for all tests; nothing may be said on its console until they end."""
    assert page
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER)) as browser:
        browser.set_window_size(1200, 900)
        browser.get((results.folder / "report.html").as_uri())
        wait_until(browser, lambda: browser.find_elements("css selector", ".chart svg.marks"))
        wait_until(browser, lambda: browser.find_elements("css selector", "table.dataTable"))
        yield browser
        assert browser.get_log("browser") == []


def chosen(browser, name):
    from selenium.webdriver.support.ui import Select

    return Select(browser.find_element("css selector", f"#curve-controls [name='{name}']"))


def words(browser):
    script = "return [...document.querySelectorAll('#curves-chart svg text')].map((text) => text.textContent)"
    return browser.execute_script(script)


def points(browser):
    script = "return [...document.querySelectorAll('#curves-chart .mark-symbol path')]"
    return browser.execute_script(f"{script}.map((path) => path.getAttribute('transform'))")


def test_it_opens_without_a_word_on_the_console_or_a_request(browser, results):
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.hacked") is None
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith("data:")} == {(results.folder / "report.html").as_uri()}
    assert any(HOSTILE in text for text in words(browser))
    pictures = browser.find_elements("css selector", "figure.picture img")
    assert [int(picture.get_property("naturalWidth")) for picture in pictures] == [1400, 1400]


def test_tasks_and_scores_are_chosen(browser):
    task, before = chosen(browser, "task"), points(browser)
    assert [option.text for option in task.options] == ["mean of 2 tasks", HOSTILE, "mcid", "sst2"]
    task.select_by_visible_text("mcid")
    wait_until(browser, lambda: points(browser) != before)
    chosen(browser, "measure").select_by_visible_text("score, %")
    wait_until(browser, lambda: "score, %" in words(browser))
    button = browser.find_element("css selector", "#curve-controls [name='cost'][value='flops']")  # out of sight
    browser.execute_script("arguments[0].click()", button)
    wait_until(browser, lambda: "FLOPs, % of the full model" in words(browser))


def test_hovering_shows_what_a_point_is(browser):
    from selenium.webdriver import ActionChains

    chosen(browser, "task").select_by_visible_text("mcid")
    point = browser.find_elements("css selector", "#curves-chart .mark-symbol path[aria-label*='deebert']")[-1]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(browser).move_to_element(point).perform()
    tip = browser.find_element("id", "vg-tooltip-element")
    wait_until(browser, lambda: "visible" in tip.get_attribute("class"))
    for word in ("method", "at", "score", "layers, % of full", "FLOPs, % of full", "clock, batch 32"):
        assert word in tip.text
    assert "undefined" not in tip.text
