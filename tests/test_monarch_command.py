"""The commands on the way to a table of dense, Monarch and low-rank models."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from raybench import artefact, report, train
from raybench.experiment import tables
from raybench.reports import summary
from raybench.results.read import Results, read
from raybench.techniques.layers.monarch_linear import MonarchLinear
from raybench.techniques.low_rank import LowRank, LowRankLinear
from raybench.techniques.monarch import Monarch
from raybench.training import trainer
from trainers import monarch

MONARCH = {"monarch": Monarch()}
FLAGS = ["--model", "vit32x2", "--image-size", "8", "--subset", "0.1", "--recipe.batch", "32"]


FLAGS += ["--recipe.crop", "1", "--recipe.precision", "fp32", "--recipe.epochs", "2"]


def family_table(results: Results) -> pd.DataFrame:
    """By model and layers."""
    table = summary.family_table(results, 0.6)
    assert table is not None
    return table.set_index(["model", "layers"])


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., int]:
    def run(*arguments: str) -> int:
        return train.run(["monarch", *FLAGS, "--results", str(tmp_path), *arguments])

    return run


class TestTrainCommand:
    @pytest.mark.slow
    def test_dense_then_structured_then_report(self, trained, tmp_path, capsys):
        names = ("dense", "monarch", "low-rank", "later")
        stored = {name: tmp_path / f"{name}.safetensors" for name in names}
        assert trained("--store", str(stored["dense"])) == 0
        flags = ["--monarch.mode", "dense_to_sparse", "--monarch.switch-at", "0"]
        flags += ["--start-from", str(stored["dense"])]
        assert trained(*flags, "--store", str(stored["monarch"])) == 0
        low = ["--low-rank.blocks", "2", "--low-rank.leave-out", "blocks.0.*"]
        assert trained(*low, "--store", str(stored["low-rank"])) == 0
        later = ["--monarch.mode", "sparse_to_dense", "--monarch.switch-at", "0.5"]
        assert trained(*later, "--store", str(stored["later"])) == 0
        assert capsys.readouterr().out.count("epoch 2/2") == 4

        folder = tmp_path / "monarch-runs"
        results = read(folder)
        rows = dict(zip(names, results.trials.to_dict("records"), strict=True))
        counts = {name: row["structured_layers"] for name, row in rows.items()}
        assert counts == {"dense": None, "monarch": 8, "low-rank": 4, "later": 0}
        sizes = ["24x8 · 4 of 8x8", "8x8 · 4 of 8x8", "32x8 · 4 of 8x8", "8x8 · 4 of 8x32"]
        factors = ", ".join(f"2 x (4 of {size})" for size in sizes)
        assert rows["monarch"]["factors"] == factors
        assert rows["later"]["factors"] == ""
        assert rows["dense"]["factors"] is None
        assert pd.isna(rows["dense"]["monarch.blocks"])
        assert rows["monarch"]["monarch.blocks"] == 4
        assert rows["monarch"]["monarch.layers"] == "both"  # what was not said is at its default
        assert pd.isna(rows["monarch"]["low_rank.blocks"])
        for name, row in rows.items():
            assert row["status"] == "COMPLETE"
            assert row["model_bytes"] == stored[name].stat().st_size
        parameters = {name: row["parameters"] for name, row in rows.items()}
        assert parameters["monarch"] < parameters["low-rank"] < parameters["dense"]
        assert parameters["later"] == parameters["dense"]
        for name, kind in (("monarch", MonarchLinear), ("low-rank", LowRankLinear)):
            layers = [m for m in artefact.load(stored[name]).modules() if isinstance(m, kind)]
            assert len(layers) == counts[name]

        assert report.run(report.Report(folders=(str(folder),), threshold=0.0)) == 0
        output = capsys.readouterr().out
        assert "4 trials, 4 complete" in output
        assert "the family's table" in output
        layers = family_table(results).index.get_level_values("layers").tolist()
        assert layers == [
            "dense",
            "low-rank 2 both",
            "monarch 4 both dense_to_sparse 0.0",
            "monarch 4 both sparse_to_dense 0.5",
        ]

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--monarch.blocks", "5"], "5 blocks do not divide the 32 inputs of blocks.0.attn"),
            (
                ["--monarch.layers", "both", "--model", "resnet20"],
                "ResNetCifar has no linear layer",
            ),
            (["--low-rank.leave-out", "head"], "leave_out 'head' matches no layer"),
            (
                ["--start-from", "timm:nowhere.pth", "--model", "vit_tiny_patch16_224"],
                "there is no file nowhere.pth",
            ),
        ],
    )
    def test_what_cannot_be_is_one_line_and_exit_2(self, trained, capsys, flags, words):
        assert trained(*flags) == 2
        error_output = capsys.readouterr().err
        assert error_output.startswith("raybench.train: ")
        assert words in error_output
        assert error_output.count("\n") == 1

    @pytest.mark.parametrize(
        ("flag", "value", "words"),
        [
            ("--monarch.blocks", "1", "blocks is 1"),
            ("--monarch.switch-at", "1.5", "switch_at is 1.5"),
            ("--low-rank.blocks", "17", "blocks is 17"),
            ("--monarch.mode", "both", "--monarch.mode"),
        ],
    )
    def test_a_value_that_no_model_could_have_is_a_usage_error(
        self, trained, capsys, flag, value, words
    ):
        with pytest.raises(SystemExit) as exit_:
            trained(flag, value)
        assert exit_.value.code == 2
        assert words in capsys.readouterr().err

    @pytest.mark.parametrize("techniques", [{}, MONARCH, {"low_rank": LowRank()}])
    def test_columns_are_reported_every_epoch(self, techniques):
        recipe = replace(monarch.base.recipe, epochs=2, batch=32, crop=1, precision="fp32")
        tiny = replace(monarch.base, model="vit32x2", image_size=8, subset=0.1, recipe=recipe)
        epochs = list(trainer.train(replace(tiny, **techniques)))
        assert len(epochs) == 2
        for epoch in epochs:
            for technique in techniques.values():
                for name, column in technique.columns.items():
                    assert type(epoch.metrics[name]) is column.type
            assert epoch.metrics.get("structured_layers") == (8 if techniques else None)
            assert ("factors" in epoch.metrics) == ("monarch" in techniques)
            assert json.dumps(epoch.metrics)  # plain values, and none of torch's
        assert set(epochs[-1].metrics) <= set(tables.metric_columns())
