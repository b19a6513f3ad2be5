"""Tables at the terminal: they fit it by choosing columns, and never part a number."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_sweeps import written
from table_rows import tmp_path as tmp_path

from raybench.report import Report, run
from raybench.reports.percent import in_percent
from raybench.reports.quantity import quantity
from raybench.reports.text import as_text

WIDE = pd.DataFrame({f"column_{n}": [1234567 * (n + 1), -1] for n in range(12)})


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


def lines(text: str) -> list[str]:
    return text.splitlines()


class TestWidth:
    def test_is_80_where_nothing_else_is_told(self):
        text = as_text("title", WIDE)
        assert 60 < max(map(len, lines(text))) <= 80
        assert "column_0" in text
        assert "column_11" in text.partition("Columns left out: ")[2]

    def test_is_that_of_columns(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "120")
        assert 80 < max(map(len, lines(as_text("title", WIDE)))) <= 120

    def test_wide_shows_all(self):
        text = as_text("title", WIDE, wide=True)
        assert "left out" not in text
        assert all(f" {1234567 * (n + 1):,} " in text for n in range(12))

    def test_names_what_shows_the_rest(self):
        told = " ".join(as_text("title", WIDE, rest="--wide").split())
        assert told.endswith("; column_11. Use --wide to see all.")

    def test_a_table_that_fits_has_all_its_columns(self):
        text = as_text("title", WIDE[["column_0", "column_3"]])
        assert "left out" not in text

    @given(
        st.lists(st.lists(st.integers(-(10**9), 10**9), min_size=2, max_size=2), max_size=15),
        st.integers(20, 120),
    )
    def test_no_number_is_parted(self, columns, width):
        frame = pd.DataFrame({f"a name, {n}": values for n, values in enumerate(columns)})
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", str(width))
            text = as_text("title", frame)
        assert max(map(len, lines(text))) <= width
        rows = [line for line in lines(text) if line.startswith("│")]
        assert len(rows) == (2 if columns else 0)
        shown = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]
        asked = [[f"{value:,}" for value in row] for row in zip(*columns, strict=True)]
        for cells, values in zip(shown, asked, strict=True):
            assert set(cells) <= set(values)

    def test_long_prose_is_folded_between_words(self):
        why = "fewer than two seeds have a model on both sides, so that nothing can be judged"
        text = as_text("title", pd.DataFrame({"arm": ["prune"], "why": [why * 2]}))
        assert max(map(len, lines(text))) <= 80
        folded = " ".join(line.split("│")[2].strip() for line in lines(text) if "│" in line)
        assert folded == why * 2

    def test_markup_is_text(self):
        assert "[red]" in as_text("[b]", pd.DataFrame({"[red]": ["[red]x[/red]"]}))


class TestPercent:
    def test_shares_of_accuracy_are_percent_with_their_unit(self):
        frame = pd.DataFrame({"accuracy": [0.91234], "sparsity": [0.8]})
        shown = in_percent(frame)
        assert shown.columns.tolist() == ["accuracy, %", "sparsity"]
        assert "91.23 " in as_text("title", shown)

    @pytest.mark.parametrize(
        ("name", "value", "text"),
        [
            ("accuracy", 0.9, "90.00 % accuracy"),
            ("model_bytes", 1_084_000, "1.084 MB"),
            ("model_bytes", 12, "12 bytes"),
            ("latency_ms", 3.14159, "3.142 ms"),
            ("s_per_epoch", 2.0, "2 s per epoch"),
            ("imbalance", 1.02, "imbalance 1.02"),
        ],
    )
    def test_a_quantity_has_its_unit(self, name, value, text):
        assert quantity(name, value) == text


def test_the_report_fits_80_columns_and_wide_shows_all(tmp_path, capsys):
    folder = written(tmp_path, trials=70)
    assert run(Report(folders=(str(folder),))) == 0
    printed = capsys.readouterr().out
    assert max(map(len, lines(printed))) <= 80
    assert "accuracy, %" in printed
    assert " 0.8" not in printed.partition("Pareto front")[2].partition("recipe.lr")[0]
    assert "Use --wide to see all." in printed
    assert run(Report(folders=(str(folder),), wide=True)) == 0
    assert "quantize.bits" in capsys.readouterr().out
