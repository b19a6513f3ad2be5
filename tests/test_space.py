"""Search spaces: what is wrong with a file is said in one line, before anything starts."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import optuna
import pytest

from raybench.search.overrides import Overrides
from raybench.search.space import load

ROOT = Path(__file__).parent.parent

HEAD = '''"""What is the question?"""
from dataclasses import replace
from raybench.techniques.prune import Prune
from trainers.pruning import base

objectives = {"accuracy": "max"}
'''
LINES = HEAD.count("\n")
GOOD = '''
def space(trial):
    """Two branches."""
    if trial.suggest_categorical("dense", [True, False]):
        return base  # nothing to prune
    return replace(base, prune=Prune(final_sparsity=trial.suggest_float("sparsity", 0.3, 0.9)))
'''
BASE = "\ndef space(trial):\n    return base\n"


def write(folder: Path, text: str, name: str = "probe.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def returns(expression: str) -> str:
    return f"{HEAD}\ndef space(trial):\n    return {expression}\n"


def refusal(path: Path, overrides: Overrides | None = None) -> str:
    """What is said of the file: in one line, which begins with its name."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        _ = load(path, overrides or Overrides()).workers
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


class TestGood:
    def test_is_loaded_with_what_it_says(self, tmp_path):
        space = load(write(tmp_path, HEAD + GOOD), Overrides())
        assert space.question == "What is the question?"
        assert space.family == "pruning"
        assert space.objectives == {"accuracy": "max"}
        assert space.enqueue == ()
        assert space.workers == 1
        assert {example.prune is None for example in space.examples} == {True, False}

    def test_overrides_reach_every_experiment(self, tmp_path):
        overrides = Overrides(epochs=3, data="digits", workers=2, seed=5)
        space = load(write(tmp_path, HEAD + GOOD), overrides)
        for example in space.examples:
            assert example.recipe.epochs == 3
            assert example.parallel.workers == 2
            assert example.seed == 5
        assert space.workers == 2

    def test_seeds_are_added(self, tmp_path):
        text = returns('replace(base, seed=trial.suggest_int("seed", 10, 12))')
        space = load(write(tmp_path, text), Overrides(seed=100))
        assert {example.seed for example in space.examples} == {110, 111, 112}

    def test_enqueued_parameters_are_tried_in_the_dry_run(self, tmp_path):
        text = HEAD + 'enqueue = [{"dense": False, "sparsity": 0.8125}]\n' + GOOD
        space = load(write(tmp_path, text), Overrides())
        assert space.examples[0].prune.final_sparsity == 0.8125
        assert space.enqueue == ({"dense": False, "sparsity": 0.8125},)

    @pytest.mark.slow
    @pytest.mark.parametrize("path", sorted(ROOT.glob("search_spaces/*.py")), ids=lambda p: p.stem)
    def test_the_shipped_ones_load(self, path):
        space = load(path, Overrides())
        assert f"python -m raybench.tune --space search_spaces/{path.name}" in space.question
        assert "Cost:" in space.question
        assert "Expected:" in space.question
        assert len(set(space.examples)) > 8

    def test_there_are_shipped_ones(self):
        assert (ROOT / "search_spaces" / "pruning.py").exists()

    def test_optuna_stays_as_loud_as_it_was(self, tmp_path):
        before = optuna.logging.get_verbosity()
        load(write(tmp_path, HEAD + GOOD), Overrides())
        refusal(write(tmp_path, returns("1 / 0")))
        assert optuna.logging.get_verbosity() == before


class TestFingerprint:
    def of(self, folder: Path, text: str) -> str:
        return load(write(folder, text), Overrides()).fingerprint

    def test_ignores_comments_docstrings_and_layout(self, tmp_path):
        message = self.of(tmp_path, HEAD + GOOD)
        other = (HEAD + GOOD).replace("What is the question?", "Another question")
        other = other.replace('"""Two branches."""', '"""Both ways."""')
        other = other.replace("# nothing to prune", "").replace("\ndef", "\n\n\n# A space\ndef")
        assert other != HEAD + GOOD
        assert self.of(tmp_path, other) == message
        assert self.of(tmp_path, other.replace('    """Both ways."""\n', "")) == message

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("0.3", "0.35"),
            ('"sparsity"', '"share"'),
            ('"max"', '"min"'),
            ("Prune(", "Prune(power=2.0, "),
        ],
    )
    def test_notices_code(self, tmp_path, old, new):
        assert old in HEAD + GOOD
        message = self.of(tmp_path, HEAD + GOOD)
        assert self.of(tmp_path, (HEAD + GOOD).replace(old, new)) != message


class TestFile:
    def test_missing_file_names_the_nearest(self, tmp_path):
        write(tmp_path, HEAD + GOOD, "pruning.py")
        message = refusal(tmp_path / "prunning.py")
        assert "does not exist" in message
        assert f"did you mean '{tmp_path / 'pruning.py'}'" in message

    def test_missing_file_in_an_empty_folder(self, tmp_path):
        assert "no .py files" in refusal(tmp_path / "nowhere" / "probe.py")

    def test_syntax_error_names_the_line(self, tmp_path):
        path = write(tmp_path, HEAD + "\ndef space(trial)\n    return base\n")
        assert refusal(path).startswith(f"{path}:{LINES + 2}: SyntaxError")

    def test_unknown_import(self, tmp_path):
        path = write(tmp_path, "import nothing_of_that_name\n")
        assert refusal(path) == (
            f"{path}:1: ModuleNotFoundError: No module named 'nothing_of_that_name'"
        )

    @pytest.mark.parametrize("missing", ["space", "objectives"])
    def test_missing_name(self, tmp_path, missing):
        text = (HEAD + BASE).replace(f"{missing} =", "other =").replace(f"def {missing}", "def x")
        assert f"defines no `{missing}`" in refusal(write(tmp_path, text))

    def test_an_exception_while_it_is_loaded_names_the_line(self, tmp_path):
        path = write(tmp_path, HEAD + "x = {}['lr']\n" + BASE)
        assert refusal(path).startswith(f"{path}:{LINES + 1}: KeyError: 'lr'")

    def test_an_exception_in_space_names_the_line(self, tmp_path):
        path = write(tmp_path, f"{HEAD}\ndef space(trial):\n    x = 1\n    return x / 0\n")
        assert refusal(path).startswith(f"{path}:{LINES + 4}: ZeroDivisionError")

    def test_a_message_of_many_lines_becomes_one(self, tmp_path):
        path = write(
            tmp_path, f"{HEAD}\ndef space(trial):\n    raise RuntimeError('one\\n  two\\nthree')\n"
        )
        assert "RuntimeError: one two three" in refusal(path)

    @pytest.mark.parametrize(("value", "kind"), [("None", "NoneType"), ("{'lr': 1}", "dict")])
    def test_returning_no_experiment(self, tmp_path, value, kind):
        message = refusal(write(tmp_path, returns(value)))
        assert f"returned {kind}, not an Experiment" in message


class TestFields:
    @pytest.mark.parametrize(
        ("expression", "kind", "wrong", "right"),
        [
            ("replace(base, prune=Prune(frequncy=5))", "Prune", "frequncy", "frequency"),
            ("replace(base, modle='resnet44')", "Experiment", "modle", "model"),
            ("replace(base, recipe=replace(base.recipe, epoch=3))", "Recipe", "epoch", "epochs"),
        ],
    )
    def test_unknown_field_names_the_nearest(self, tmp_path, expression, kind, wrong, right):
        path = write(tmp_path, returns(expression))
        assert refusal(path) == (
            f"{path}:{LINES + 3}: {kind} has no field {wrong!r}; did you mean {right!r}?"
        )

    @pytest.mark.parametrize(
        ("expression", "words"),
        [
            ("replace(base, prune=Prune(final_sparsity=1.5))", "final_sparsity is 1.5"),
            ("replace(base, subset=0.0)", "subset is 0.0"),
            ("replace(base, seed='1')", "Experiment.seed is '1'; it must be of type int"),
            ("changed(lr=-1.0)", "lr is -1.0"),
            ("changed(flip='no')", "Experiment.recipe.flip is 'no'; it must be of type bool"),
            ("changed(optimizer='adam')", "did you mean 'adamw'"),
            ("changed(crop=9)", "recipe.crop is 9"),
            ("changed(batch=5000)", "recipe.batch is 5000"),
        ],
    )
    def test_impossible_value_names_the_field(self, tmp_path, expression, words):
        changed = "def changed(**v):\n    return replace(base, recipe=replace(base.recipe, **v))"
        assert words in refusal(write(tmp_path, f"{returns(expression)}\n{changed}\n"))

    def test_impossible_value_in_a_rare_branch_is_found(self, tmp_path):
        path = write(
            tmp_path,
            HEAD + "\ndef space(trial):\n"
            "    if trial.suggest_int('which', 0, 9) == 7:\n"
            "        return replace(base, prune=Prune(frequency=0))\n"
            "    return base\n",
        )
        message = refusal(path)
        assert message.startswith(f"{path}:{LINES + 4}: frequency is 0")

    def test_overrides_that_do_not_fit_are_found(self, tmp_path):
        path = write(tmp_path, HEAD + GOOD)
        assert "does not divide over 3 workers" in refusal(path, Overrides(workers=3))
        assert "did you mean 'cifar10'" in refusal(path, Overrides(data="cifr10"))
        assert "epochs is 0" in refusal(path, Overrides(epochs=0))


class TestNames:
    def objectives(self, folder: Path, value: str) -> str:
        text = (HEAD + BASE).replace('{"accuracy": "max"}', value)
        assert value in text
        return refusal(write(folder, text))

    def test_unknown_objective_names_the_nearest(self, tmp_path):
        message = self.objectives(tmp_path, '{"acuracy": "max"}')
        assert "a run reports no objective 'acuracy'; did you mean 'accuracy'?" in message

    def test_an_objective_that_is_no_number(self, tmp_path):
        assert "'precision_used'" in self.objectives(tmp_path, '{"precision_used": "max"}')

    @pytest.mark.parametrize(
        ("objective", "other"),
        [
            ("test_accuracy", "accuracy"),
            ("latency_test_accuracy", "accuracy"),
            ("test_loss", "validation_loss"),
        ],
    )
    def test_an_objective_of_the_test_split(self, tmp_path, objective, other):
        message = self.objectives(tmp_path, f'{{"{objective}": "max"}}')
        assert f"by the test split; use {other!r}" in message

    def test_bad_direction(self, tmp_path):
        message = self.objectives(tmp_path, '{"accuracy": "maximum"}')
        assert "objective 'accuracy' is 'maximum', not \"max\"/\"min\"" in message

    @pytest.mark.parametrize("value", ["{}", '["accuracy"]', '"accuracy"', "3"])
    def test_objectives_that_are_none(self, tmp_path, value):
        assert 'use e.g. {"accuracy": "max"}' in self.objectives(tmp_path, value)

    @pytest.mark.parametrize("value", ["{'dense': True}", "[0.5]", "3"])
    def test_enqueue_that_is_no_list_of_parameters(self, tmp_path, value):
        message = refusal(write(tmp_path, f"{HEAD}enqueue = {value}\n{GOOD}"))
        assert "enqueue is a list of parameters" in message

    def test_enqueue_of_a_parameter_that_nobody_suggests(self, tmp_path):
        message = refusal(write(tmp_path, f"{HEAD}enqueue = [{{'sparsty': 0.5}}]\n{GOOD}"))
        assert (
            "enqueue sets 'sparsty', which is never suggested; did you mean 'sparsity'?" in message
        )

    def test_unknown_model_names_the_nearest(self, tmp_path):
        message = refusal(write(tmp_path, returns("replace(base, model='resnet_20')")))
        assert "no model 'resnet_20'; did you mean 'resnet20'?" in message

    def test_unknown_family_names_the_nearest(self, tmp_path):
        message = refusal(write(tmp_path, returns("replace(base, family='prunning')")))
        assert "no family 'prunning'; did you mean 'pruning'?" in message

    def test_mixed_families(self, tmp_path):
        text = returns("replace(base, family=trial.suggest_categorical('f', ['pruning', 'other']))")
        assert "mixes the families ['other', 'pruning']" in refusal(write(tmp_path, text))

    def test_mixed_worker_counts(self, tmp_path):
        text = returns(
            "replace(base, parallel=type(base.parallel)"
            "(workers=trial.suggest_categorical('w', [1, 2])))"
        )
        assert load(write(tmp_path, text), Overrides()).workers == 2
        assert load(tmp_path / "probe.py", Overrides(workers=2)).workers == 2
