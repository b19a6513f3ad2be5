"""The errors of an object store in one line, with advice."""

from __future__ import annotations

import os
import re
from pathlib import Path

from raybench.results.remote import address as addresses
from raybench.results.remote import file_systems

CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
DETAIL = re.compile(r"Details: (.*)")


class StoreError(OSError):
    """A store refuses access or does not answer; the text is one line."""


class NoAnswer(StoreError):
    """The store does not answer now, but may do so later."""


def explained(error: BaseException, address: str) -> StoreError:
    """The error with advice; its class tells whether a retry makes sense."""
    text = " ".join(str(error).split())
    bucket = address.partition("://")[2].partition("/")[0].partition("?")[0]
    if "NO_SUCH_BUCKET" in text or "HTTP status 404" in text:
        return missing_bucket(address)
    if re.search(r"INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT|EXPIRED|INVALID_CLIENT_TOKEN", text):
        return StoreError(
            f"{address}: the credentials are not accepted ({_short(text)}); renew "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_PROFILE"
        )
    if re.search(r"OAuth2 access token|AuthenticationException|Failed to get token", text):
        how = "GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`"
        if addresses.scheme_of(address).startswith("abfs"):
            how = "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or run `az login`"
        return StoreError(f"{address}: no credentials were found; set {how}")
    if "libjvm" in text or "libhdfs" in text:
        return StoreError(
            f"{address}: hdfs:// needs Java and Hadoop's client here; set JAVA_HOME and HADOOP_HOME"
        )
    if re.search(r"ACCESS_DENIED|HTTP status 40[13]|Forbidden|Permission denied", text):
        if addresses.scheme_of(address) == "s3" and not has_credentials():
            return StoreError(
                f"{address}: no credentials were found, and the bucket requires them; set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        return StoreError(
            f"{address}: access is refused; allow reading, writing, listing and deleting objects "
            f"of {bucket or address} to these credentials"
        )
    if re.search(r"NETWORK_CONNECTION|SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|curl", text):
        at = file_systems.endpoint(address) if addresses.scheme_of(address) == "s3" else ""
        hint = "is AWS_ENDPOINT_URL right?" if at else "is the network up?"
        return NoAnswer(
            f"{address}: no answer{f' from {at}' if at else ''} ({_short(text)}); {hint}"
        )
    return StoreError(f"{address}: {_short(text)}")


def missing_bucket(address: str) -> StoreError:
    bucket = address.partition("://")[2].partition("/")[0].partition("?")[0]
    return StoreError(f"{address}: there is no bucket {bucket}; create it, or correct the address")


def has_credentials() -> bool:
    """Whether there seem to be AWS credentials, apart from a virtual machine's role."""
    folder = Path.home() / ".aws"
    named = os.environ.get("AWS_SHARED_CREDENTIALS_FILE")
    files = [Path(named)] if named else [folder / "credentials", folder / "config"]
    return any(os.environ.get(name) for name in CREDENTIALS) or any(f.exists() for f in files)


def _short(text: str) -> str:
    """The informative part of a message."""
    detail = DETAIL.search(text)
    return (detail[1] if detail else text.partition(" (Request ID")[0])[:200].rstrip(". ")
