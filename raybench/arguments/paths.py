"""Checks of paths from the command line before anything starts, with advice in one line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TypeVar

from raybench.arguments.nearest import nearest

JOB_HOME = "~/raybench"  # on the head
IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the command of a submitted job
PathOrAddress = TypeVar("PathOrAddress", str, Path)


def cache_folder() -> Path:
    """The folder for data that this machine can create or download again."""
    chosen = os.environ.get("RAYBENCH_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "raybench"


def require_file(path: Path | str, kind: str = "file") -> None:
    """Raises ValueError if there is no such file or it is not readable."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file")
    if not path.exists():
        raise ValueError(f"there is no {kind} {path}{_beside(path)}")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} cannot be read: you lack the permission")


def shipped(path: Path) -> Path:
    """The path; for a missing path below `search_spaces` the installed package's file."""
    installed = Path(__file__).parents[2] / path
    if path.parts[:1] != ("search_spaces",) or path.exists():
        return path
    return installed if installed.exists() or not path.parent.exists() else path


def require_new_file(path: Path | None) -> None:
    """Raises ValueError if no file can be written there. Missing folders count as writable."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it, such as {path / 'NAME'}")
    require_folder(path.parent)


def require_folder(path: Path) -> None:
    """Raises ValueError if the path is not a folder and none can be created there."""
    lowest = path.absolute()
    while not lowest.exists() and lowest != lowest.parent:
        lowest = lowest.parent
    if not lowest.is_dir():
        typed = path if lowest == path.absolute() else Path(os.path.relpath(lowest))
        raise ValueError(f"{typed} is a file: name a folder")
    if not os.access(lowest, os.W_OK):
        raise ValueError(f"{path} cannot be written: name a folder that you may write to")


def require_name(flag: str, name: str | None) -> None:
    """Raises ValueError if the name would lead out of the results folder."""
    if name is not None and (not name or name != Path(name).name or name in (".", "..")):
        raise ValueError(f"{flag} is {name!r}: a name without slashes; --results takes the folder")


def on_the_head(path: str) -> str:
    """A job's relative path, below the head's home instead of the job's temporary folder."""
    relative = "://" not in path and not path.startswith(("/", "~"))
    return f"{JOB_HOME}/{path}" if relative else path


def settled(path: PathOrAddress) -> PathOrAddress:
    """A path of a command line. In a job, a relative one is below ~/raybench.

    A submitted job runs in a copy of the working directory, which gets another name after every
    edit, so results there would be lost.
    """
    if IN_A_JOB not in os.environ:
        return path
    lasting = os.path.expanduser(on_the_head(str(path)))
    if lasting != str(path):
        print(f"raybench: {path} of this job is {lasting}, which is kept after it", file=sys.stderr)
    return type(path)(lasting)


def _beside(path: Path) -> str:
    """Advice to use a file with a similar name, if there is one in the same folder."""
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    names = [str(path.parent / one.name) for one in path.parent.iterdir()]
    advice = nearest(str(path), names)
    return f"; {advice}" if advice.startswith("did") else ""
