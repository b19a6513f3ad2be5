"""The files of a trial, for the process that trains it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raybench.cluster import files
from raybench.cluster.files import Home
from raybench.training.state_file import usable

NAME = "raybench-trial-"


class TrialFiles:
    """The files themselves on the disk of the results, else copies in a temporary folder.

    Args:
        checkpoint, model: paths on the driver's machine.
        folder: folder for the copies; None on the disk of the results.
    """

    def __init__(
        self, checkpoint: str, model: str | None, home: Home | None, folder: Path | None
    ) -> None:
        self._checkpoint, self._model, self._home = checkpoint, model, home
        self._is_away = folder is not None
        self.checkpoint = Path(checkpoint) if folder is None else folder / "state.pt"
        """Path to which the training saves its state."""
        self.model = Path(model) if model else None
        """Path to which it stores its model."""
        if folder is not None and model is not None:
            self.model = folder / Path(model).name

    def resume(self) -> Path | None:
        """Path of the latest undamaged state, copied here if needed; None if there is none."""
        if self._is_away:
            assert self._home is not None
            files.fetch(self._home, self._checkpoint, self.checkpoint, state=True)
        return usable(self.checkpoint)

    def saved(self) -> None:
        """Call it after saving the state."""
        if self._is_away:
            assert self._home is not None
            files.send(self._home, self.checkpoint, self._checkpoint, state=True)
            self.checkpoint.unlink()

    def stored(self) -> None:
        """Call it after storing the model, if the trial stores one."""
        if self._is_away and self._model is not None:
            assert self._home is not None
            assert self.model is not None
            if self.model.exists():  # a family's own training may store no model
                files.send(self._home, self.model, self._model)


@contextmanager
def trial_files(checkpoint: str, model: str | None, home: Home | None) -> Iterator[TrialFiles]:
    """The files of a trial while it runs here.

    Args:
        home: None if all processes are on the driver's machine.
    """
    if home is None or home.is_here:
        yield TrialFiles(checkpoint, model, home, None)
        return
    _drop_stale()
    with tempfile.TemporaryDirectory(prefix=f"{NAME}{os.getpid()}-") as folder:
        yield TrialFiles(checkpoint, model, home, Path(folder))


def _drop_stale() -> None:
    """Deletes the copies of killed processes."""
    for folder in Path(tempfile.gettempdir()).glob(f"{NAME}*"):
        pid = re.match(rf"{NAME}(\d+)-", folder.name)
        if pid and not Path(f"/proc/{pid[1]}").exists() and Path("/proc").exists():
            shutil.rmtree(folder, ignore_errors=True)
