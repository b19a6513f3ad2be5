"""Models of a user's own, as files in a folder: a convolutional net and a transformer."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
NETS = '''
"""Two small classifiers."""
import torch
from torch import nn

from layers.parts import Norm


class Patches(nn.Module):
    """A TransformerEncoder over patches of 2x2 pixels."""

    def __init__(self, classes, image_size):
        super().__init__()
        self.cut = nn.Conv2d(3, 16, 2, stride=2)
        self.places = nn.Parameter(torch.randn((image_size // 2) ** 2, 16) * 0.1)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        x = self.cut(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.encoder(x).mean(1))


def conv(*, classes, image_size):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), Norm(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes),
    )


def transformer(classes, image_size, depth=1):
    return Patches(classes, image_size)
'''
PARTS = "from torch import nn\n\nNorm = nn.BatchNorm2d\n"
TINY = (
    "--image-size", "8", "--subset", "0.1", "--recipe.epochs", "2", "--recipe.batch", "32",
    "--recipe.crop", "1", "--recipe.precision", "fp32",
)  # fmt: skip
_numbers = itertools.count()


def write(folder: Path) -> Path:
    """`nets.py`, and the package `layers` of which it imports `parts`; gives `nets.py`."""
    (folder / "layers").mkdir()
    (folder / "layers" / "__init__.py").touch()
    (folder / "layers" / "parts.py").write_text(PARTS)
    path = folder / "nets.py"
    path.write_text(NETS)
    return path


def module(folder: Path, text: str) -> str:
    """Writes a module under a name that no other test has imported; gives the name."""
    name = f"written_{next(_numbers)}"
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return name


def python(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A fresh Python in the folder."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
