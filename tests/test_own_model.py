"""A user's own model by its import path: trained, loaded, exported and searched over."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from own_models import PARTS, ROOT, TINY, module, python, write

from raybench import artefact, data, models, train, tune
from raybench.experiment import from_json
from raybench.models import source
from raybench.search.overrides import Overrides
from raybench.search.space import load
from raybench.search.sweep import Sweep
from raybench.techniques.distill import Distill
from raybench.training import loop

LOAD = """
import sys, torch
from raybench import artefact
path, name = sys.argv[1:]
try:
    artefact.load(path)
except ValueError as error:
    print(error)
print("nets" in sys.modules)
try:
    model = artefact.load(path, name)
    print(tuple(model(torch.zeros(2, 3, 8, 8)).shape), model.training)
except ValueError as error:
    print(error)
"""
NET = """
from torch import nn

def net(classes, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, classes))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is importable, as `python -m` has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.workers
@pytest.mark.parametrize(
    "factory", [pytest.param("conv", marks=pytest.mark.nightly), "transformer"]
)
def test_is_trained_loaded_and_exported_by_fresh_processes(tmp_path, factory):
    write(tmp_path)
    name, file = f"nets:{factory}", tmp_path / "net.safetensors"
    arguments = ("pruning", "--model", name, *TINY, "--store", file)
    trained = python(tmp_path, "-m", "raybench.train", *arguments)
    assert trained.returncode == 0, trained.stderr
    experiment = artefact.about(file)[0]
    (row,) = pd.read_parquet(tmp_path / "results" / "pruning-runs" / "trials").to_dict("records")
    assert row["model"] == experiment.model == name
    assert row["model_source"] == experiment.model_source != ""
    assert row["key"] == experiment.key()

    refused, imported, right = python(tmp_path, "-c", LOAD, file, name).stdout.splitlines()
    assert refused.endswith(f"imported only where it is named again: --model {name}")
    assert imported == "False"
    assert right == "(2, 10) False"

    exported = python(
        tmp_path, "-m", "raybench.export", file, "--model", name, "--onnx", "net.onnx", "--json"
    )
    assert exported.returncode == 0, exported.stderr
    figures = json.loads(exported.stdout)
    assert figures["test_accuracy"] == pytest.approx(row["test_accuracy"])
    assert (tmp_path / "net.packed").stat().st_size == figures["file_bytes"]

    # A file that the module imports is edited: the model is another one.
    (tmp_path / "layers" / "parts.py").write_text(PARTS.replace("\n\n", "\n\nEDITED = True\n"))
    *_, other = python(tmp_path, "-c", LOAD, file, name).stdout.splitlines()
    assert f"its hash was {experiment.model_source} and is " in other
    assert "restore the old files, or train again" in other


@pytest.mark.workers
def test_an_edit_gives_another_key_and_refuses_the_checkpoint(tmp_path):
    """Of a run that was interrupted: its weights are of other code."""
    path = write(tmp_path)
    program = "\n".join(
        [
            "import sys",
            "from pathlib import Path",
            "from raybench import train",
            "options = train.parse(sys.argv[1:])",
            "print(options.experiment.key())",
            "if not options.checkpoint.exists(): next(train._reports(options))",
            "else: sys.exit(train.run(sys.argv[1:]))",
        ]
    )
    arguments = ("pruning", "--model", "nets:conv", *TINY, "--checkpoint", tmp_path / "c.pt")
    first = python(tmp_path, "-c", program, *arguments)
    assert (tmp_path / "c.pt").exists(), first.stderr
    path.write_text(path.read_text().replace("bias=False", "bias=not True"))
    second = python(tmp_path, "-c", program, *arguments)
    assert second.returncode == 2
    assert "was saved by another experiment, with model_source" in second.stderr
    assert second.stdout.split()[0] != first.stdout.split()[0]
    assert not (tmp_path / "results" / "pruning-runs" / "trials").exists()


class TestSource:
    def test_the_hash_is_of_the_files_that_are_imported(self, folder):
        path = write(folder)
        files = {path.resolve(), folder / "layers" / "__init__.py", folder / "layers" / "parts.py"}
        assert source._imported("nets", path, folder) == files
        seen = set()
        for edited in sorted(files):
            seen.add(models.source.source_hash.__wrapped__("nets:conv"))
            edited.write_text(edited.read_text() + "\n# edited\n")
        (folder / "unused.py").write_text("")
        seen.add(models.source.source_hash.__wrapped__("nets:conv"))
        assert len(seen) == 4

    def test_relative_imports_and_packages_count(self, folder):
        package = folder / "zoo"
        (package / "inner").mkdir(parents=True)
        for name in ("__init__", "inner/__init__"):
            (package / f"{name}.py").write_text("")
        (package / "inner" / "net.py").write_text("from .. import width\nfrom .deep import x\n")
        (package / "width.py").write_text("import json, torch, raybench.models\n")
        (package / "inner" / "deep.py").write_text("def late():\n    import zoo.late\n")
        (package / "late.py").write_text("broken syntax")
        names = {
            path.relative_to(package).as_posix()
            for path in source._imported("zoo.inner.net", package / "inner" / "net.py", folder)
        }
        inner = {"inner/__init__.py", "inner/net.py", "inner/deep.py"}
        assert names == inner | {"__init__.py", "width.py", "late.py"}

    def test_an_installed_package_counts_by_its_file_alone(self):
        file = source.located("timm.models.resnet")
        assert source.is_installed(file)
        assert not source._imported("timm.models.resnet", file, file.parents[2])
        assert len(source.source_hash("timm.models.resnet:resnet18")) == 16

    def test_the_key_of_a_named_model_stays(self, tiny):
        assert models.with_source(tiny) is tiny
        assert "model_source" not in json.dumps(from_json(tiny.to_json()).key())
        with pytest.raises(ValueError, match="resnet20 is a model by name: leave it out"):
            models.with_source(replace(tiny, model_source="0123"))

    def test_a_hash_that_is_not_that_of_the_files_is_refused(self, folder, tiny):
        name = f"{module(folder, NET)}:net"
        right = models.with_source(replace(tiny, model=name))
        assert models.with_source(right) == right
        hashes = f"has changed: its hash was 0123 and is {right.model_source}"
        with pytest.raises(ValueError, match=hashes):
            models.with_source(replace(right, model_source="0123"))

    @pytest.mark.usefixtures("no_training")
    def test_a_run_needs_it(self, folder, tiny):
        experiment = replace(tiny, model=f"{module(folder, NET)}:net")
        images = data.load(experiment)
        with pytest.raises(ValueError, match="lacks its model_source"):
            next(loop.fit(experiment, images))
        with pytest.raises(ValueError, match="has changed: its hash was 0123"):
            next(loop.fit(replace(experiment, model_source="0123"), images))


class TestFiles:
    """Which stored models have code imported."""

    @pytest.fixture
    def stored(self, folder, tiny):
        def store(name):
            experiment = models.with_source(replace(tiny, model=f"{name}:net"))
            path = folder / f"{name}.safetensors"
            artefact.save(artefact.skeleton(experiment, 10), experiment, 10, path)
            return experiment, path

        return store

    def test_none_but_the_one_that_is_named_again(self, folder, stored):
        (experiment, path), (other, _) = (stored(module(folder, NET)) for _ in range(2))
        for name in ("", "resnet20", other.model):
            with pytest.raises(ValueError, match=f"named again: --model {experiment.model}"):
                artefact.load(path, name)
        assert artefact.load(path, experiment.model)(torch.zeros(1, 3, 8, 8)).shape == (1, 10)

    @pytest.mark.usefixtures("no_training")
    def test_a_teacher_is_the_runs_model_or_a_named_one(self, folder, stored, tiny):
        experiment, path = stored(module(folder, NET))
        student = replace(tiny, distill=Distill(teacher=str(path)))
        with pytest.raises(ValueError, match="imported only where it is named again"):
            next(loop.fit(student, data.load(student)))
        twin = replace(experiment, distill=student.distill)
        with pytest.raises(AssertionError, match="it trained"):
            next(loop.fit(twin, data.load(twin)))

    def test_first_weights_are_those_of_the_file(self, folder, stored):
        experiment, path = stored(module(folder, NET))
        weights = artefact.load(path, experiment.model).state_dict()
        started = loop.first_model(replace(experiment, start_from=str(path)), 10).state_dict()
        assert all(torch.equal(weights[name], value) for name, value in started.items())

    def test_a_space_that_reads_a_files_model_imports_nothing(self, folder, stored, monkeypatch):
        experiment, path = stored(module(folder, NET))
        monkeypatch.setenv("RAYBENCH_START", str(path))
        monkeypatch.delitem(sys.modules, path.stem)
        with pytest.raises(ValueError, match=f"is of {experiment.model}: name it in a space of"):
            load(ROOT / "search_spaces" / "super_model.py", Overrides())
        assert path.stem not in sys.modules

    def test_a_forged_size_is_refused_before_its_weights_are_made(self, folder, stored):
        experiment, path = stored(module(folder, NET))
        artefact.save(artefact.skeleton(experiment, 10), experiment, 10**9, path)
        with pytest.raises(ValueError, match="would have 193,000,000,000 values"):
            artefact.load(path, experiment.model)


class TestSpace:
    SPACE = """
        from dataclasses import replace
        from raybench.experiment import Recipe
        from trainers.pruning import base
        objectives = {"accuracy": "max"}
        def space(trial):
            model = trial.suggest_categorical("model", ["resnet20", "resnet44"])
            return replace(base, image_size=8, model=model, recipe=Recipe(crop=1))
        """

    def test_tune_takes_the_model_in_place_of_the_spaces(self, folder):
        path = folder / f"{module(folder, self.SPACE)}.py"
        name = f"{module(folder, NET)}:net"
        plain, space = load(path, Overrides()), load(path, Overrides(model=name))
        assert {example.model for example in space.examples} == {name}
        assert {len(example.model_source) for example in space.examples} == {16}
        assert {example.model_source for example in plain.examples} == {""}
        assert space.fingerprint != plain.fingerprint  # an edit of the model is another sweep
        assert tune.run(tune.Tune(space=path, model="resnet2000")) == 2

    def test_a_sweep_of_another_model_is_another_sweep(self, folder):
        path = folder / f"{module(folder, self.SPACE)}.py"
        for model in ("resnet20", "resnet44"):
            overrides = Overrides(model=model)
            options = {"trials": 1, "overrides": overrides}
            if model == "resnet20":
                sweep = Sweep(folder / "results", load(path, overrides), **options)
                assert sweep.ask().experiment.model == model
                sweep.close()
                continue
            with pytest.raises(ValueError, match="--model was resnet20, is resnet44"):
                Sweep(folder / "results", load(path, overrides), **options)

    def test_the_flag_replaces_a_model_of_the_spaces_own(self, folder):
        name = f"{module(folder, NET)}:net"
        text = self.SPACE.replace('"resnet44"', f'"{name}"')
        path = folder / f"{module(folder, text)}.py"
        assert {bool(e.model_source) for e in load(path, Overrides()).examples} == {True, False}
        named = load(path, Overrides(model="resnet20")).examples
        assert {(e.model, e.model_source) for e in named} == {("resnet20", "")}


def test_the_command_prints_its_name(folder, capsys):
    name = f"{module(folder, NET)}:net"
    assert train.run(["pruning", "--model", name, *TINY]) == 0
    assert f"{name} on digits" in capsys.readouterr().out
