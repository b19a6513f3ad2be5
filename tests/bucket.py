"""An S3 server in a thread of the test, with one bucket; and files and faults in it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from raybench.results.remote import object_store
from raybench.results.remote.object_store import ObjectStore

ADDRESS = "s3://bucket/runs"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
QUIET = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def server(port: int = 0) -> Iterator[str]:
    """moto's server; its URL."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        running.stop()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The server of a module's tests, in the environment as well; its URL."""
    patch = pytest.MonkeyPatch()
    with server() as url:
        for name, value in {**CREDENTIALS, **QUIET, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        yield url
    patch.undo()


@pytest.fixture
def bucket(s3: str, memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket, and a machine that has not seen it."""
    bucket = Bucket(s3)
    bucket.files.create_dir("bucket")
    monkeypatch.setenv("RAYBENCH_CACHE", str(memory_path / "cache"))
    yield bucket
    bucket.files.delete_dir("bucket")


class Bucket:
    """The bucket's objects, past all of raybench's own code."""

    def __init__(self, url: str) -> None:
        self.files = fs.S3FileSystem(
            endpoint_override=url,
            access_key="test",
            secret_key="test",
            region="us-east-1",
            allow_bucket_creation=True,
            allow_bucket_deletion=True,
        )

    def keys(self, below: str = "runs") -> list[str]:
        """Keys below a folder of the bucket, relative to it, without folders' own marks."""
        root = f"bucket/{below}"
        there = self.files.get_file_info(
            fs.FileSelector(root, recursive=True, allow_not_found=True)
        )
        of_files = [info.path for info in there if info.type == fs.FileType.File]
        return sorted(path.removeprefix(f"{root}/") for path in of_files)

    def read(self, key: str) -> bytes:
        with self.files.open_input_file(f"bucket/{key}") as file:
            return file.readall()

    def write(self, key: str, content: bytes) -> None:
        with self.files.open_output_stream(f"bucket/{key}") as stream:
            stream.write(content)

    def delete(self, key: str) -> None:
        self.files.delete_file(f"bucket/{key}")


def another_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """What follows sees an empty mirror folder."""
    monkeypatch.setenv("RAYBENCH_CACHE", str(folder))


class Broken(ObjectStore):
    """A store whose writes fail as long as `fails` says so of their key."""

    fails: Callable[[str], bool] = staticmethod(lambda key: False)

    def _put(self, key: str, content: object) -> None:
        if self.fails(key):
            raise object_store.explained(
                OSError("AWS Error NETWORK_CONNECTION: curlCode: 7"), self.address
            )
        super()._put(key, content)  # type: ignore[arg-type]


def without_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without any credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
