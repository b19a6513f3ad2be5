"""ObjectStore: the objects below one address; reads and writes of an object are atomic."""

from __future__ import annotations

import contextlib
import random
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from raybench.results.remote import file_systems
from raybench.results.remote.explained import StoreError, explained, missing_bucket

Result = TypeVar("Result")
INCOMING = ".state/incoming"
"""Folder for unfinished files, in file systems that would show them before they are complete."""
PIECE = 4 << 20  # bytes per read
TRIES = 10
SMALL = 1 << 20  # bytes: below it, a copy in memory is cheaper than mapping the file


@dataclass(frozen=True)
class Stored:
    """An object as the store lists it."""

    size: int
    when: float
    """Seconds since the epoch, by the store's clock."""


class ObjectStore:
    """The objects below an address; keys are relative, such as `trials/trials.parquet`.

    Raises:
        ValueError: the address is invalid.
        StoreError: its file system cannot be opened.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        with self._explained():
            opened = file_systems.opened(address)
        self._files, self._base, self._whole = opened.files, opened.base, opened.whole

    def require_there(self) -> None:
        """Raises StoreError if the bucket does not exist or does not answer."""
        bucket = self._base.partition("/")[0]
        with self._explained():
            if self._whole and self._files.get_file_info(bucket).type == fs.FileType.NotFound:
                raise missing_bucket(self.address)

    def put(self, key: str, content: bytes) -> None:
        """Writes an object. Raises StoreError."""
        self._put(key, pa.py_buffer(content))

    def put_file(self, key: str, path: Path) -> None:
        """Writes a file's content. Raises StoreError; FileNotFoundError if there is no file.

        A file larger than `SMALL` is memory-mapped, to bound the memory, and written in one
        call: if a later read failed, pyarrow would complete the object with only the first parts.
        """
        if path.stat().st_size <= SMALL:
            self._put(key, pa.py_buffer(path.read_bytes()))
            return
        with pa.memory_map(str(path)) as mapped:
            self._put(key, mapped.read_buffer())

    def get(self, key: str) -> bytes | None:
        """An object's content; None if there is none. Raises StoreError."""
        with self._explained():
            try:
                return self._tried(key, lambda: self._read(key))
            except FileNotFoundError:
                return None

    def fetch(self, key: str, path: Path) -> bool:
        """Writes an object's content to a file; False if there is no object. Raises StoreError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        try:
            with self._explained():
                try:
                    self._tried(key, lambda: self._copy(key, partial))
                except FileNotFoundError:
                    return False
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return True

    def listing(self, below: str = "") -> dict[str, Stored]:
        """The objects whose keys begin with `below` and a slash; by default all.

        Raises:
            StoreError: the bucket does not exist, refuses access, or does not answer.
        """
        root = self._path(below) if below else self._base
        with self._explained():
            selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
            there = self._files.get_file_info(selector)
        return {
            info.path.removeprefix(self._base).lstrip("/"): Stored(
                info.size, (info.mtime_ns or 0) / 1e9
            )
            for info in there
            if info.type == fs.FileType.File and INCOMING not in info.path
        }

    def stored(self, key: str) -> Stored | None:
        """An object's size and time; None if there is none. Raises StoreError."""
        with self._explained():
            info = self._files.get_file_info(self._path(key))
        if info.type != fs.FileType.File:
            return None
        return Stored(info.size, (info.mtime_ns or 0) / 1e9)

    def delete(self, key: str) -> None:
        """Deletes an object, if there is one. Raises StoreError."""
        with self._explained(), contextlib.suppress(FileNotFoundError):
            self._files.delete_file(self._path(key))

    def _read(self, key: str) -> bytes:
        with self._files.open_input_file(self._path(key)) as file:
            return bytes(file.readall())

    def _copy(self, key: str, path: Path) -> None:
        with self._files.open_input_stream(self._path(key)) as stream, path.open("wb") as file:
            shutil.copyfileobj(stream, file, PIECE)

    def _tried(self, key: str, read: Callable[[], Result]) -> Result:
        """Reads again if the object was replaced meanwhile.

        pyarrow asks for the size first. If the new object is larger it then reads only a part, and
        if it is smaller it reads past the end, without an error.
        """
        failed: OSError | None = None
        for _ in range(TRIES):
            before, failed = self._files.get_file_info(self._path(key)), None
            try:
                content = read()
            except FileNotFoundError:
                raise
            except OSError as error:
                failed = error
            after = self._files.get_file_info(self._path(key))
            if (before.size, before.mtime_ns) == (after.size, after.mtime_ns):
                if failed is not None:
                    raise failed
                return content
            time.sleep(random.uniform(0.0, 0.1))
        raise failed or OSError(f"{key} is replaced faster than it can be read")

    def _put(self, key: str, content: pa.Buffer) -> None:
        target = self._path(key)
        path = target if self._whole else f"{self._base}/{INCOMING}/{uuid.uuid4().hex}"
        with self._explained():
            if not self._whole:
                for folder in (path, target):
                    self._files.create_dir(folder.rpartition("/")[0], recursive=True)
            with self._files.open_output_stream(path) as stream:
                stream.write(content)
            if not self._whole:
                self._rename(path, target)

    def _rename(self, path: str, target: str) -> None:
        try:
            self._files.move(path, target)
        except file_systems.ERRORS:
            # HDFS and some others cannot rename onto a file; it is missing for a moment.
            self._files.delete_file(target)
            self._files.move(path, target)

    def _path(self, key: str) -> str:
        return f"{self._base}/{key}"

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Converts pyarrow's errors into one line."""
        try:
            yield
        except StoreError:
            raise
        except file_systems.ERRORS as error:
            if isinstance(error, ValueError) and not isinstance(error, pa.ArrowException):
                raise
            raise explained(error, self.address) from error
