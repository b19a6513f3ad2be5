"""The file system of an address, by pyarrow or by fsspec, with short timeouts.

pyarrow's default timeouts are minutes (15 for Google), but a wrong endpoint should be reported
within seconds; the mirror retries by itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import fsspec
import pyarrow as pa
from pyarrow import fs

from raybench.results.remote import address as addresses

CONNECT_S, ANSWER_S, ATTEMPTS = 3.0, 8.0, 2
GOOGLE_S = 3.0  # time for all retries of one request
ARROW = frozenset(addresses.SCHEMES)
WHOLE = frozenset({"s3", "gs", "gcs"})
"""Stores in which an object becomes visible only when it is complete."""
S3_OPTIONS = frozenset({"region", "scheme", "endpoint_override", "anonymous"})


@dataclass(frozen=True)
class Opened:
    """A file system, and the path of an address in it."""

    files: fs.FileSystem
    base: str
    whole: bool
    """Whether a written file is invisible until it is complete."""


def opened(address: str) -> Opened:
    """The file system of an address. The only network request is for an S3 bucket's region.

    Raises:
        ValueError: the address is invalid, or its scheme needs a package.
        OSError: the file system cannot be opened.
    """
    addresses.require(address, others=fsspec.available_protocols())
    scheme = addresses.scheme_of(address)
    if scheme == "s3":
        return _s3(address)
    if scheme in ARROW:
        files, base = fs.FileSystem.from_uri(_quick(address) if scheme in WHOLE else address)
        return Opened(files, base, scheme in WHOLE)
    try:
        files, base = fsspec.url_to_fs(address)
    except Exception as error:  # each of fsspec's file systems has its own error types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{address}: fsspec cannot open it ({reason[:200]})") from error
    return Opened(fs.PyFileSystem(fs.FSSpecHandler(files)), base, False)


def endpoint(address: str) -> str:
    """The endpoint of an S3 address; "" for Amazon's own."""
    query = dict(parse_qsl(urlsplit(address).query))
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    of_environment = next((os.environ[name] for name in names if os.environ.get(name)), "")
    return query.get("endpoint_override") or of_environment


def _s3(address: str) -> Opened:
    parts = urlsplit(address)
    query = dict(parse_qsl(parts.query))
    if unknown := sorted(query.keys() - S3_OPTIONS):
        raise ValueError(f"{address}: no option {unknown[0]}; {', '.join(sorted(S3_OPTIONS))}")
    bucket = parts.netloc
    options: dict[str, Any] = {}
    if override := endpoint(address):
        scheme, mark, host = override.rpartition("://")
        options |= {"endpoint_override": host, "scheme": scheme if mark else "https"}
    options |= {name: value for name, value in query.items() if name in ("region", "scheme")}
    if query.get("anonymous", "").lower() == "true":
        options["anonymous"] = True
    if not override and "region" not in options:
        options["region"] = fs.resolve_s3_region(bucket)
    files = fs.S3FileSystem(
        connect_timeout=CONNECT_S,
        request_timeout=ANSWER_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,  # one request for a small object instead of three
        background_writes=False,  # otherwise all parts of a large object would be in memory
        **options,
    )
    return Opened(files, f"{bucket}{parts.path}".rstrip("/"), True)


def _quick(address: str) -> str:
    """The address with a short time limit for retries."""
    parts = urlsplit(address)
    query = {"retry_limit_seconds": f"{GOOGLE_S:g}", **dict(parse_qsl(parts.query))}
    return urlunsplit(parts._replace(query=urlencode(query)))


ERRORS = (OSError, pa.ArrowException, NotImplementedError)
"""What the file systems raise."""
