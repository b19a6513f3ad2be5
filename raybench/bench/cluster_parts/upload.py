"""The upload of raybench's own working directory, as `raybench.submit` packs it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from raybench.cluster.jobs.package import MB, pack

ROOT = Path(__file__).parents[3]
LIMIT_MB = 100.0

claims = {"upload_mb": "at most 2"}


def measure() -> dict[str, float]:
    """`upload_mb`: megabytes of the zip file."""
    with tempfile.TemporaryDirectory() as scratch:
        package = pack(ROOT, Path(scratch) / "job.zip", limit_mb=LIMIT_MB)
    return {"upload_mb": package.bytes / MB, "upload_files": len(package.names)}
