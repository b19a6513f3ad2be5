"""An address of results: a local folder, or a URI such as s3://bucket/runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from raybench.arguments.nearest import nearest

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")
"""Schemes that pyarrow opens. fsspec opens others if its package for them is installed."""
BUCKETS = frozenset({"s3", "gs", "gcs", "abfs", "abfss"})
SLIPPED = re.compile(rf"(?P<scheme>{'|'.join(SCHEMES)}):/?(?P<rest>[^/].*)?", re.IGNORECASE)


def is_remote(text: str) -> bool:
    """Whether it is a URI. With one slash after the colon it is not, and `require` refuses it."""
    return "://" in text


def scheme_of(address: str) -> str:
    return address.partition("://")[0].lower()


def under(address: str, *names: str) -> str:
    """An address below `address`; a query such as ?region=eu-west-1 is kept."""
    if not is_remote(address):
        return str(Path(address, *names))
    base, mark, query = address.partition("?")
    return "/".join([base.rstrip("/"), *names]) + mark + query


def above_of(address: str) -> str:
    """The address without its last name."""
    base, mark, query = address.partition("?")
    return base.rstrip("/").rpartition("/")[0] + mark + query


def name_of(address: str) -> str:
    """The last name in an address: pruning in results/pruning and in s3://bucket/pruning."""
    return Path(address.partition("?")[0]).name


def require(text: str, *, others: Sequence[str] | None = ()) -> None:
    """Raises ValueError if it is neither a path nor an address that can be opened.

    Args:
        others: further schemes that fsspec can open; None skips the check of the scheme.
    """
    if not is_remote(text):
        slipped = SLIPPED.fullmatch(text)
        if slipped:
            rest = slipped["rest"] or "bucket/runs"
            raise ValueError(
                f"{text} is not an address: write {slipped['scheme'].lower()}://{rest}, with two "
                "slashes"
            )
        return
    scheme = scheme_of(text)
    if others is not None and scheme not in (*SCHEMES, *others):
        advice = nearest(scheme, [*SCHEMES])
        advice = f"; {advice}" if advice.startswith("did") else ""
        raise ValueError(
            f"{text}: no file system is known for {scheme}://{advice}. {', '.join(SCHEMES[:2])}, "
            f"{', '.join(SCHEMES[3:-1])} and {SCHEMES[-1]} work, others need their fsspec package"
        )
    parts = urlsplit(text)
    if parts.password or (scheme in BUCKETS - {"abfs", "abfss"} and parts.username):
        raise ValueError(
            f"{scheme}://…@{parts.hostname}: an address with a password in it would be printed and "
            "stored; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, instead"
        )
    if scheme in BUCKETS and not parts.netloc:
        raise ValueError(f"{text} names no bucket: write e.g. {scheme}://bucket/runs")
