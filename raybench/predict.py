"""python -m raybench.predict: classifies images with a trained model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from raybench import artefact
from raybench.arguments.parse import parse as command_line
from raybench.arguments.paths import require_file
from raybench.artefact import onnx_graph, served_graph
from raybench.data import Inputs
from raybench.data.contents import Encoded
from raybench.data.pixels import decoded, without_warnings
from raybench.results.remote import fetched

Classify = Callable[[Tensor], Tensor]
"""Pixels (B, size, size, 3) of uint8 -> logits (B, classes)."""


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Prints the most likely classes of images, one line per image.

    Examples:

      python -m raybench.predict resnet20.packed photo.jpg
      python -m raybench.predict results/resnet20-digits-bytes/recommended.onnx 1.png 2.png --top 3
      python -m raybench.predict net.safetensors photo.jpg --model my_models.nets:small_net --json

    Images are read as in training: upright, RGB, the largest centred square, scaled.
    """

    file: Annotated[str, tyro.conf.Positional]
    """The trained model: packed, safetensors or ONNX, by file or address."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files."""
    model: str = ""
    """The import path of the file's model if it is your own, `package.module:factory`."""
    top: int = 1
    """Number of classes to print per image."""
    json: bool = False
    """Prints one JSON object per image, with the probability of every printed class."""


def opened(path: Path | str, model: str = "") -> tuple[Inputs, Classify]:
    """The inputs of a trained model, and a function that classifies images.

    Args:
        model: the model's import path, if it has one.

    Raises:
        ValueError: no trained model, or its file lacks a description of the inputs.
        OSError: the store at an address refuses access or does not answer.
    """
    path = fetched.file(path)
    require_file(path)
    if path.suffix == ".onnx":
        return _graph(path)
    inputs = artefact.about(path).inputs
    if inputs is None:
        raise ValueError(f"{path} lacks a description of the model's inputs: train it again")
    network = artefact.load(path, model)
    return inputs, lambda pixels: network(inputs.normalized(pixels))


def _graph(path: Path) -> tuple[Inputs, Classify]:
    try:
        inputs, session = served_graph.opened(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    # ONNX Runtime's errors have many types.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is no ONNX graph that raybench wrote: {reason}") from error
    return inputs, lambda pixels: onnx_graph.logits(session, pixels)


@torch.inference_mode()
def predict(options: Predict) -> list[dict[str, object]]:
    """For each image its file and the most likely classes with their probabilities.

    Raises:
        ValueError: no trained model, or an image that cannot be read.
    """
    if not options.images:
        raise ValueError("name one image or more")
    if options.top < 1:
        raise ValueError(f"--top is {options.top}: 1 or more classes")
    inputs, classify = opened(options.file, options.model)
    predictions: list[dict[str, object]] = []
    for path in options.images:
        require_file(path, "image")
        with without_warnings():
            pixels, _, _ = decoded(Encoded(str(path), path), inputs.image_size)
        logits = classify(torch.tensor(pixels)[None])[0]
        shares = logits.float().softmax(0)
        best = shares.topk(min(options.top, len(shares)))
        classes = [
            {"class": inputs.class_names[int(place)], "probability": float(share)}
            for share, place in zip(best.values, best.indices, strict=True)
        ]
        predictions.append({"image": str(path), "classes": classes})
    return predictions


def run(options: Predict) -> int:
    """The exit code: 0, or 2 for a model or an image that cannot be read."""
    try:
        predictions = predict(options)
    except (ValueError, OSError) as error:
        print(f"raybench.predict: {str(error).removeprefix('--data: ')}", file=sys.stderr)
        return 2
    for one in predictions:
        if options.json:
            print(json.dumps(one))
            continue
        classes: list[dict[str, object]] = one["classes"]  # type: ignore[assignment]
        shares = [(c["class"], float(str(c["probability"]))) for c in classes]
        print(one["image"], *(f"{name} {100 * share:.1f} %" for name, share in shares), sep="  ")
    return 0


def parse(arguments: list[str]) -> Predict:
    """The command line. Raises SystemExit."""
    return command_line(Predict, arguments, "predict")


if __name__ == "__main__":
    sys.exit(run(parse(sys.argv[1:])))
