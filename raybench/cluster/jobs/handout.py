"""The job that serves results to `fetch`; it runs on the head, from this file alone.

Ray's job server sends only log files. So this job links a snapshot of the results into the node's
log folder, prints that it is ready, and removes the links when it is stopped:

    results/pruning/trials/trials.parquet ──(hard link)──▶ logs/raybench-fetch-…/17
                    .state/log, up to its current size ──▶ logs/raybench-fetch-…/23
                                                           logs/raybench-fetch-…/manifest.json

A hard link keeps the content of a file that is replaced meanwhile, and takes no disk space.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

READY, MISSING = "raybench-fetch ready", "raybench-fetch missing"
LIFE_S = 3600.0  # if it is not stopped
LOG = Path(".state", "log")
BLOCK = 1 << 20


def manifest(paths: list[Path], stage: Path, aside: str) -> list[dict[str, Any]]:
    """Links every file into the folder `stage`, with a number as its name.

    Args:
        aside: name of a folder in `.state`, for links if `stage` is on another file system.

    Returns:
        The name below the results, number, size and SHA-256 of each file. The log comes last, so
        that it has every row of the tables.
    """
    entries: list[dict[str, Any]] = []
    for root in paths:
        for file in _files(root):
            link = stage / str(len(entries))
            _link(file, link, root, aside)
            size = link.stat().st_size
            name = Path(root.name, file.relative_to(root)).as_posix()
            sha256 = sha256_of(link, size)
            entries.append({"name": name, "number": len(entries), "size": size, "sha256": sha256})
    return entries


def _files(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    files = [file for file in root.rglob("*") if file.is_file() and not _is_working(file, root)]
    yield from sorted(files, key=lambda file: (file.relative_to(root) == LOG, file))


def _is_working(file: Path, root: Path) -> bool:
    """Whether only a running sweep needs the file: checkpoints, the lock, unfinished files."""
    parts = file.relative_to(root).parts
    return parts[0] == ".state" and (len(parts) > 2 or "lock" in parts[1] or ".tmp" in parts[1])


def _link(file: Path, link: Path, root: Path, aside: str) -> None:
    try:
        os.link(file, link)
        return
    except OSError:  # the log folder is on another file system
        pass
    beside = (root if root.is_dir() else root.parent) / ".state" / aside
    try:
        beside.mkdir(parents=True, exist_ok=True)
        os.link(file, beside / link.name)
        link.symlink_to((beside / link.name).absolute())
    except OSError:  # the file system has no hard links
        shutil.copyfile(file, link)


def sha256_of(file: Path, size: int) -> str:
    """The SHA-256 of a file's first `size` bytes."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while size > 0 and (block := content.read(min(BLOCK, size))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def main(request: str) -> int:
    """Serves until SIGTERM, at most for `LIFE_S`; returns 1 if there are no results."""
    asked = json.loads(request)
    typed = [Path(path).expanduser() for path in asked["paths"]]
    paths = [path for path in typed if path.exists()]
    if not paths:
        print(f"{MISSING} {typed[0]}", flush=True)
        return 1
    import ray

    ray.init(log_to_driver=False)
    node: Any = ray._private.worker._global_node
    logs = Path(node.get_logs_dir_path())
    ray.shutdown()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    stage = logs / asked["id"]
    stage.mkdir()
    try:
        text = json.dumps(manifest(paths, stage, asked["id"]))
        (stage / "manifest.json").write_text(text)
        print(f"{READY} {hashlib.sha256(text.encode()).hexdigest()}", flush=True)
        time.sleep(LIFE_S)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for path in paths:
            beside = (path if path.is_dir() else path.parent) / ".state"
            shutil.rmtree(beside / asked["id"], ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
