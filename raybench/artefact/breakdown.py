"""The bytes of a packed file, tensor by tensor, and the bytes that other formats would take."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import zstandard

from raybench.artefact import about, codecs, entropy, grid, load
from raybench.artefact.grid import Tensors
from raybench.artefact.streams import BEST

REST = "(header, index, ends of streams)"
LARGEST_ZSTD = 64 << 20  # bytes; zstd at its best level takes a minute for this many


def breakdown(path: Path | str, model: str = "") -> pd.DataFrame:
    """One row per tensor, in the file's order, and one for the rest; `bytes` sum to the file size.

    `bits` is the width of a quantized weight, else 0; `sparsity` is the share of zeros.
    `entropy_bytes` is the zeroth-order entropy: for a weight on a grid that of the codes, for
    others that of the zero mask plus that of the non-zero values' bytes, separately for each byte
    position. `bytes` of the range coder's symbols are the cost under its model.

    Raises:
        ValueError: the file holds no trained model, or a damaged one.
    """
    tensors = load(path, model).state_dict()
    chosen = {name: codecs.choose(name, tensors) for name in tensors}
    sizes = {name: size for name, (_, size) in chosen.items()}
    for kind in codecs.kinds([name for name, (codec, _) in chosen.items() if codec == "half"]):
        values = sum(tensors[name].numel() for name in kind)
        whole = codecs.half_bytes([tensors[name] for name in kind])
        sizes |= {name: whole * tensors[name].numel() / values for name in kind}
    # A constant takes a few bytes of the compressed index, which are counted in the rest.
    sizes |= {name: 0.0 for name, (codec, _) in chosen.items() if codec == "constant"}
    rows = [
        {
            "parameter": name,
            "shape": "x".join(map(str, tensor.shape)) or "1",
            "bits": grid.bits(name, tensors),
            "sparsity": float((tensor == 0).double().mean()),
            "codec": chosen[name][0],
            "bytes": round(sizes[name]),
            "entropy_bytes": _entropy_bytes(name, tensors),
        }
        for name, tensor in tensors.items()
    ]
    rest = Path(path).stat().st_size - sum(int(str(row["bytes"])) for row in rows)
    rows.append({"parameter": REST, "shape": "", "bits": 0, "codec": "", "bytes": rest})
    return pd.DataFrame(rows).fillna({"sparsity": 0.0, "entropy_bytes": 0.0})


def totals(path: Path | str, model: str = "") -> dict[str, int | float | None]:
    """Bytes of the file and of other formats, and the ratios between them.

    `fp32` is `torch.save` of the decoded state_dict without the tensors that quantization adds.
    `fp32_zstd` is the same compressed by zstd at level 19 (None above 64 MiB, which would take
    minutes).
    """
    table = breakdown(path, model)
    file = Path(path).stat().st_size
    fp32 = fp32_file(load(path, model).state_dict())
    small = len(fp32) <= LARGEST_ZSTD
    zstd = len(zstandard.ZstdCompressor(BEST).compress(fp32)) if small else None
    bound = float(table["entropy_bytes"].sum())
    return {
        "file_bytes": file,
        "fp32_bytes": len(fp32),
        "fp32_zstd_bytes": zstd,
        "entropy_bytes": round(bound),
        "ratio_fp32": len(fp32) / file,
        "ratio_fp32_zstd": zstd / file if zstd else None,
        "ratio_entropy": file / bound if bound else None,
        "classes": about(path).classes,
    }


def fp32_file(tensors: Tensors) -> bytes:
    """What `torch.save` writes of the fp32 network, without the tensors that quantization adds."""
    without = grid.added(tensors)
    plain = {
        name: tensor.float().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
        if name not in without
    }
    content = io.BytesIO()
    torch.save(plain, content)
    return content.getvalue()


def _entropy_bytes(name: str, tensors: Tensors) -> float:
    codes = grid.codes(name, tensors)
    if codes is not None:
        return entropy.entropy_bytes(codes)
    rows = codecs.byte_rows(tensors[name])
    present = np.asarray(rows.any(axis=1))
    kept = rows[present]
    planes = [entropy.entropy_bytes(kept[:, place]) for place in range(rows.shape[1])]
    return entropy.entropy_bytes(present.astype(np.intp)) + sum(planes)
