"""The upload of a job: the files of the working directory as one zip file.

Left out: files that git ignores, version control, environments, caches, and results. They are
recognized by their content (`pyvenv.cfg`, `CACHEDIR.TAG`, a sweep's log), not only by their names.
"""

from __future__ import annotations

import fnmatch
import os
import subprocess
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raybench.results import log

NEVER = {".git", ".hg", ".svn", "__pycache__", "node_modules", ".ipynb_checkpoints", ".DS_Store"}
SIGNS = ("pyvenv.cfg", "conda-meta", "CACHEDIR.TAG")
"""A folder with one of these files is an environment or a cache."""
GIT_S = 30.0
LARGEST = 4  # number of folders named in the error message
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same files give the same zip, which is uploaded once
MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Package:
    """A packed working directory."""

    path: Path
    names: frozenset[str]
    """Paths of the files, relative to the working directory."""
    bytes: int
    """Size of the zip file."""

    def __str__(self) -> str:
        return f"{len(self.names)} files, {self.bytes / MB:.2f} MB"


def pack(folder: Path, target: Path, *, exclude: Sequence[str] = (), limit_mb: float) -> Package:
    """Packs the working directory.

    Args:
        target: the zip file to write.
        exclude: further paths or patterns of paths to leave out, such as `data` or `*.ckpt`.
        limit_mb: largest total size of the files before they are packed.

    Raises:
        ValueError: the files are larger; the message names the largest folders.
        OSError: a file cannot be read.
    """
    sizes = {name: (folder / name).stat().st_size for name in files_of(folder, exclude)}
    if sum(sizes.values()) > limit_mb * MB:
        raise ValueError(_too_large(sizes, limit_mb))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(sizes):
            file = folder / name
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = (file.stat().st_mode & 0xFFFF) << 16
            archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return Package(path=target, names=frozenset(sizes), bytes=target.stat().st_size)


def files_of(folder: Path, exclude: Sequence[str] = ()) -> list[str]:
    """The files that a job needs, as paths relative to the folder.

    Links to folders are followed, each folder once.
    """
    ignored = _ignored_by_git(folder)
    patterns = [pattern.rstrip("/") for pattern in exclude]

    def left_out(path: Path) -> bool:
        name = path.relative_to(folder).as_posix()
        return (
            path.name in NEVER
            or path.suffix in (".pyc", ".egg-info")
            or name in ignored
            or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
        )

    return sorted(
        file.relative_to(folder).as_posix() for file in _walk(folder, left_out, {folder.resolve()})
    )


def _walk(folder: Path, left_out: Callable[[Path], bool], entered: set[Path]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if left_out(path):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and not _is_generated(path) and path.resolve() not in entered:
            yield from _walk(path, left_out, entered | {path.resolve()})


def _is_generated(folder: Path) -> bool:
    """Whether the folder is an environment, a cache, or the results of a sweep."""
    return any((folder / sign).exists() for sign in SIGNS) or log.path_in(folder).exists()


def _ignored_by_git(folder: Path) -> set[str]:
    """Files ignored by .gitignore files, also outside a repository; none if git is missing."""
    listed = ["ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory"]
    with tempfile.TemporaryDirectory() as scratch:
        own = ["--git-dir", f"{scratch}/.git", "--work-tree", "."]
        try:
            text = _git(folder, listed)
            if text is None:
                _git(folder, ["init", "--quiet", "--bare", f"{scratch}/.git"])
                text = _git(folder, [*own, *listed])
        except (OSError, subprocess.TimeoutExpired):
            return set()
    return {name.rstrip("/") for name in (text or "").split("\0") if name}


def _git(folder: Path, arguments: list[str]) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, timeout=GIT_S)
    return os.fsdecode(done.stdout) if done.returncode == 0 else None


def commit_of(folder: Path) -> str:
    """The commit's hash, with the suffix `-dirty` if tracked files differ; "" without git."""
    described = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return (_git(folder, described) or "").strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _too_large(sizes: dict[str, int], limit_mb: float) -> str:
    folders: Counter[str] = Counter()
    for name, size in sizes.items():
        folders[name.split("/")[0]] += size
    largest = folders.most_common(LARGEST)
    listed = ", ".join(f"{name} {size / MB:,.0f} MB" for name, size in largest)
    return (
        f"the working directory holds {sum(sizes.values()) / MB:,.0f} MB in {len(sizes):,} files, "
        f"more than --upload-limit {limit_mb:g}: {listed}. Leave out what the job does not need "
        f"with --exclude {largest[0][0]} or in .gitignore; images belong on the nodes "
        "(RAYBENCH_DATA)"
    )
