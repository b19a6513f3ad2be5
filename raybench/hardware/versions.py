"""Versions of a trial's software: the packages, and raybench's own sources."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "timm", "ray", "optuna")
DECISIVE = ("python", "ray", "torch", "source_sha256")
"""If these differ between nodes, trials fail with errors that do not mention the versions."""


@cache
def versions() -> dict[str, str]:
    """Name -> version, "" if missing; `source_sha256` is the hash of raybench's sources."""
    return {
        "source_sha256": _source_sha256(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def differences(theirs: Mapping[str, str], ours: Mapping[str, str], names: Sequence[str]) -> str:
    """Differences as text, such as `torch 2.14.0 instead of 2.15.0`; "" if all are the same."""
    parts = []
    for name in names:
        # A node with a GPU has another build of the same version: 2.15.0+cu130.
        has, wants = (side.get(name, "").partition("+")[0] for side in (theirs, ours))
        if has == wants:
            continue
        if name == "source_sha256":
            parts.append(f"other sources of raybench ({has[:8]} instead of {wants[:8]})")
        elif has:
            parts.append(f"{name} {has} instead of {wants}")
        else:
            parts.append(f"no {name}")
    return " and ".join(parts)


def _source_sha256() -> str:
    root = Path(__file__).parent.parent.parent
    digest = hashlib.sha256()
    for file in sorted([*root.glob("raybench/**/*.py"), *root.glob("trainers/**/*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
