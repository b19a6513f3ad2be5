"""Small trained models in both formats, and ways to forge their headers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raybench import artefact
from raybench.artefact import checksum, packed, sparse_safetensors, streams
from raybench.data import Inputs
from raybench.techniques.prune import Prune, prune
from raybench.techniques.quantize import Quantize
from trainers.pruning import base

WEIGHT = "blocks.0.mlp.fc1.weight"  # which is sparse
BITS, VALUES = WEIGHT + sparse_safetensors.BITS, WEIGHT + sparse_safetensors.VALUES
INPUTS = Inputs(
    class_names=tuple(f"digit {number}" for number in range(10)),
    mean=(77.7, 77.7, 77.7),
    std=(96.1, 96.1, 96.1),
    image_size=8,
)


def stored_models(folder: Path) -> dict[str, Path]:
    """A pruned ViT of one block as safetensors, and the same in 4 bits, packed."""
    torch.manual_seed(0)
    stored = {}
    experiment = replace(base, model="vit32x1", image_size=8, prune=Prune())
    for name, quantize in (("safetensors", None), ("packed", Quantize(bits=4, begin=1.0))):
        of = replace(experiment, quantize=quantize)
        model = artefact.skeleton(of, 10)
        prune(model, 0.8, "global")
        if quantize:
            quantize.finish(model, {})
        stored[name] = folder / f"model.{name}"
        artefact.save(model, of, 10, stored[name], seen="AAAA digits", inputs=INPUTS)
        assert artefact.is_packed(stored[name]) == (name == "packed")
    return stored


def sealed(content: bytes) -> bytes:
    """A safetensors file with its checksum made right."""
    place = sparse_safetensors.CHECKSUM
    return checksum.sealed(
        content[:place] + checksum.UNSET + content[place + checksum.DIGITS :], place
    )


def with_header(content: bytes, change: Callable[[dict[str, Any]], None], deep: str = "") -> bytes:
    """The file, of either format, with its header changed and a right checksum.

    `deep` takes the place of the text "DEEP".
    """

    def changed(text: str) -> str:
        header = json.loads(text)
        change(header)
        return json.dumps(header).replace('"DEEP"', deep)

    if content.startswith(packed.MAGIC):
        head = packed.START + packed.FINGERPRINT + packed.CRC
        reader = streams.Reader(memoryview(content)[head:])
        text = streams.decompress(reader.chunk(), at_most=1 << 24).decode()
        header = streams.chunk(streams.compress(changed(text).encode()))
        return packed.seal(content[packed.START : head] + header + bytes(reader.rest()))
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    start, text = header["__metadata__"]["raybench"].split(" {", 1)
    header["__metadata__"]["raybench"] = f"{start} {changed('{' + text)}"
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    return sealed(struct.pack("<Q", len(written)) + written + content[8 + size :])
