"""Kills the writer of a sweep at an S3 address, and resumes it on another machine: rows lost.

The S3 server is moto's, in this process. Each writer is a process with an empty mirror folder, so
that it resumes from the bucket alone. Meanwhile a reader repeatedly calls
`pandas.read_parquet("s3://bucket/runs/killed/trials")` and compares the rows.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Hashable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import pandas as pd
from pyarrow import fs

from raybench.bench.cluster_parts import s3_writer
from raybench.results.core import FINISHED

KILLS = 30
TRIALS = 100_000  # more than any writer reaches
BEGINS_S, ENDS_S = 120.0, 300.0
READ_EVERY_S = 0.2
LEAST_S, MOST_S = 0.2, 5.0  # from a writer's first trial to its kill
RESULTS = "s3://bucket/runs"
ADDRESS = f"{RESULTS}/{s3_writer.NAME}"

claims = {
    "s3_lost": "0: no row that was once readable is gone or changed",
    "s3_duplicates": "0: no trial or epoch is there twice",
    "s3_unreadable": "0: every read succeeds and is whole",
}


class Reader:
    """Reads both tables in a loop, and stores a hash of every row that it has seen."""

    def __init__(self) -> None:
        self.reads = self.lost = self.duplicates = 0
        self.unreadable: list[str] = []
        self._rows: dict[str, dict[Hashable, Hashable]] = {"trials": {}, "epochs": {}}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join(ENDS_S)

    @property
    def trials(self) -> int:
        return len(self._rows["trials"])

    def read(self) -> None:
        """Reads once, and compares with all earlier reads."""
        try:
            epochs, trials = (pd.read_parquet(f"{ADDRESS}/{t}") for t in ("epochs", "trials"))
        except FileNotFoundError as error:
            if self.trials:  # before the first trial has ended there is no table
                self.unreadable.append(repr(error))
            return
        except Exception as error:
            self.unreadable.append(repr(error))
            return
        self.reads += 1
        self.duplicates += int(trials["number"].duplicated().sum())
        self.duplicates += int(trials["key"].duplicated().sum())
        self.duplicates += int(epochs.duplicated(["number", "epoch"]).sum())
        for name, table, keys in (
            ("trials", trials, ["number"]),
            ("epochs", epochs, ["number", "epoch"]),
        ):
            now = _rows(table, keys)
            self.lost += sum(now.get(key) != row for key, row in self._rows[name].items())
            self._rows[name] = now

    def _run(self) -> None:
        while not self._ended.wait(READ_EVERY_S):
            self.read()


def measure(kills: int = KILLS, seed: int = 0) -> dict[str, float]:
    """Kills `kills` writers at random moments.

    `s3_lost` counts rows that a later read lacks or returns differently, and trials that are
    missing from the final log. `s3_resume_s` is the time from a writer's start on an empty machine
    to its first trial, including `stale_s` seconds of waiting for the dead writer's lease.
    """
    draw, resumes, begun = random.Random(seed), list[float](), list[int]()
    # In memory, to avoid waiting for a disk: a kill, unlike a power cut, leaves memory intact.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    scratched = tempfile.TemporaryDirectory(dir=memory)
    with scratched as scratch, _server() as environment, Reader() as reader:
        for number in range(kills + 1):
            last = number == kills
            writer = _Writer(Path(scratch) / str(number), number, last, begun)
            try:
                resumes.append(writer.begins())
                if not last:
                    time.sleep(draw.uniform(LEAST_S, MOST_S))
                    writer.kill()
                elif writer.ends() != 0:
                    raise RuntimeError("the last writer failed")
                begun.append(writer.begun)
                print(
                    f"raybench.bench: writer {number} of {kills + 1} found {writer.begun} trials; "
                    f"{reader.reads} reads, {reader.lost} rows lost",
                    file=sys.stderr,
                    flush=True,
                )
            finally:
                writer.kill()
        reader.read()
        complete = pd.read_parquet(f"{ADDRESS}/trials")
        missing = len(set(range(len(complete))) ^ set(complete["number"]))
        unfinished = int((~complete["status"].isin(FINISHED)).sum())
        wrong = sum(a > b for a, b in pairwise(begun))
        objects = len(environment.files.get_file_info(fs.FileSelector("bucket", recursive=True)))
    for text in reader.unreadable[:3]:
        print(f"raybench.bench: {text}", file=sys.stderr)
    return {
        "s3_lost": reader.lost + missing + unfinished + wrong,
        "s3_duplicates": reader.duplicates,
        "s3_unreadable": len(reader.unreadable),
        "s3_kills": kills,
        "s3_reads": reader.reads,
        "s3_trials": reader.trials,
        "s3_objects": objects,
        "s3_resume_s": median(resumes[1:] or resumes),
        "s3_resume_s_max": max(resumes),
        "s3_stale_s": s3_writer.STALE_S,
    }


class _Writer:
    """A writer with an empty mirror folder, forked from a process that has done all imports.

    The last writer ends by itself after a few trials.
    """

    def __init__(self, folder: Path, seed: int, last: bool, begun: list[int]) -> None:
        folder.mkdir()
        for decoded in folder.parent.glob("0/*-*"):  # the images need not be decoded each time
            if decoded.is_dir() and folder.name != "0":
                (folder / decoded.name).symlink_to(decoded)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([s3_writer.__name__])
        trials = max(begun, default=0) + 40 if last else TRIALS
        self._process = context.Process(
            target=s3_writer.main, args=(RESULTS, trials, seed, str(folder))
        )
        self._process.start()
        self._file, self._began, self.begun = folder / "begun", time.monotonic(), 0

    def begins(self) -> float:
        """Waits for the writer's first trial; returns the seconds it took."""
        while not self._file.exists():
            if not self._process.is_alive() or time.monotonic() > self._began + BEGINS_S:
                raise RuntimeError("a writer did not start")
            time.sleep(0.02)
        self.begun = int(self._file.read_bytes())
        return time.monotonic() - self._began

    def ends(self) -> int | None:
        self._process.join(ENDS_S)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


class _Environment:
    """The environment variables for a server, and a file system on it."""

    def __init__(self, url: str) -> None:
        self.variables = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.files = fs.S3FileSystem(
            endpoint_override=url,
            access_key="test",
            secret_key="test",
            region="us-east-1",
            allow_bucket_creation=True,
        )


@contextlib.contextmanager
def _server() -> Iterator[_Environment]:
    """moto's server with an empty bucket; also sets its environment variables in this process."""
    try:
        import logging

        from moto.server import ThreadedMotoServer
    except ImportError as error:
        raise ValueError("this bench needs moto: pip install 'moto[server]'") from error
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = _Environment(f"http://{host}:{port}")
    before = {name: os.environ.get(name) for name in environment.variables}
    os.environ.update(environment.variables)
    try:
        environment.files.create_dir("bucket")
        yield environment
    finally:
        server.stop()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _rows(table: pd.DataFrame, keys: list[str]) -> dict[Hashable, Hashable]:
    """A hash of each row over all columns, by key; missing values are equal to each other."""
    ordered = table[sorted(table.columns)].astype("string").fillna("")
    hashes = pd.util.hash_pandas_object(ordered, index=False)
    return dict(zip(table[keys].itertuples(index=False, name=None), hashes, strict=True))
