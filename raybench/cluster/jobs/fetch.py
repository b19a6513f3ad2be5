"""Downloads a job's results to this machine, through the job server alone.

submit handout.py ──▶ it links the results into the head's log folder, and prints that it is ready
GET …/logs/file   ──▶ every file that is missing or different here, checked by its SHA-256
stop handout.py   ──▶ it removes the links
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import tempfile
import time
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from raybench.cluster.jobs import handout
from raybench.cluster.jobs.client import Client
from raybench.cluster.jobs.submission import AGAIN_S, STARTS_S

TRIES = 3
SLOWEST = 200_000  # bytes/s; a slower download is aborted
LEAST_S = 60.0
BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """The result of a fetch."""

    folders: tuple[Path, ...]
    files: int
    new: int
    """Files that were missing or different on this machine."""
    bytes: int
    """Bytes of the new files."""


def fetch(client: Client, paths: Sequence[str], into: Path) -> Fetched:
    """Downloads results from the head; files that are the same here are skipped.

    Args:
        paths: folders or files on the head; `~` is its home folder.

    Raises:
        ValueError: there are no results yet, or `into` has another sweep with this name.
        OSError: a file cannot be written, or does not arrive complete.
    """
    into.mkdir(parents=True, exist_ok=True)
    name = f"raybench-fetch-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "handout.zip"
        with zipfile.ZipFile(package, "w") as archive:
            archive.write(handout.__file__, "handout.py")
        request = json.dumps({"id": name, "paths": list(paths)})
        client.submit_job(
            entrypoint=shlex.join(["python", "handout.py", request]),
            submission_id=name,
            runtime_env={"working_dir": str(package)},
        )
    try:
        sha256 = _ready(client, name)
        node = client.get_job_info(name).driver_node_id
        assert node is not None
        text = _content(client, node, f"{name}/manifest.json")
        if hashlib.sha256(text).hexdigest() != sha256:
            raise OSError("the list of files arrived damaged; try again")
        return _all(client, node, name, json.loads(text), into)
    finally:
        client.stop_job(name)


def _ready(client: Client, name: str) -> str:
    """Waits for the job; returns the SHA-256 of its manifest."""
    deadline = time.monotonic() + STARTS_S
    while time.monotonic() < deadline:
        ended = client.get_job_status(name).is_terminal()
        lines = client.get_job_logs(name).splitlines()
        for line in lines:
            if line.startswith(handout.READY):
                return line.split()[-1]
            if line.startswith(handout.MISSING):
                raise ValueError(f"there are no results yet: the head has no {line.split()[-1]}")
        if ended:
            raise OSError(f"the head could not hand out its results: {(lines or ['?'])[-1]}")
        time.sleep(AGAIN_S / 4)
    raise OSError(f"the head did not hand out its results in {STARTS_S:g} s; try again")


def _all(client: Client, node: str, name: str, entries: list[Any], into: Path) -> Fetched:
    new, size = 0, 0
    last: list[tuple[Path, Path]] = []
    with tempfile.TemporaryDirectory(dir=into, prefix=".fetch-") as scratch:
        # A sweep's log tells whether these are the same results. It is checked first and moved into
        # place last, so that no table is older than it.
        for entry in sorted(entries, key=lambda entry: not _is_log(entry["name"])):
            target = _below(into, entry["name"])
            if _is_here(target, entry):
                continue
            part = Path(scratch) / str(entry["number"])
            _download(client, node, f"{name}/{entry['number']}", entry, part)
            new, size = new + 1, size + entry["size"]
            if _is_log(entry["name"]):
                _require_same_sweep(target, part)
                last.append((part, target))
            else:
                _put(part, target)
        for part, target in last:
            _put(part, target)
    tops = dict.fromkeys(into / PurePosixPath(entry["name"]).parts[0] for entry in entries)
    return Fetched(folders=tuple(tops), files=len(entries), new=new, bytes=size)


def _is_log(name: str) -> bool:
    return name.endswith("/.state/log")


def _below(into: Path, name: str) -> Path:
    """The file's path; ValueError for a name that leads out of the folder."""
    parts = PurePosixPath(name).parts
    target = into.joinpath(*parts)
    outside = not target.resolve().is_relative_to(into.resolve())
    if outside or ".." in parts or PurePosixPath(name).is_absolute():
        raise ValueError(f"the head offers a file {name!r}, which lies outside of {into}")
    return target


def _is_here(target: Path, entry: dict[str, Any]) -> bool:
    size = entry["size"]
    return (
        target.is_file()
        and target.stat().st_size == size
        and handout.sha256_of(target, size) == entry["sha256"]
    )


def _require_same_sweep(here: Path, new: Path) -> None:
    """Raises ValueError unless the log here is an earlier state of the new one."""
    if not here.exists():
        return
    size = here.stat().st_size
    if handout.sha256_of(here, size) != handout.sha256_of(new, size):
        folder = here.parent.parent
        raise ValueError(
            f"{folder} holds another sweep, or was continued here: use another --fetch DIR"
        )


def _put(part: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, target)


def _download(client: Client, node: str, file: str, entry: dict[str, Any], part: Path) -> None:
    for _ in range(TRIES):
        deadline_s = LEAST_S + entry["size"] / SLOWEST
        with part.open("wb") as content:
            left = entry["size"]  # the log may have grown since
            if left:
                with client.download(node, file, deadline_s) as answer:
                    for block in answer.iter_content(BLOCK):
                        content.write(block[:left])
                        left -= min(left, len(block))
                        if not left:
                            break
        if not left and handout.sha256_of(part, entry["size"]) == entry["sha256"]:
            return
    raise OSError(f"{entry['name']} did not come whole in {TRIES} tries; try again")


def _content(client: Client, node: str, file: str) -> bytes:
    with client.download(node, file, LEAST_S) as answer:
        return answer.content
