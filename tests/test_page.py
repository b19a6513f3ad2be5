"""The page in a real browser: Chromium draws it, and it answers the pointer and the keyboard."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_sweeps import written

from raybench.reports.attribution import Attribution
from raybench.reports.chapter import Chapter
from raybench.reports.effect import Effect
from raybench.reports.page import document
from raybench.results.read import read

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver import ActionChains  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM, CHROMEDRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = [
    pytest.mark.workers,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="no chromium or no chromedriver"),
]
OPENS_S = 2.0
SLOWER = 2  # a machine may be this many times slower
PLOTS = ("front-0", "curves-0", "importances-0", "parallel-0")
POINT = """
const [id, trace, at] = arguments, plot = document.getElementById(id), box = plot._fullLayout;
const data = plot._fullData[trace], rect = plot.getBoundingClientRect();
return [rect.left + box._size.l + box.xaxis.d2p(data.x[at]),
        rect.top + box._size.t + box.yaxis.d2p(data.y[at])];
"""
"""Where on the screen a point of a trace stands."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A page of one sweep, of two, of 2,000 trials of 30 epochs, with evil names, and of many."""
    folder = tmp_path_factory.mktemp("pages")
    one = Effect(1.0, 0.5, 1.5, 3)
    chapters = {
        "one": [("one", {"trials": 80})],
        "two": [("first", {"trials": 40}), ("second", {"trials": 40})],
        "large": [("large", {"trials": 2000, "epochs": 30})],
        "many": [(f"sweep{n}", {"trials": 25, "epochs": 2}) for n in range(7)],
        "evil": [("evil", {"params": {"<script>window.evil=1</script>": "<img src=x>"}})],
    }
    files = {}
    for name, sweeps in chapters.items():
        results = [read(written(folder, name=sweep, **more)) for sweep, more in sweeps]
        results[0].trials["recipe.lr"] = 0.1  # else the family's table has a row a trial
        effects = [Attribution("prune", one, one, one)] if name == "one" else []
        page = document([Chapter(results=each, attributions=effects) for each in results])
        files[name] = folder / f"{name}.html"
        files[name].write_text(page, encoding="utf-8")
    return files


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,1000"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    yield chrome
    chrome.quit()


@pytest.fixture
def opened(browser, pages) -> Callable[..., Any]:
    """Opens a page, in a window of this width, and waits for its first plots."""

    def open_page(name: str, width: int = 1280, *, dark: bool = False) -> Any:
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        for log in ("browser", "performance"):
            browser.get_log(log)
        browser.get(pages[name].as_uri())
        wait(browser, lambda: browser.execute_script(READY))
        return browser

    return open_page


READY = "return Number(document.documentElement.dataset.ready) || 0"


def wait(browser: Any, condition: Callable[[], Any]) -> Any:
    return WebDriverWait(browser, 120, poll_frequency=0.05).until(lambda _: condition())


def draw_all(browser: Any) -> None:
    """Scrolls to each plot, so that it is drawn."""
    for element in browser.find_elements(By.CSS_SELECTOR, ".plot"):
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        wait(browser, lambda plot=element: plot.find_elements(By.CSS_SELECTOR, ".main-svg"))


def column(browser: Any, table: int, place: int) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll('table')[arguments[0]].tBodies[0].rows]"
        ".map((row) => row.cells[arguments[1]].textContent)",
        table,
        place,
    )


def click(browser: Any, element: Any) -> None:
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def hovered(browser: Any, plot: str, trace: int, at: int) -> str:
    """The text that appears when the pointer comes to a point."""
    element = browser.find_element(By.ID, plot)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    wait(browser, lambda: element.find_elements(By.CSS_SELECTOR, ".main-svg"))
    x, y = browser.execute_script(POINT, plot, trace, at)
    pointer = ActionChains(browser, duration=50)
    pointer.w3c_actions.pointer_action.move_to_location(round(x) - 3, round(y) - 3)
    pointer.w3c_actions.pointer_action.move_to_location(round(x), round(y))
    pointer.perform()
    shown = (By.CSS_SELECTOR, f"#{plot} .hoverlayer .hovertext")
    return str(wait(browser, lambda: browser.find_elements(*shown))[0].text)


@pytest.mark.parametrize("name", ["one", "two", "evil"])
def test_draws_every_plot_without_an_error_or_a_request(opened, name):
    browser = opened(name)
    draw_all(browser)
    errors = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert errors == []
    assert browser.execute_script("return window.evil") is None
    assert browser.find_elements(By.CSS_SELECTOR, "[data-title^=Share]") == []
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert {url.partition(":")[0] for url in urls} <= {"file", "data", "blob"}
    assert len([url for url in urls if url.startswith("file:")]) == 1


@pytest.mark.parametrize(("plot", "trace"), [("front-0", 0), ("curves-0", 0)])
def test_a_trial_shows_its_parameters_under_the_pointer(opened, plot, trace):
    text = hovered(opened("one"), plot, trace, 1)
    assert text.startswith("trial ")
    for name in ("lr 0.", "sparsity 0.", "model resnet", "accuracy, % "):
        assert name in text


def test_a_name_with_tags_is_text_under_the_pointer(opened):
    text = hovered(opened("evil"), "front-0", 0, 0)
    assert "<script>window.evil=1</script> <img src=x>" in text


def test_the_axis_becomes_logarithmic_and_back(opened):
    browser = opened("one")
    kind = "return document.getElementById('front-0')._fullLayout.xaxis.type"
    (box, *_) = browser.find_elements(By.CSS_SELECTOR, "#front-0-controls input")
    assert browser.execute_script(kind) == "log"
    for expected in ("linear", "log"):
        click(browser, box)
        wait(browser, lambda value=expected: browser.execute_script(kind) == value)


def test_another_cost_can_be_chosen(opened):
    browser = opened("one")
    title = "return document.getElementById('front-0')._fullLayout.xaxis.title.text"
    costs = Select(browser.find_element(By.CSS_SELECTOR, "#front-0-controls select"))
    names = [option.text for option in costs.options]
    assert names == ["model_bytes", "train_s, s", "s_per_epoch, s"]
    costs.select_by_index(1)
    wait(browser, lambda: browser.execute_script(title) == names[1])


def test_numbers_sort_as_numbers(opened):
    browser = opened("one")
    tables = browser.find_elements(By.TAG_NAME, "table")
    (place,) = [
        at
        for at, table in enumerate(tables)
        if "model_bytes" in table.text and "status" not in table.get_attribute("textContent")
    ]
    heads = tables[place].find_elements(By.TAG_NAME, "th")
    (head,) = [at for at, one in enumerate(heads) if one.text == "model_bytes"]
    for direction, reverse in (("ascending", False), ("descending", True)):
        click(browser, heads[head])
        sizes = [int(text.replace(",", "")) for text in column(browser, place, head)]
        assert sizes == sorted(sizes, reverse=reverse)
        assert heads[head].get_attribute("aria-sort") == direction
    assert len(str(min(sizes))) < len(str(max(sizes)))  # as text they would sort otherwise


def test_missing_values_come_last(opened):
    browser = opened("one")
    last = len(browser.find_elements(By.TAG_NAME, "table")) - 1
    click(browser, browser.find_element(By.TAG_NAME, "summary"))
    heads = browser.find_elements(By.TAG_NAME, "table")[last].find_elements(By.TAG_NAME, "th")
    (head,) = [at for at, one in enumerate(heads) if one.text == "quantize.bits"]
    for _ in range(2):
        click(browser, heads[head])
        bits = column(browser, last, head)
        missing = [text == "–" for text in bits]
        assert any(missing)
        assert missing == sorted(missing)


def test_curves_can_be_filtered_and_colored(opened):
    browser = opened("large")
    note = browser.find_element(By.ID, "curves-0-note")
    assert note.text == "500 of 2,000 curves drawn"
    field = browser.find_element(By.CSS_SELECTOR, "#curves-0-controls input")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
    field.send_keys("trial 1234,")
    wait(browser, lambda: note.text == "1 of 2,000 curves drawn; 1 match")
    field.clear()
    field.send_keys("resnet44 stopped")
    wait(browser, lambda: " match" in note.text and not note.text.startswith("1 of"))
    names = "return document.getElementById('curves-0').data.map((trace) => trace.name)"
    wait(browser, lambda: browser.execute_script(names)[0] == "stopped early")
    groups = Select(browser.find_element(By.CSS_SELECTOR, "#curves-0-controls select"))
    assert [option.text for option in groups.options] == ["status", "model"]
    groups.select_by_index(1)
    wait(browser, lambda: browser.execute_script(names)[0] == "resnet44")


def test_parallel_coordinates_of_many_sweeps_stay_alive(opened):
    """A browser takes the oldest WebGL context from a page that holds more than 16."""
    browser = opened("many")
    for place in (*range(7), 0):
        plot = browser.find_element(By.ID, f"parallel-{place}")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
        wait(browser, lambda plot=plot: plot.find_elements(By.TAG_NAME, "canvas"))
    lost = (
        "return [...arguments[0].querySelectorAll('canvas')].map((one) => one.getContext('webgl')"
    )
    assert not any(browser.execute_script(f"{lost}.isContextLost())", plot))
    assert "WebGL contexts" not in str(browser.get_log("browser"))


def test_plots_follow_the_color_scheme(opened):
    browser = opened("one", dark=True)
    back = "return getComputedStyle(document.body).backgroundColor"
    paper = "return document.getElementById('front-0')._fullLayout.paper_bgcolor"
    dark = browser.execute_script(back), browser.execute_script(paper)
    scheme = {"name": "prefers-color-scheme", "value": "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    wait(browser, lambda: browser.execute_script(paper) != dark[1])
    assert browser.execute_script(back) != dark[0]
    assert browser.execute_script(paper) == "#ffffff"


@pytest.mark.parametrize("name", ["one", "two", "evil"])
def test_fits_a_phone(opened, name):
    browser = opened(name, width=390)
    draw_all(browser)
    browser.execute_script("document.querySelectorAll('details').forEach((one) => one.open = true)")
    time.sleep(0.2)  # for the layout
    script = "return [document.documentElement.scrollWidth, innerWidth]"
    assert browser.execute_script(script) == [390, 390]


def test_2000_trials_of_30_epochs_open_in_two_seconds(opened):
    """Seconds of the processor, which other programs beside it do not prolong."""
    browser = opened("one")
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})

    def busy_s() -> float:
        metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        return float({one["name"]: one["value"] for one in metrics}["TaskDuration"])

    before = busy_s()
    opened("large")
    assert busy_s() - before < SLOWER * OPENS_S
