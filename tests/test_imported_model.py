"""What is wrong with a model by import path: one line with advice, before anything trains."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from own_models import TINY, module

from raybench import train, tune
from raybench.models import build, outline
from raybench.models.check import check

HEAD = """
import torch
from torch import nn

"""
NET = "nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, {}))"
FACTORY = "def net(classes, image_size):\n    "


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is importable, as `python -m` has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def returns(expression: str) -> str:
    return f"{HEAD}{FACTORY}return {expression}\n"


def forwards(body: str) -> str:
    return (
        f"{HEAD}class Net(nn.Module):\n"
        "    def __init__(self, classes, image_size):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(3 * image_size**2, classes)\n"
        "    def forward(self, x):\n"
        f"        {body}\n"
        "net = Net\n"
    )


BAD = {  # what is wrong: the module's text, and what is said of it
    "syntax": ("def net(:\n", r"written_\d+ cannot be imported: written_\d+\.py:1: SyntaxError: "),
    "import": (
        "import no_such_package\n",
        r"cannot be imported: written_\d+\.py:1: ModuleNotFoundError: .*no_such_package",
    ),
    "exit": ("import sys\n\nsys.exit(3)\n", r"written_\d+\.py:3: SystemExit: 3"),
    "misspelt": (f"{HEAD}def nett(): ...\n", r"has no 'net'; did you mean 'nett'\?"),
    "empty": ("", r"has no 'net'; it defines no function"),
    "no function": ("net = 3\n", "is a int, not a function or class to call"),
    "signature": (
        "def net(num_classes): ...\n",
        r"takes \(num_classes\), but is called with \(classes=…, image_size=…\).* give it these",
    ),
    "raises": (returns("1 / 0"), r"cannot be built: written_\d+\.py:6: ZeroDivisionError: div"),
    "no module": (returns("{}"), "returned dict: return an nn.Module"),
    "class": (returns("nn.Identity"), "returned the class Identity: return an instance of it"),
    "shared": (
        f"{HEAD}ONE = nn.Linear(192, 10)\n{FACTORY}return ONE\n",
        "returned the same module twice: build a new one in every call",
    ),
    "no weight": (returns("nn.Flatten()"), "has no trainable weight: it needs a parameter"),
    "frozen": (
        returns(NET.format("classes") + ".requires_grad_(False)"),
        "has no trainable weight",
    ),
    "lazy": (returns("nn.LazyLinear(classes)"), "has lazy layers: give each its input's size"),
    "classes": (returns(NET.format(7)), "has 7 outputs, but the data has 10 classes: give its"),
    "shape": (
        returns("nn.Conv2d(3, classes, 1)"),
        r"gives \(2, 10, 8, 8\) for 2 images: it must be \(2, 10\)",
    ),
    "tuple": (forwards("return self.head(x.flatten(1)), x"), "returns tuple: return the logits"),
    "integers": (forwards("return self.head(x.flatten(1)).int()"), "gives torch.int32: logits are"),
    "forward": (
        forwards("return self.head(x)"),
        r"does not take 2 images of 8 pixels, .*written_\d+\.py:10: RuntimeError: .*mat1 and mat2",
    ),
    "copy": (
        returns(NET.format("classes")) + "import threading\nnet_ = net\n\n\ndef net(**sizes):\n"
        "    model = net_(**sizes)\n    model.lock = threading.Lock()\n    return model\n",
        "copy.deepcopy fails on the model .*: TypeError: cannot pickle",
    ),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.usefixtures("no_training")
def test_train_refuses_it(kind, folder, capsys):
    text, said = BAD[kind]
    name = f"{module(folder, text)}:net"
    assert train.run(["pruning", "--model", name, *TINY]) == 2
    refused(capsys.readouterr().err, said)
    assert not (folder / "results").exists()


@pytest.mark.parametrize("kind", ["syntax", "misspelt", "signature", "classes", "no weight"])
def test_tune_refuses_it(kind, folder, capsys):
    text, said = BAD[kind]
    name = f"{module(folder, text)}:net"
    (folder / "space.py").write_text(
        "from dataclasses import replace\nfrom raybench.experiment import Recipe\n"
        "from trainers.pruning import base\n"
        'objectives = {"accuracy": "max"}\n'
        "def space(trial):\n    return replace(base, image_size=8, recipe=Recipe(crop=1))\n"
    )
    assert tune.run(tune.Tune(space=Path("space.py"), model=name)) == 2
    refused(capsys.readouterr().err, said)
    assert not (folder / "results").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("layerz:net", r"there is no module layerz in the current folder .*did you mean 'layers'"),
        ("layers.part:net", "no module layers.part in the package layers; did you mean 'parts'"),
        ("layers.parts.x:net", "no module layers.parts.x in the package layers.parts"),
        ("layers/parts.py:net", "is given as package.module:factory, here layers.parts:net"),
        ("layers.parts:", "is not an import path"),
        (":net", "is not an import path"),
        ("a:b:c", "is not an import path"),
        ("empty:net", "empty has no source file: name the module that has the factory"),
        ("__main__:net", "."),
        ("sys:exit", "sys has no source file"),
        (
            "layers.parts",
            r"no model 'layers.parts'; .* \(your own model is package.module:factory",
        ),
    ],
)
@pytest.mark.usefixtures("no_training")
def test_a_path_that_leads_nowhere_gets_advice(name, said, folder, capsys):
    (folder / "layers").mkdir()
    (folder / "empty").mkdir()
    (folder / "layers" / "__init__.py").write_text("raise SystemError('imported')\n")
    (folder / "layers" / "parts.py").touch()
    assert train.run(["pruning", "--model", name, *TINY]) == 2
    refused(capsys.readouterr().err, said)
    assert "layers" not in sys.modules  # none of its code ran


def refused(printed: str, said: str) -> None:
    import re

    assert re.search(said, printed), printed
    assert len(printed.splitlines()) == 1, printed
    assert printed.startswith(("raybench.train: ", "raybench.tune: ")), printed


def test_weights_of_timm_are_not_for_it(folder, capsys):
    name = f"{module(folder, returns(NET.format('classes')))}:net"
    with pytest.raises(ValueError, match=r"timm has no weights of .*: load them in its factory"):
        build(name, classes=10, image_size=8, pretrained="hub")


def test_a_factory_that_needs_values_is_outlined_with_them(folder):
    lines = "width = int(torch.ones(3).sum())", "return nn.Linear(width, classes)\n"
    text = HEAD + FACTORY + "\n    ".join(lines)
    model = outline(f"{module(folder, text)}:net", classes=10, image_size=8)
    assert model.weight.shape == (10, 3)
    assert model.weight.device.type == "cpu"


def test_an_outline_leaves_the_tensors_of_the_file_alone(folder):
    """The file is imported once: its tensors would be on the meta device for good."""
    name = module(folder, f"{HEAD}MEAN = torch.ones(3)\n" + returns(NET.format("classes")))
    assert outline(f"{name}:net", classes=10, image_size=8)[1].weight.device.type == "meta"
    assert sys.modules[name].MEAN.sum() == 3


def test_neither_import_nor_check_moves_the_random_numbers(folder):
    text = f"{HEAD}torch.manual_seed(5)\n" + returns(NET.format("classes"))
    name = f"{module(folder, text)}:net"
    before = torch.get_rng_state()
    check(name, classes=10, image_size=8)
    assert torch.equal(torch.get_rng_state(), before)
