"""Which sweep a folder holds: its space and the settings that make its trials comparable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raybench.search.overrides import Overrides
from raybench.search.space import Space


def of(space: Space, overrides: Overrides) -> dict[str, Any]:
    """The settings that must not change when a sweep resumes."""
    return {
        "space": f"{space.path.name} {space.fingerprint}",
        "objectives": space.objectives,
        # None if there are none, as in sweeps that are older than constraints.
        "constraints": space.constraints or None,
        **{f"--{name}": value for name, value in asdict(overrides).items()},
    }


def require(folder: Path, same: Mapping[str, Any], about: Mapping[str, Any] | None) -> None:
    """Raises ValueError for a folder of another sweep, whose trials would not be comparable.

    Args:
        about: the description in the folder's files; None for a new folder.
    """
    if about is None:
        if (folder / "trials").exists() and any((folder / "trials").iterdir()):
            raise ValueError(f"{folder} holds tables of unknown origin; use another --name")
        return
    before = about.get("identity")
    if before is None:
        raise ValueError(f"{folder} holds single runs, not a sweep; use another --name")
    changed = [name for name in same if before.get(name) != same[name]]
    if changed:
        changes = "; ".join(f"{name} was {before.get(name)}, is {same[name]}" for name in changed)
        raise ValueError(
            f"{folder} holds another sweep ({changes}). Use another --name, or move the folder away"
        )
