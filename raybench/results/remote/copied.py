"""Which files of a results folder are copied to its address, and which have been already.

Copied are the tables, models/, the files of a study, and the files in .state/ that a resumed sweep
needs in addition to its log. Optuna's journal is derived from the log and is not copied.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from raybench.results import log

TABLES = ".state/tables/"
"""Folder in the store for the tables as they are here, with the running trials. trials/ and
epochs/ there have the objects of `published`."""
RECORD = ".state/copied.json"
FOLDERS = ("trials", "epochs", "models", ".state/checkpoints", ".state/failures")
STATE_FILES = frozenset({".state/study.json"})
PARTIAL = (".partial", ".tmp", ".lock")

Signature = tuple[int, int]
"""A file's size in bytes and its modification time in nanoseconds."""


def is_copied(key: str) -> bool:
    """Whether a file of a results folder is copied to the address."""
    folder, _, name = key.rpartition("/")
    if name.startswith(".") or name.endswith(PARTIAL):
        return False
    return folder in ("", *FOLDERS) or key in STATE_FILES


def key_there(key: str) -> str:
    """A local file's key in the store."""
    return f"{TABLES}{key}" if is_table(key) else key


def key_here(key: str) -> str:
    """The local key of an object that is a copy of a file, else ""."""
    if is_table(key):
        return ""
    here = key.removeprefix(TABLES)
    return here if is_copied(here) else ""


def scan(folder: Path) -> dict[str, Signature]:
    """The folder's files to copy, by key."""
    return dict(_scan(folder))


def _scan(folder: Path) -> Iterator[tuple[str, Signature]]:
    for below in ("", ".state", *FOLDERS):
        with contextlib.suppress(FileNotFoundError), os.scandir(folder / below) as entries:
            for entry in entries:
                key = f"{below}/{entry.name}" if below else entry.name
                with contextlib.suppress(FileNotFoundError):  # deleted just now
                    if is_copied(key) and entry.is_file():
                        yield key, signature(entry)


def signature(path: Path | os.DirEntry[str]) -> Signature:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def is_checkpoint(key: str) -> bool:
    return key.startswith(".state/checkpoints/")


def is_table(key: str) -> bool:
    return key.startswith(("trials/", "epochs/"))


def read(folder: Path) -> dict[str, Signature] | None:
    """The signatures that `write` stored; None if nothing of this folder was ever copied."""
    try:
        content = json.loads((folder / RECORD).read_text())
        return {key: (size, when) for key, (size, when) in content.items()}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError):
        return {}


def write(folder: Path, known: dict[str, Signature]) -> None:
    """Stores the signatures of the copied files, so that a restart does not copy them again."""
    path = folder / RECORD
    path.parent.mkdir(parents=True, exist_ok=True)
    log.replace(path, json.dumps(known).encode())
