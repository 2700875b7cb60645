"""The report: one file, nothing from a network, text that stays text, and controls that work in a real browser."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from benchmarks.analysis.comparisons.equal_cost import at_equal_cost
from benchmarks.analysis.comparisons.headline import headline
from benchmarks.analysis.panels.results import load_panels, panels
from benchmarks.analysis.report.contents.instances import CLASSIFICATION
from benchmarks.analysis.report.page import render
from benchmarks.analysis.rows.caveats import caveats, caveats_of_instances
from benchmarks.analysis.rows.instances import table_rows
from benchmarks.analysis.tables.provenance import records_table
from records_by_hand import ENVIRONMENT, cell, made_up_suite, operating_point, stored, timing, write_results

from benchmarks.analysis import write_html
from benchmarks.store.folders import write_record
from benchmarks.store.records import HullPoint
from consistentee.errors import UserError

HOSTILE = "<script>window.hacked = true</script>"
FULL_BY_SEED = ((0, 0.80), (1, 0.76))
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))


def panels_of(records, timings=()):
    return panels([stored(record) for record in records], list(timings))


def subjects(records, timings=(), out_dir=Path("nowhere"), faults=()):
    return [warning.subject for warning in caveats(out_dir, panels_of(records, timings), faults, caveats_of_instances)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    write_results(folder, tasks=("mcid", "sst2"))
    for task in ("mcid", HOSTILE):
        hostile = cell(HOSTILE, [operating_point(0.5, "budget 0.50", 3.0, 0.8)], task=task)
        place = folder / "cells" / ("mcid" if task == "mcid" else "hostile") / "minilm-l6"
        write_record(place / "hostile" / "default" / "seed0" / "record.json", hostile)
    (folder / "cells" / "sst2" / "minilm-l6" / "pabee" / "default" / "seed0" / "record.json").write_text("{")
    write_html(folder)
    return folder


@pytest.fixture(scope="module")
def page(results):
    return (results / "report.html").read_text(encoding="utf-8")


def charts_of(page):
    return json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)[1])


def without_libraries(page):
    """Return the page without the scripts of others."""
    return re.sub(r"<script>(?!\nconst options).*?</script>", "", page, flags=re.DOTALL)


def test_the_page_is_one_file_that_loads_nothing(page):
    own = without_libraries(page)
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", re.sub(r"<script type=.*?</script>", "", own))
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "default-src 'none'" in own
    assert "unsafe-eval" not in own
    assert len(page) < 2_000_000  # the libraries; records come on top


def test_text_from_data_is_escaped(page):
    assert HOSTILE not in page
    assert "&lt;script&gt;window.hacked" in page
    assert "\\u003cscript\\u003ewindow.hacked" in page


def test_every_record_is_accounted_for(results, page):
    found, faults = load_panels(results)
    records = [stored_cell.record for panel in found for stored_cell in panel.cells]
    table = records_table(records)
    assert len(table.cells) == len(records) == 25
    assert table.cells[0][-1] == "consistentee run made-up"
    for record in records:
        assert record.key[:12].split("<")[0] in page
    assert len(faults) == 1
    assert "pabee/default/seed0/record.json: damaged" in page


def test_the_same_results_make_the_same_page(results, page):
    write_html(results)
    assert (results / "report.html").read_text(encoding="utf-8") == page


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match="holds no results"):
        write_html(tmp_path)


def test_a_suite_without_the_full_model_still_has_a_report():
    (panel,) = panels_of([cell("deebert", [operating_point(0.9, "within 1 point", 5.0, 0.8)])])
    page = render("small", [panel], [], CLASSIFICATION)
    assert "The full model was not run" in page
    assert 'href="#warnings"' not in page
    assert list(charts_of(page)) == ["#curves-chart"]
    assert "points against the full model" not in json.dumps(charts_of(page)["#curves-chart"]["params"][:2])


# ---------------------------------------------------------------------------------------------- what charts show


def test_the_headline_has_intervals_where_they_are_known(results, page):
    of = headline(load_panels(results)[0])
    drawn = {(v["method"], v["budget"]): v for v in charts_of(page)["#headline-chart"]["data"]["values"]}
    assert drawn.keys() == {(label, f"{speedup:g}x") for label, speedup in of.entries}
    known = [entry for entry in of.entries.values() if entry.interval is not None]
    assert known
    for entry in of.entries.values():
        value = drawn[entry.label, f"{entry.speedup:g}x"]
        assert value["points"] == pytest.approx(100 * entry.points, abs=0.01)
        assert value["low"] == (None if entry.interval is None else pytest.approx(100 * entry.interval[0]))


def points_of(page):
    """Return the columns of the chart of curves, as one dictionary a point."""
    (columns,) = charts_of(page)["#curves-chart"]["data"]["values"]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@pytest.fixture(scope="module")
def curves(page):
    return points_of(page)


def test_operating_points_lie_in_the_chart_as_in_the_table(results, curves):
    panel = next(panel for panel in load_panels(results)[0] if panel.task == "sst2")
    (row, *_) = [row for row in table_rows(panel) if row.label == "deebert"]
    found = [p for p in curves if p["task"] == "sst2" and p["score"] == round(100 * row.scores["accuracy"], 3)]
    point = next(p for p in found if p["dot"] == "all" and p["n"] >= 0)
    assert point["x_layers"] == pytest.approx(100 * row.speedups.average_layers / 6, abs=0.01)
    assert point["x_b1"] == pytest.approx(100 / row.speedups.time_ratios[1], abs=0.01)
    assert point["ms_b1"] == pytest.approx(row.clocks[1].milliseconds, abs=0.01)
    assert [point["low"], point["high"]] == pytest.approx([100 * bound for bound in row.interval], abs=0.01)


def test_knobs_of_the_hull_have_costs_too():
    record = cell("deebert", [operating_point(0.9, "within 1 point", 5.0, 0.8)])
    points = [point.model_copy(update={"knob": knob}) for knob in (0.1, 0.9) for point in record.curve_test[:1]]
    hull = [HullPoint(place=place, validation_flops=1.0, flops=0.25 * record.full_flops) for place in range(2)]
    curves = {"curve_test": points, "curve_validation": points, "hull": hull}
    (panel,) = panels_of([record.model_copy(update=curves)])
    found = [p for p in points_of(render("small", [panel], [], CLASSIFICATION)) if p["line"] != "other"]
    assert [p["x_flops"] for p in found] == [25, None]  # the other one is an operating point, and shown by itself
    assert [p["dot"] for p in found] == ["other", "none"]


def test_points_are_counted_from_the_full_model(curves):
    full = {p["task"]: p["score"] for p in curves if p["n"] == -1}
    assert {"mean of 2 tasks", "mcid", "sst2"} == set(full)
    compared = [p for p in curves if p["task"] in ("mcid", "sst2")]
    assert all(p["points"] == pytest.approx(p["score"] - full[p["task"]], abs=0.01) for p in compared)


def test_points_of_a_seed_are_counted_from_the_full_model_of_that_seed():
    records = [cell("full", [operating_point(6, "within 1 point", 6.0, score)], seed=s) for s, score in FULL_BY_SEED]
    records += [cell("calm", [operating_point(0.5, "budget 0.50", 3.0, 0.78)], seed=0)]
    records += [cell("both", [operating_point(0.5, "budget 0.50", 3.0, 0.78)], seed=s) for s, _ in FULL_BY_SEED]
    everything = [record.model_copy(update={"task": task}) for task in ("mcid", "rte") for record in records]
    found = points_of(render("small", panels_of(everything), [], CLASSIFICATION))
    drawn = {task: {(p["n"], p["points"]) for p in found if p["task"] == task} for task in ("mcid", "mean of 2 tasks")}
    full, both, calm = -1, 0, 1
    assert drawn["mcid"] == drawn["mean of 2 tasks"] == {(full, 0.0), (both, 0.0), (calm, -2.0)}


def test_means_over_tasks_are_at_equal_cost(results, curves):
    panels = [panel for panel in load_panels(results)[0] if panel.task in ("mcid", "sst2")]
    expected = 100 * np.mean([at_equal_cost(panel, "deebert", 2.0).points for panel in panels])
    mixed = [p["points"] for p in curves if p["task"] == "mean of 2 tasks" and p["knob"] == "knobs mixed to 2x"]
    assert any(points == pytest.approx(expected, abs=0.01) for points in mixed)


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
def driver():
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_window_size(1200, 900)
    yield driver
    driver.quit()


def opened(driver, place):
    """Open a page and wait for its charts and tables."""
    driver.get(place.as_uri())
    wait_until(driver, lambda: len(driver.find_elements("css selector", ".chart svg.marks")) == 3)
    wait_until(driver, lambda: driver.find_elements("css selector", "table.dataTable"))
    return driver


def wait_until(driver, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 20, poll_frequency=0.05).until(lambda _: condition())


@pytest.fixture(scope="module")
def browser(driver, results):
    """One page for all tests: opening it takes as long as ten of them."""
    return opened(driver, results / "report.html")


def bound(browser, place, name):
    """Return the controls of a chart that are bound to a parameter, by their values."""
    found = browser.find_elements("css selector", f"{place} [name='{name}']")
    return {element.get_attribute("value"): element for element in found}


def press(browser, element):
    """Click what lies, maybe out of sight, behind a label."""
    browser.execute_script("arguments[0].click()", element)


def drawn(browser, place, kind):
    """Return how the marks of a kind are drawn, sorted."""
    script = """return [...document.querySelectorAll(`${arguments[0]} .${arguments[1]} path`)]
        .filter((path) => path.getAttribute('stroke-width') !== '0.35')
        .map((path) => path.getAttribute('d') + path.getAttribute('transform') + path.getAttribute('stroke')).sort()"""
    return browser.execute_script(script, place, kind)


def words(browser, place):
    return browser.execute_script(
        "return [...document.querySelectorAll(`${arguments[0]} svg text`)].map((text) => text.textContent)", place
    )


def changes(browser, place, action, kind="mark-line"):
    """Say whether what is drawn changes by an action."""
    before = drawn(browser, place, kind)
    action()
    wait_until(browser, lambda: drawn(browser, place, kind) != before)
    return before, drawn(browser, place, kind)


def test_it_opens_without_a_word_on_the_console_or_a_request(browser, results):
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.hacked") is None
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith("data:")} == {(results / "report.html").as_uri()}
    assert HOSTILE in browser.find_element("id", "curve-methods").text
    assert any(HOSTILE in text for text in column(browser, "points-table", 2))


def test_the_budget_moves_the_headline(browser):
    place = "#headline-chart"
    for budget in ("1.5x", "3x", "2x"):
        changes(
            browser, place, lambda b=budget: press(browser, bound(browser, "#headline", "budget")[b]), "mark-symbol"
        )
    assert "points against the full model's score" in words(browser, place)


def test_every_cost_has_an_axis_of_its_own(browser):
    costs = {"b1": "batch 1", "flops": "FLOPs", "b32": "batch 32", "layers": "layers run"}
    buttons = bound(browser, "#curves", "cost")
    assert set(buttons) == set(costs)
    changes(browser, "#curves-chart", lambda: press(browser, buttons["b1"]))  # mixed knobs are not timed
    for cost, title in costs.items():
        press(browser, buttons[cost])
        wait_until(browser, lambda t=title: any(t in text for text in words(browser, "#curves-chart")))


def test_tasks_and_scores_are_chosen(browser):
    from selenium.webdriver.support.ui import Select

    place = "#curves-chart"
    task = Select(browser.find_element("css selector", "#curve-controls [name='task']"))
    assert [option.text for option in task.options] == ["mean of 2 tasks", HOSTILE, "mcid", "sst2"]
    changes(browser, place, lambda: task.select_by_visible_text("sst2"))
    score = Select(browser.find_element("css selector", "#curve-controls [name='measure']"))
    changes(browser, place, lambda: score.select_by_visible_text("score, %"))
    assert "score, %" in words(browser, place)
    exits = Select(browser.find_element("css selector", "#exit-controls [name='exit_task']"))
    changes(browser, "#exits-chart", lambda: exits.select_by_visible_text("sst2"), "mark-rect")


def test_methods_go_grey_and_the_grey_go(browser):
    place = "#curves-chart"
    chips = browser.find_elements("css selector", "#curve-methods input")
    chip = next(chip for chip in chips if chip.find_element("xpath", "..").text == "deebert")
    colour = browser.execute_script("return getComputedStyle(arguments[0]).getPropertyValue('--colour')", chip)
    before, after = changes(browser, place, lambda: press(browser, chip))
    assert sum(colour in line for line in after) < sum(colour in line for line in before)
    assert len(after) == len(before)  # it is grey now
    others = bound(browser, "#curves", "others")["on"]
    _, after = changes(browser, place, lambda: press(browser, others))
    assert len(after) < len(before)
    changes(browser, place, lambda: press(browser, others))
    assert changes(browser, place, lambda: press(browser, chip))[1] == before


def test_points_far_below_are_left_out(browser):
    depths = bound(browser, "#curves", "depth")
    few, many = changes(browser, "#curves-chart", lambda: press(browser, depths["1000"]), "mark-symbol")
    assert len(many) > len(few)
    _, fewest = changes(browser, "#curves-chart", lambda: press(browser, depths["3"]), "mark-symbol")
    assert len(fewest) < len(few)


def test_hovering_says_what_a_point_is(browser):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("css selector", "#curve-controls [name='task']")).select_by_visible_text("mcid")
    press(browser, bound(browser, "#curves", "cost")["b1"])  # every point on this axis is a dot
    svg = browser.find_element("css selector", "#curves-chart svg")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", svg)
    ActionChains(browser).move_to_element(svg).perform()
    tip = browser.find_element("id", "vg-tooltip-element")
    wait_until(browser, lambda: "visible" in tip.get_attribute("class"))
    for word in ("method", "knob", "score", "layers", "FLOPs of full", "clock, batch 1", "clock, batch 32"):
        assert word in tip.text
    assert "undefined" not in tip.text
    chips = browser.find_elements("css selector", "#curve-methods label")
    assert any(chip.text in tip.text for chip in chips)
    assert re.search(r"[+−]\d+\.\d.*\d+\.\d% \[\d+\.\d, \d+\.\d\].*ms, \d\.\d\dx", tip.text, re.DOTALL)


def column(browser, table, number):
    """Return the visible texts of a column."""
    cells = f"[...document.querySelectorAll('#{table} tbody tr > :nth-child({number})')]"
    return browser.execute_script(f"return {cells}.map((cell) => cell.innerText)")


def heading(browser, table, number):
    """Return the heading of a column, in the middle of the window, where nothing lies over it."""
    found = browser.find_element("css selector", f"#{table} thead th:nth-child({number})")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    return found


def sorting(browser, number):
    return heading(browser, "leaderboard-table", number).get_attribute("aria-sort")


def test_a_click_sorts_and_a_second_one_turns_the_order_round(browser):
    for direction in ("descending", "ascending"):
        heading(browser, "leaderboard-table", 2).click()
        wait_until(browser, lambda d=direction: sorting(browser, 2) == d)
        values = [float(text.rstrip("†")) for text in column(browser, "leaderboard-table", 2) if text != "n/a"]
        assert len(values) > 3
        assert values == sorted(values, reverse=direction == "descending")


def test_what_is_not_known_comes_last(browser):
    heading(browser, "by-task-table", 3).click()  # pabee's record on sst2 is damaged
    wait_until(browser, lambda: column(browser, "by-task-table", 3)[-1] == "n/a")


def test_the_keyboard_sorts_words_too(browser):
    from selenium.webdriver import ActionChains, Keys

    title = heading(browser, "leaderboard-table", 1).find_element("css selector", "[role=button]")
    browser.execute_script("arguments[0].focus()", title)
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    wait_until(browser, lambda: sorting(browser, 1) == "ascending")
    names = column(browser, "leaderboard-table", 1)
    wait_until(browser, lambda: column(browser, "leaderboard-table", 1) == sorted(names, key=str.lower))


def test_typing_filters(browser):
    everything = column(browser, "points-table", 1)
    browser.find_element("css selector", "#points-table input").send_keys("CALM soft")
    wait_until(browser, lambda: len(column(browser, "points-table", 1)) < len(everything))
    assert set(column(browser, "points-table", 1)) == {"calm-softmax"} < set(everything)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_page_and_its_charts_follow_the_theme(browser, theme):
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("id", "theme")).select_by_value(theme)
    ink = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    shades = {
        "paper": browser.execute_script(ink, "body", "backgroundColor"),
        "axis": browser.execute_script(ink, "#curves-chart .role-axis-label text", "fill"),
    }
    lightness = {name: sum(map(int, re.findall(r"\d+", shade)[:3])) / 3 for name, shade in shades.items()}
    dark = theme == "dark"
    assert (lightness["paper"] < 60) == dark
    assert (lightness["axis"] > 180) == dark


def test_a_phone_scrolls_tables_and_not_the_page(browser):
    size = {"width": 400, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.refresh()
        wait_until(browser, lambda: len(browser.find_elements("css selector", ".chart svg.marks")) == 3)
        assert browser.execute_script("return document.documentElement.scrollWidth") == 400
        assert browser.execute_script("return document.querySelector('#points-table .scroll').scrollWidth") > 400
        widths = (
            "return [...document.querySelectorAll('.chart svg.marks')].map((svg) => svg.getBoundingClientRect().width)"
        )
        assert all(200 < width <= 400 for width in browser.execute_script(widths))
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.refresh()


def test_nothing_was_said_on_the_console_in_the_end(browser):
    assert browser.get_log("browser") == []
