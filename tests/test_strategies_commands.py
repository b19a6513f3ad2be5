"""What the strategies' commands refuse, fp16's scaled loss, and the family's table."""

from __future__ import annotations

import mmap
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from raybench import train
from raybench.experiment import Parallel, elastic_counts, flatten, tables
from raybench.parallel.ddp import Replicas
from raybench.reports import summary
from raybench.results.read import Results, read
from raybench.results.store import Store
from raybench.search.overrides import Overrides
from raybench.search.space import load
from raybench.training import measure, trainer
from raybench.training.loss_scale import FIRST, PATIENCE, LossScale
from trainers import strategies

ROOT = Path(__file__).parent.parent
SMALL = ["strategies", "--model", "vit32x1", "--data", "digits", "--image-size", "8"]
SMALL += ["--subset", "0.1", "--recipe.crop", "1", "--recipe.precision", "fp32"]
SMALL += ["--recipe.epochs", "2", "--workers", "1"]


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., int]:
    def run(*arguments: str) -> int:
        return train.run([*SMALL, "--results", str(tmp_path), *arguments])

    return run


class TestRefusals:
    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--strategy", "zero4"], "did you mean 'zero"),
            (["--strategy", "expert"], "set switch.experts"),
            (
                ["--strategy", "zero3", "--prune.final-sparsity", "0.5"],
                "prune and zero3 cannot",
            ),
            (["--recipe.precision", "fp16"], "on a CPU use bf16"),
            (["--parallel.checkpointing", "--model", "vgg11", "--image-size", "32"], "use a ViT"),
            (["--workers", "two"], "a number, or a range such as 1:4"),
            (["--workers", "3:2"], "--workers 3:2"),
            (["--workers", "5:7"], "divides over no number of workers from 5 to 7"),
        ],
    )
    def test_one_line_and_exit_2(self, trained, capsys, flags, words):
        if torch.cuda.is_available() and "fp16" in flags:
            pytest.skip("a GPU has fp16")
        assert trained(*flags) == 2
        error_output = capsys.readouterr().err
        assert error_output.startswith("raybench.train: ")
        assert error_output.count("\n") == 1
        assert words in error_output

    @pytest.mark.workers
    def test_more_workers_than_resources_are_refused_at_once(self):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        refused = subprocess.run(
            [sys.executable, "-m", "raybench.train", *SMALL[:-1], "512", "--recipe.batch", "512"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert refused.returncode == 2
        assert "512 workers do not fit" in refused.stderr
        # In processor time, of which an idle machine takes 3 s and 512 workers would take minutes.
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 15

    def test_a_checkpoint_of_another_model_names_what_differs(self, trained, tmp_path, capsys):
        state = str(tmp_path / "state.pt")
        assert trained("--checkpoint", state) == 0
        assert trained("--checkpoint", state, "--model", "vit48x1") == 2
        assert "with model 'vit32x1' instead of 'vit48x1'" in capsys.readouterr().err


class TestCheckpoint:
    def test_a_run_goes_on_from_it_with_another_strategy(self, trained, tmp_path, capsys):
        state = str(tmp_path / "state.pt")
        assert trained("--checkpoint", state) == 0
        assert trained("--checkpoint", state, "--strategy", "zero3") == 0
        output = capsys.readouterr().out
        assert output.count("epoch 1/2") == 1
        assert output.count("epoch 2/2") == 2
        rows = read(tmp_path / "strategies-runs").trials
        assert rows["loss"][0] == rows["loss"][1]
        assert rows["parallel.strategy"].tolist() == ["ddp", "zero3"]


class TestPeak:
    @pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone")
    def test_it_is_forgotten(self):
        cpu, block = torch.device("cpu"), 200 << 20
        before = measure.memory_now_bytes(cpu)
        with mmap.mmap(-1, block) as memory:
            for _ in range(block >> 20):  # the allocator keeps large blocks once they are freed
                memory.write(b"1" * (1 << 20))
        # Half of it: Linux counts resident pages in batches, and takes cold ones back meanwhile.
        assert measure.peak_memory_bytes(cpu) >= before + block // 2
        measure.forget_peak(cpu)
        assert measure.peak_memory_bytes(cpu) < before + block // 2

    @pytest.mark.workers
    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone")
    def test_a_child_does_not_inherit_its_parents(self):
        """800 MB of a parent are none of the process that it starts."""
        child = (
            "import torch; from raybench.training import measure; "
            "print(measure.peak_memory_bytes(torch.device('cpu')))"
        )
        parent = (
            "import subprocess, sys; block = bytearray(b'1') * (800 << 20); "
            f"print(subprocess.run([sys.executable, '-c', {child!r}], stdout=-1, text=True, "
            "check=True, close_fds=False, preexec_fn=lambda: None).stdout)"
        )
        done = subprocess.run([sys.executable, "-c", parent], stdout=-1, check=True)
        assert 0 < int(done.stdout) < 800 << 20


class TestElasticCounts:
    def test_those_over_which_the_batch_divides(self):
        spread = replace(strategies.base, parallel=Parallel())
        assert elastic_counts(spread, 1, 5) == [1, 2, 4]
        assert elastic_counts(spread, 3, 8) == [4, 8]


class TestLossScale:
    def test_gradients_are_those_of_the_loss_itself(self):
        layer = nn.Linear(3, 1)
        x = torch.randn(8, 3)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        layer(x).mean().backward()
        wanted = [p.grad.clone() for p in layer.parameters()]
        optimizer.zero_grad()
        scaled = LossScale(torch.float16, Replicas())
        scaled.backward(layer(x).mean())
        assert layer.bias.grad.item() == pytest.approx(FIRST)
        scaled.step(optimizer)
        for own, other in zip(layer.parameters(), wanted, strict=True):
            assert torch.allclose(own.grad, other)

    def test_an_overflow_leaves_the_step_out_and_halves_the_factor(self):
        layer = nn.Linear(3, 1)
        before = layer.weight.detach().clone()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        scaled = LossScale(torch.float16, Replicas())
        scaled.backward(layer(torch.full((1, 3), torch.inf)).mean())
        scaled.step(optimizer)
        assert torch.equal(layer.weight, before)
        assert scaled.state["factor"] == FIRST / 2

    def test_the_factor_doubles_after_many_good_steps(self):
        layer = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
        scaled = LossScale(torch.float16, Replicas())
        scaled.state["good"] = PATIENCE - 1.0
        scaled.backward(layer(torch.ones(1, 3)).mean())
        scaled.step(optimizer)
        assert scaled.state == {"factor": 2 * FIRST, "good": 0.0}

    def test_other_precisions_have_none(self):
        layer = nn.Linear(3, 1)
        LossScale(torch.bfloat16, Replicas()).backward(layer(torch.ones(1, 3)).mean())
        assert layer.bias.grad.item() == 1.0


# --- The family's table -------------------------------------------------------------------------

ABOUT = {"family": "strategies", "sweep": "s", "objectives": strategies.objectives}

# strategy, precision, batch, status, accuracies by epoch, samples a second, peak bytes
RUNS = [
    ("ddp", "float32", 16, "COMPLETE", [0.5, 0.7], 10.0, 3e9),
    ("ddp", "float32", 16, "COMPLETE", [0.7, 0.9], 14.0, 2e9),
    ("ddp", "bfloat16", 64, "COMPLETE", [0.5, 0.75], 30.0, 4e9),
    ("zero2", "bfloat16", 16, "COMPLETE", [0.5, 0.75], 9.0, 2e9),
    ("zero3_offload", "float32", 64, "COMPLETE", [0.25, 0.5], 7.0, 1e9),
    ("powersgd", "float32", 16, "COMPLETE", [0.25, 0.5], 8.0, 1e9),
    ("zero1", "float32", 16, "PRUNED", [0.99], 99.0, 1e9),
]


@pytest.fixture
def results(memory_path: Path) -> Results:
    store = Store(memory_path, *tables.schemas(ABOUT))
    for number, (strategy, precision, batch, status, accuracies, per_s, peak) in enumerate(RUNS):
        identity = {"sweep": "s", "trial": f"s-{number:04d}", "number": number}
        counted = dict.fromkeys(trainer.COUNTED, 1_000_000)
        told = {f"theory_{name}": 2_000_000 for name in trainer.COUNTED}
        parts = {"compute_s": 6.0, "communication_s": 3.0, "waiting_s": 1.0}
        last = counted | told | parts | {"samples_per_s": per_s, "precision_used": precision}
        last |= {"peak_memory_bytes": int(peak), "sent_bytes_per_step": 5_000_000}
        for epoch, accuracy in enumerate(accuracies, start=1):
            last |= {"epoch": epoch, "accuracy": accuracy}
            store.put_epoch({**identity, **last})
        recipe = replace(strategies.base.recipe, batch=batch)
        spread = Parallel(workers=2, strategy=strategy)
        row = flatten(replace(strategies.base, recipe=recipe, parallel=spread))
        store.put_trial({**identity, **row, "status": status, **last})
    store.close()
    return read(memory_path)


class TestTable:
    def test_a_row_a_plugin_batch_and_precision(self, results):
        table = summary.family_table(results, 0.5)
        assert table is not None
        ours = table.set_index(["plugin", "precision", "batch per worker"])
        assert len(ours) == 5  # complete ones alone
        ddp = ours.loc[("ddp", "float32", 8)]
        assert ddp["trials"] == 2
        assert ddp["samples/s"] == 12.0
        assert ddp["maximum memory GB"] == 3.0
        assert ddp["states MB"] == 4.0
        assert ddp["in theory MB"] == 8.0
        assert ddp["communication %"] == 30.0
        assert ddp["waiting %"] == 10.0
        assert ddp["sent MB a step"] == 5.0
        assert ddp["accuracy by epoch, %"] == "60.00 / 80.00"

    def test_the_references_figures_stand_beside_its_own_rows(self, results):
        table = summary.family_table(results, 0.5)
        beside = {
            (row["plugin"], row["precision"], row["batch per worker"]): (
                row["reference: plugin"],
                row["reference: samples/s"],
                row["reference: memory GB"],
            )
            for row in table.to_dict("records")
        }
        assert beside[("ddp", "float32", 8)] == ("torch_ddp", 43.7168, 1.80)
        assert beside[("ddp", "bfloat16", 32)] == ("torch_ddp_fp16", 153.6898, 2.25)
        assert beside[("zero2", "bfloat16", 8)] == ("low_level_zero", 47.1534, 1.65)
        assert beside[("zero3_offload", "float32", 32)] == ("gemini", 110.6582, 0.66317)
        assert all(pd.isna(value) for value in beside[("powersgd", "float32", 8)])

    def test_no_complete_trial_is_an_empty_table(self, results):
        pruned = results.trials[results.trials["status"] == "PRUNED"]
        assert strategies.table(pruned, results.epochs, 0.5).empty


class TestSpace:
    def test_the_shipped_space_holds_every_strategy_and_both_worker_counts(self):
        space = load(ROOT / "search_spaces" / "strategies.py", Overrides())
        assert space.family == "strategies"
        assert space.objectives == strategies.objectives
        spreads = {example.parallel for example in space.examples}
        assert {spread.workers for spread in spreads} == {1, 2}
        assert len({spread.strategy for spread in spreads}) == 7
        assert space.workers == 2
