"""Addresses: what is one, what is refused in one line, and how stores' errors are told."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from bucket import Bucket, without_environment
from bucket import bucket as bucket
from bucket import s3 as s3

from raybench.results.remote import address, place
from raybench.results.remote.object_store import ObjectStore

QUICK_S = 30.0


class TestText:
    def test_names_below_an_address(self):
        assert address.under("results", "a") == "results/a"
        assert address.under("s3://b/runs/", "a", "trials") == "s3://b/runs/a/trials"
        assert address.under("s3://b/runs?region=x", "a") == "s3://b/runs/a?region=x"
        assert address.above_of("s3://b/runs/a?region=x") == "s3://b/runs?region=x"
        assert address.name_of("s3://b/runs/a?region=x") == "a"

    @pytest.mark.parametrize("path", ["results", "/a/b", "./s3/x", "a:b", "C:/x"])
    def test_a_path_is_none(self, path):
        assert not address.is_remote(path)
        address.require(path)

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("s3:/bucket/x", "write s3://bucket/x, with two slashes"),
            ("s3:bucket", "write s3://bucket, with two slashes"),
            ("S3:/bucket", "write s3://bucket"),
            ("gs:", "write gs://bucket/runs"),
            ("s4://bucket", r"no file system is known for s4://.*s3, gs, abfs.*work"),
            ("s3://", "names no bucket"),
            ("s3:///runs", "names no bucket"),
            ("s3://key:secret@bucket/x", "password"),
            ("s3://bucket/x?regoin=eu", "no option regoin"),
            ("sftp://host/x", "fsspec cannot open it|no answer"),
        ],
    )
    def test_what_is_mistyped(self, text, told):
        with pytest.raises((ValueError, OSError), match=told) as caught:
            place.require(text)
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)


@contextlib.contextmanager
def refusing(status: int, code: str) -> Iterator[str]:
    """A server that answers every request with this error of S3; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            body = f"<Error><Code>{code}</Code><Message>No</Message></Error>".encode()
            body = b"" if self.command == "HEAD" else body
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = refuse

        def log_message(self, *_: object) -> None: ...

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        running.server_close()


def _written(there: str) -> None:
    place.require(there)
    ObjectStore(there).put("a", b"1")


def told_at(monkeypatch: pytest.MonkeyPatch, url: str) -> str:
    """What opening a sweep there says, in one line and within seconds."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    began = time.monotonic()
    with pytest.raises(OSError) as caught:  # noqa: PT011, the callers compare its text
        _written("s3://bucket/runs")
    assert time.monotonic() - began < QUICK_S
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestStores:
    def test_a_bucket_that_does_not_exist(self, bucket: Bucket):
        with pytest.raises(OSError, match="there is no bucket nobody; create it"):
            place.require("s3://nobody/runs")

    def test_access_is_refused(self, monkeypatch):
        without_environment(monkeypatch)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        with refusing(403, "AccessDenied") as url:
            assert "access is refused; allow reading" in told_at(monkeypatch, url)

    def test_no_credentials(self, monkeypatch):
        without_environment(monkeypatch)
        with refusing(403, "AccessDenied") as url:
            assert "no credentials were found" in told_at(monkeypatch, url)

    def test_nothing_listens(self, monkeypatch):
        without_environment(monkeypatch)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        text = told_at(monkeypatch, f"http://127.0.0.1:{port}")
        assert f"no answer from http://127.0.0.1:{port}" in text
        assert "AWS_ENDPOINT_URL" in text

    def test_a_server_that_never_answers(self, monkeypatch):
        without_environment(monkeypatch)
        monkeypatch.setattr("raybench.results.remote.file_systems.ANSWER_S", 1.0)
        with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            assert "no answer" in told_at(monkeypatch, url)


class TestObjects:
    def test_what_is_put_is_there(self, bucket: Bucket, tmp_path):
        store = ObjectStore("s3://bucket/runs/s")
        store.put("a/b", b"one")
        large = tmp_path / "large"
        large.write_bytes(b"0123456789" * 700_000)
        store.put_file("large", large)
        assert store.get("a/b") == b"one"
        assert store.fetch("large", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == large.read_bytes()
        assert {k: one.size for k, one in store.listing().items()} == {"a/b": 3, "large": 7_000_000}
        assert store.listing("a").keys() == {"a/b"}
        store.delete("a/b")
        store.delete("a/b")
        assert store.get("a/b") is None
        assert store.stored("a/b") is None
        assert not store.fetch("a/b", tmp_path / "none")

    def test_an_object_that_is_replaced_while_it_is_read(self, bucket: Bucket, tmp_path):
        store, ended = ObjectStore("s3://bucket/runs/s"), threading.Event()

        def write() -> None:
            for number in range(10_000):
                if ended.is_set():
                    return
                store.put("a", bytes([number % 7]) * (1000 * (number % 7 + 1)))
                ended.wait(0.2)

        writer = threading.Thread(target=write)
        store.put("a", b"")
        writer.start()
        try:
            for _ in range(60):
                content = store.get("a") or b""
                assert len(set(content)) <= 1
        finally:
            ended.set()
            writer.join(QUICK_S)

    @pytest.mark.parametrize("scheme", ["file", "memory"])
    def test_a_file_system_that_shows_half_written_files(self, scheme, tmp_path):
        store = ObjectStore(f"{scheme}://{tmp_path}/s")
        store.put("trials/a", b"one")
        store.put("trials/a", b"other")
        assert store.get("trials/a") == b"other"
        assert store.listing().keys() == {"trials/a"}
        if scheme == "file":
            assert store.stored("trials/a").when == pytest.approx(time.time(), abs=60)
            assert (tmp_path / "s" / "trials" / "a").read_bytes() == b"other"
