"""The stored models of a sweep; `--keep` decides which of them stay."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from raybench.results import whole


class KeptModels:
    """The files `models/TRIAL.*` of the front (`best`), all complete trials (`all`) or `none`."""

    def __init__(self, folder: Path, keep: str) -> None:
        self.folder, self.keep = folder / "models", keep
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, trial: str) -> Path:
        """The path where a trial stores its model."""
        return self.folder / f"{trial}.safetensors"

    def describe(self, trial: str, experiment: str) -> None:
        """Writes the experiment as JSON beside the model."""
        if self.keep != "none":
            whole.write(self.folder / f"{trial}.json", experiment + "\n")

    def drop(self, trials: Iterable[str]) -> None:
        """Deletes the models of these trials."""
        for trial in trials:
            for suffix in (".safetensors", ".json"):
                (self.folder / f"{trial}{suffix}").unlink(missing_ok=True)

    def drop_all_but(self, trials: Iterable[str], sweep: str) -> None:
        """Deletes files of other trials, which a kill may have left behind."""
        kept = set(trials)
        for path in self.folder.iterdir():
            if path.stem not in kept and path.stem.startswith(f"{sweep}-"):
                path.unlink()
