"""The report: one file, nothing from a network, text that stays text, and tables that work in a real browser."""

import re
import shutil
from pathlib import Path

import pytest
from records_by_hand import ENVIRONMENT, cell, made_up_suite, operating_point, stored, timing, write_results

from benchmarks.analysis import write_html
from benchmarks.analysis.caveats import caveats, caveats_of_instances
from benchmarks.analysis.figures.catalogue import FIGURES
from benchmarks.analysis.report import render
from benchmarks.analysis.report_contents import CLASSIFICATION
from benchmarks.analysis.results import load_panels, panels
from benchmarks.analysis.tables.provenance import records_table
from benchmarks.store.folders import write_record
from consistentee.errors import UserError

HOSTILE = "<script>window.hacked = true</script>"
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))


def panels_of(records, timings=()):
    return panels([stored(record) for record in records], list(timings))


def subjects(records, timings=(), out_dir=Path("nowhere"), faults=()):
    return [warning.subject for warning in caveats(out_dir, panels_of(records, timings), faults, caveats_of_instances)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    write_results(folder, tasks=("mcid", "sst2"))
    hostile = cell(HOSTILE, [operating_point(0.5, "budget 0.50", 3.0, 0.8)])
    write_record(folder / "cells" / "mcid" / "minilm-l6" / "hostile" / "default" / "seed0" / "record.json", hostile)
    (folder / "cells" / "sst2" / "minilm-l6" / "pabee" / "default" / "seed0" / "record.json").write_text("{")
    write_html(folder)
    return folder


@pytest.fixture(scope="module")
def page(results):
    return (results / "report.html").read_text(encoding="utf-8")


def test_the_page_is_one_file_that_loads_nothing(page):
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "@import" not in page
    assert "url(" not in page


def test_figures_have_words_for_those_who_cannot_see_them(page):
    descriptions = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]*)"', page)
    assert len(descriptions) == len(FIGURES)
    assert min(map(len, descriptions)) > 80


def test_text_from_data_is_escaped(page):
    assert HOSTILE not in page
    assert "&lt;script&gt;window.hacked" in page
    assert page.count("<script>") == 1


def test_every_record_is_accounted_for(results, page):
    found, faults = load_panels(results)
    records = [stored_cell.record for panel in found for stored_cell in panel.cells]
    table = records_table(records)
    assert len(table.cells) == len(records) == 24
    assert table.cells[0][-1] == "consistentee run made-up"
    for record in records:
        assert record.key[:12].split("<")[0] in page
    assert len(faults) == 1
    assert "pabee/default/seed0/record.json: damaged" in page


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match="holds no results"):
        write_html(tmp_path)


def test_the_overview_is_at_equal_cost(page):
    overview = page.partition("Points against the full model at 2x, task by task")[2]
    assert 0 < overview.find("consistentee") < overview.find("static")


def test_a_suite_without_the_full_model_still_has_a_report():
    (panel,) = panels_of([cell("deebert", [operating_point(0.9, "within 1 point", 5.0, 0.8)])])
    page = render("small", [panel], [], CLASSIFICATION)
    assert "The full model was not run." in page
    assert 'href="#warnings"' not in page


# ---------------------------------------------------------------------------------------------- warnings


def test_a_clean_suite_of_three_seeds_has_few_warnings():
    records = [record for seed in range(3) for record in made_up_suite(seed=seed)]
    timings = [timing([r for r in records if r.seed == seed], seed=seed) for seed in range(3)]
    assert subjects(records, timings) == ["dev as test"]


def test_noise_is_named():
    records = made_up_suite()
    calm = timing(records)
    contenders = list(calm.contenders)
    first = contenders[1].samples[0]
    jumpy = first.model_copy(update={"seconds_per_round": [1.0, 1.0, 1.5]})
    contenders[1] = contenders[1].model_copy(update={"samples": [jumpy, *contenders[1].samples[1:]]})
    environment = ENVIRONMENT | {"load_average": [9.0, 5.0, 1.0]}
    noisy = calm.model_copy(update={"contenders": contenders, "environment_before": environment})
    found = caveats(Path("nowhere"), panels_of(records, [noisy]), [], caveats_of_instances)
    texts = {warning.subject: warning.text for warning in found}
    assert "few seeds" in texts
    assert "load average of 9 on 2" in texts["busy machine"]
    assert "noisy timing" not in subjects(records, [calm])
    assert "busy machine" not in subjects(records, [calm])


def test_what_makes_numbers_less_comparable_is_named():
    records = made_up_suite(task="mcid") + [r for r in made_up_suite(task="rte") if r.label != "pabee"]
    records[0] = records[0].model_copy(
        update={"environment": ENVIRONMENT | {"commit": "f" * 40, "cpu": "Other", "uncommitted_changes": True}}
    )
    point = records[2].operating_points[0].model_copy(update={"live_disagreements": 3})
    records[2] = records[2].model_copy(update={"operating_points": [point]})
    records = [
        record.model_copy(update={"task_notes": "The GLUE dev set is the test split. And more."}) for record in records
    ]
    found = subjects(records)
    for subject in ("dev as test", "not timed", "not run", "several commits", "several machines", "local changes"):
        assert subject in found
    assert "live differs" in found


def test_what_was_set_aside_or_failed_is_named(tmp_path):
    write_results(tmp_path)
    seed = tmp_path / "cells" / "mcid" / "minilm-l6" / "pabee" / "default" / "seed0"
    seed.rename(seed.with_name("seed0.stale-1"))
    failed = tmp_path / "cells" / "mcid" / "minilm-l6" / "broken" / "default" / "seed0"
    failed.mkdir(parents=True)
    (failed / "failure.json").write_text("{}")
    found, faults = load_panels(tmp_path)
    texts = [f"{warning.subject}: {warning.text}" for warning in caveats(tmp_path, found, faults, caveats_of_instances)]
    assert any(text.startswith("set aside: ") and "seed0.stale-1 is stale" in text for text in texts)
    assert any(text.startswith("no result: mcid/minilm-l6/broken") for text in texts)


# ---------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(results):
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.get((results / "report.html").as_uri())
    yield driver
    driver.quit()


@pytest.fixture
def table(browser):
    """The overview table, as the page shows it when it is opened."""
    browser.refresh()
    return browser.find_element("css selector", "#summary figure.table")


def column(table, number):
    """Return the visible texts of a column."""
    cells = table.find_elements("css selector", f"tbody tr:not([hidden]) > :nth-child({number})")
    return [cell.text for cell in cells]


def heading(table, number):
    return table.find_element("css selector", f"thead th:nth-child({number})")


def test_it_opens_without_a_word_on_the_console(browser, table):
    assert table.is_displayed()
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.hacked") is None
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    assert any(HOSTILE in text for text in column(table, 1))


def test_a_click_sorts_and_a_second_one_turns_the_order_round(table):
    button = heading(table, 2).find_element("tag name", "button")
    button.click()
    assert heading(table, 2).get_attribute("aria-sort") == "descending"
    values = [float(text) for text in column(table, 2) if text != "n/a"]
    assert values == sorted(values, reverse=True)
    button.click()
    assert heading(table, 2).get_attribute("aria-sort") == "ascending"
    values = [float(text) for text in column(table, 2) if text != "n/a"]
    assert values == sorted(values)


def test_missing_values_come_last_in_either_order(table):
    button = heading(table, 3).find_element("tag name", "button")  # the hostile method was not run on sst2
    for _ in range(2):
        button.click()
        assert column(table, 3)[-1] == "n/a"


def test_the_keyboard_sorts_words_too(browser, table):
    from selenium.webdriver import ActionChains, Keys

    heading(table, 3).find_element("tag name", "button").click()
    browser.execute_script("arguments[0].focus()", heading(table, 1).find_element("tag name", "button"))
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert heading(table, 1).get_attribute("aria-sort") == "ascending"
    assert heading(table, 3).get_attribute("aria-sort") == "none"
    names = column(table, 1)
    assert names == sorted(names, key=str.lower)
    ActionChains(browser).send_keys(Keys.TAB).perform()
    assert browser.switch_to.active_element.text.strip() == "mcid"


def test_typing_filters_and_escape_shows_all_again(table):
    from selenium.webdriver import Keys

    everything = column(table, 1)
    box = table.find_element("tag name", "input")
    box.send_keys("CALM soft")
    assert column(table, 1) == ["calm-softmax"]
    assert table.find_element("tag name", "output").text == f"1 of {len(everything)}"
    box.send_keys(Keys.ESCAPE)
    assert column(table, 1) == everything


def test_a_phone_scrolls_tables_and_not_the_page(browser, table):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.refresh()
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        wider = "return document.querySelector('#task-0 .scroll').scrollWidth > 390"
        assert browser.execute_script(wider)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
