"""The page's file: what it holds, what it must not hold, and its size; no browser is needed."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest
from page_sweeps import OBJECTIVES, written
from table_rows import tmp_path as tmp_path

from raybench.report import Report, run
from raybench.reports.page import as_html
from raybench.reports.page.curves import DRAWN, curves
from raybench.reports.page.embed import embedded
from raybench.reports.page.importances import importances
from raybench.reports.page.sentence import sentence
from raybench.reports.page.table import table
from raybench.reports.page.trial_names import trial_names
from raybench.reports.verdict import Verdict
from raybench.results.read import Results, read

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
MOST_BYTES = 6_000_000


class Elements(HTMLParser):
    """The elements of a page and the text of its data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.starts: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.starts.append((tag, dict(attrs)))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.starts)


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return dict(json.loads(text))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Results:
    return read(written(tmp_path_factory.mktemp("small"), trials=60))


@pytest.fixture(scope="module")
def page(small) -> str:
    return as_html(small)


class TestPage:
    def test_holds_every_plot(self, page):
        assert list(data_of(page)["plots"]) == [
            "front-0",
            "curves-0",
            "importances-0",
            "parallel-0",
        ]

    def test_its_figures_are_plotlys(self, page):
        for spec in data_of(page)["plots"].values():
            for view in spec.get("views", []):
                go.Figure({"data": view["data"], "layout": view["layout"]})  # checks every name

    def test_begins_with_a_sentence(self, page, small):
        assert f'<p class="verdict">{sentence(small)}</p>' in page
        best = small.trials[small.trials["status"] == "COMPLETE"]["accuracy"].max()
        assert f"reaches {100 * best:.2f} % accuracy with " in sentence(small)

    def test_of_a_study_begins_with_the_verdict(self, small):
        tables = {"What pays": pd.DataFrame({"arm": ["prune"], "points": ["-0.4 ± 0.3"]})}
        page = as_html(small, verdict=Verdict("prune pays.", ("ema: no",), tables, Path("study")))
        assert '<p class="verdict">prune pays.</p>' in page
        assert "<li>ema: no</li>" in page
        assert "<td>-0.4 ± 0.3" in page

    def test_accuracies_are_in_percent(self, page, small):
        (view, *_) = data_of(page)["plots"]["front-0"]["views"]
        assert 50 < max(view["data"][0]["y"]) <= 100
        assert view["layout"]["yaxis"]["title"]["text"] == "accuracy, %"
        assert "<th>accuracy, %</th>" in page
        assert "<th>test_accuracy, %</th>" in page
        assert "<th>accuracy</th>" not in page

    def test_a_trial_is_named_with_its_parameters(self, small):
        first = json.loads(small.trials["params"][0])
        (name, *_) = trial_names(small)
        assert name.startswith("trial 0, ")
        assert f"\nlr {first['lr']:.4g}\n" in name
        assert "\naccuracy, % " in name

    def test_the_same_results_give_the_same_page(self, page, small):
        assert as_html(small) == page

    def test_asks_the_network_for_nothing(self, page):
        elements = Elements(page)
        for _, attributes in elements.starts:
            assert not {"src", "action", "srcset"} & attributes.keys()
            assert (attributes.get("href") or "#").startswith("#")
        assert elements.count("link") == 0
        assert "default-src 'none'" in page

    def test_of_several_sweeps_compares_them(self, tmp_path, capsys):
        folders = tuple(str(written(tmp_path, trials=30, name=name)) for name in ("one", "two"))
        target = tmp_path / "page.html"
        assert run(Report(folders=folders, html=target)) == 0
        printed = capsys.readouterr().out
        assert printed.index("one: 30 trials") < printed.index("two: 30 trials")
        page = target.read_text()
        assert Elements(page).count("section") == 3
        (view, *_) = data_of(page)["plots"]["combined"]["views"]
        assert [trace["name"] for trace in view["data"]] == ["one", "two", "front of all"]
        assert len(data_of(page)["names"]) == 2

    def test_of_a_results_folder_has_all_its_sweeps(self, tmp_path):
        for name in ("one", "two"):
            written(tmp_path, trials=5, name=name)
        assert run(Report(folders=(str(tmp_path),), html=tmp_path / "page.html")) == 0
        assert "<h1>2 sweeps</h1>" in (tmp_path / "page.html").read_text()

    @pytest.mark.parametrize("trials", [1, 2, 3])
    def test_of_few_trials(self, tmp_path, trials):
        results = read(written(tmp_path, trials=trials, name="few"))
        page = as_html(results)
        assert "Importances need 20 complete trials" in page

    @pytest.mark.parametrize(
        "objectives",
        [
            {"accuracy": "max"},
            {"loss": "min", "accuracy": "max"},
            {"accuracy": "max", "model_bytes": "min", "s_per_epoch": "min"},
        ],
    )
    def test_of_other_objectives(self, tmp_path, objectives):
        results = read(written(tmp_path, objectives=objectives))
        page = as_html(results)
        plots = data_of(page)["plots"]
        assert len(plots["importances-0"]["views"][0]["data"]) == len(objectives)
        assert plots["front-0"]["views"]

    def test_of_2000_trials_stays_under_6_mb(self, tmp_path):
        # One model and rate, so that the family's table stays short and quick.
        results = read(written(tmp_path, trials=2000, epochs=30))
        results.trials["recipe.lr"] = 0.1
        page = as_html(results)
        assert len(page.encode()) < MOST_BYTES
        drawn = data_of(page)["plots"]["curves-0"]
        assert drawn["drawn"] == DRAWN == 500
        assert "500 of 2,000 curves drawn" in page


class TestEscape:
    def test_no_name_becomes_an_element(self, tmp_path, page):
        folder = written(
            tmp_path,
            name="evil",
            params={EVIL: EVIL},
            model=EVIL,
            stop_reason=EVIL,
        )
        results = read(folder)
        results.about["sweep"] = EVIL
        evil = as_html(results)
        assert Elements(evil).count("script") == Elements(page).count("script") == 3
        assert Elements(evil).count("img") == 0
        assert "alert(1)" in evil  # as text
        assert EVIL not in evil

    def test_names_in_plots_are_escaped_for_plotly(self, tmp_path):
        """Plotly reads its texts as HTML with a few tags."""
        results = read(written(tmp_path, params={"<b>": "<i>"}))
        results.trials["model"] = ["<b>", *["<i>"] * (len(results.trials) - 1)]
        assert all("<" not in name for name in trial_names(results))
        view, _ = importances(results)
        assert view is not None
        texts = json.dumps([view, curves(results, 0)])
        assert "&lt;b&gt;" in texts
        assert not re.search("<[bi]>", texts)

    def test_data_cannot_end_its_element(self):
        text = embedded({"</script>": "<!-- & ]]>"})
        assert not set("<>&") & set(text)
        assert json.loads(text) == {"</script>": "<!-- & ]]>"}


class TestCurves:
    def test_start_at_epoch_1_and_keep_gaps(self, small):
        epochs = small.epochs[(small.epochs["number"] == 0) & (small.epochs["epoch"] != 1)]
        drawn = curves(Results(small.trials, epochs, small.about), 0)
        assert drawn is not None
        ((place, values),) = drawn["curves"]
        assert place == 0
        assert values[0] is None
        assert values[1] == round(10_000 * epochs["accuracy"].iloc[0])

    def test_of_no_epoch_are_none(self, small):
        assert curves(Results(small.trials, small.epochs.head(0), small.about), 0) is None


class TestImportances:
    def test_rank_what_decides_first(self, small):
        view, note = importances(small)
        assert view is not None
        bars = view["data"][1]
        by_name = dict(zip(bars["y"], bars["x"], strict=True))
        assert bars["name"] == "model_bytes"
        assert by_name["sparsity"] == max(by_name.values())
        assert "only some trials have them: bits" in note

    def test_need_trials(self, small):
        few = Results(small.trials.head(8), small.epochs, small.about)
        assert importances(few)[0] is None


def test_numbers_stand_right_and_texts_left():
    html = table(pd.DataFrame({"n": [1, 2], "ratio": ["× 0.5", "–"], "is": ["a", "1b c"]}))
    assert "<th>n</th><th>ratio</th><th class=t>is</th>" in html
    assert "<td>1<td>× 0.5<td class=t>a" in html


def test_of_nothing_complete(tmp_path):
    results = read(written(tmp_path, trials=1))
    assert sentence(results) == "No trial is complete yet: 1 running."
    assert results.objectives == OBJECTIVES
