"""What cannot be trained is told in one line, with exit code 2, before anything trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from raybench import train

TINY = [
    *("--image-size", "8", "--subset", "0.1", "--recipe.epochs", "1"),
    *("--recipe.batch", "32", "--recipe.crop", "1"),
]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """What the command says; it leaves no row."""
    code = train.run(["pruning", *arguments, *TINY, "--results", str(folder)])
    error = capsys.readouterr().err.strip()
    assert code == 2, error
    assert len(error.splitlines()) == 1, error
    assert error.startswith("raybench.train: ")
    assert not [*folder.rglob("*.parquet")]
    return error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        # Two that cannot stand together.
        (["--monarch.blocks", "2", "--low-rank.blocks", "2"], ["monarch", "low_rank", "use only"]),
        (["--prune.scope", "global", "--strategy", "zero3"], ["prune", "zero3"]),
        (["--switch.experts", "2", "--pipeline.chunks", "2"], ["switch", "pipeline"]),
        (["--prune.scope", "global", "--pipeline.chunks", "2"], ["prune", "scope layer"]),
        (["--prune-channels.ratio", "0.5", "--strategy", "zero2"], ["prune_channels", "zero2"]),
    ],
)
def test_two_that_cannot_stand_together(arguments, words, tmp_path, capsys, no_training):
    error = refused([*arguments, "--model", "vit32x2"], capsys, tmp_path)
    for word in words:
        assert word in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "resnet20", "--switch.experts", "2"], ["Res"]),
        (["--model", "resnet20", "--monarch.blocks", "2"], ["Res"]),
        (["--model", "resnet20", "--low-rank.blocks", "2"], ["Res"]),
        (["--model", "resnet20", "--prune-channels.ratio", "0.5"], ["shortcut B"]),
        (["--model", "vit32x2", "--monarch.leave-out", "*"], ["no linear layer", "without '*'"]),
    ],
)
def test_a_technique_that_fits_no_layer(arguments, words, tmp_path, capsys, no_training):
    error = refused(arguments, capsys, tmp_path)
    for word in words:
        assert word in error


def test_a_condition_that_does_not_hold_is_no_reason(tmp_path, capsys):
    arguments = ["pruning", "--model", "vit32x2", "--monarch.blocks", "2"]
    arguments += ["--prune.final-sparsity", "0.5"]
    assert train.run([*arguments, *TINY, "--results", str(tmp_path)]) == 0, capsys.readouterr().err
