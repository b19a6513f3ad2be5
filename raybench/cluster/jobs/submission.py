"""Finds the job of a run on a cluster, or starts it.

A run is a sweep, a study, or one training run. It may take several jobs, one after the other,
because the same command resumes it; at most one of them is running.

    metadata of a job    raybench.run         the run that it belongs to
                         raybench.arguments   the command's arguments
                         raybench.paths       the paths of its results, for `fetch`
"""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from ray.dashboard.modules.job.pydantic_models import JobDetails

from raybench.cluster import SETTINGS
from raybench.cluster.guardian import MARK
from raybench.cluster.jobs.client import Client

RUN, ARGUMENTS, PATHS = "raybench.run", "raybench.arguments", "raybench.paths"
STARTS_S = 120.0  # deadline for the head's job agent to start
STOP_S = 40.0  # deadline for a stopped job to end
TO_SAVE_S = 20  # time for a stopped sweep to save before it is killed; Ray's default is 3
AGAIN_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """A command to run on the cluster."""

    command: str
    """tune, compare or train."""
    arguments: tuple[str, ...]
    name: str
    """Unique name of the run on the cluster; part of the ids of its jobs."""
    paths: tuple[str, ...]
    """Paths of its results as typed; relative ones are below ~/raybench on the head."""

    @property
    def entrypoint(self) -> str:
        return shlex.join(["python", "-m", f"raybench.{self.command}", *self.arguments])


def jobs_of(client: Client, run: Run) -> list[JobDetails]:
    """The jobs of a run, latest last."""
    jobs = [job for job in client.list_jobs() if (job.metadata or {}).get(RUN) == run.name]
    return sorted(jobs, key=lambda job: job.start_time or 0)


def running(jobs: list[JobDetails]) -> JobDetails | None:
    return next((job for job in jobs if not job.status.is_terminal()), None)


def handed_on(commit: str) -> dict[str, str]:
    """Environment variables of the job: raybench's settings on this machine, and the commit."""
    own = {n: v for n, v in os.environ.items() if n.startswith("RAYBENCH_") and n != MARK}
    own |= {"RAYBENCH_COMMIT": own.get("RAYBENCH_COMMIT") or commit}
    return {name: value for name, value in own.items() if value}


def start(client: Client, run: Run, package: Path, environment: dict[str, str]) -> str:
    """Starts a job; returns its id.

    Raises:
        ValueError: the cluster did not start it.
    """
    count = len(jobs_of(client, run))
    deadline = time.monotonic() + STARTS_S
    while True:
        try:
            return client.submit_job(
                entrypoint=run.entrypoint,
                submission_id=f"{run.name}-{count + 1}",
                runtime_env={
                    "working_dir": str(package),
                    "env_vars": {
                        **SETTINGS,
                        "RAY_JOB_STOP_WAIT_TIME_S": str(TO_SAVE_S),
                        **environment,
                    },
                },
                metadata={
                    RUN: run.name,
                    ARGUMENTS: json.dumps(run.arguments),
                    PATHS: json.dumps(run.paths),
                },
            )
        except RuntimeError as error:
            if "already" in str(error):  # the id is in use, by a deleted job or a concurrent one
                count += 1
            elif "No available agent" not in str(error):
                raise ValueError(f"the cluster refuses the job: {_in_short(error)}") from error
            if time.monotonic() > deadline:
                raise ValueError(
                    f"the head has not started the job in {STARTS_S:g} s ({_in_short(error)}); "
                    "see dashboard_agent.log in its /tmp/ray/session_latest/logs"
                ) from error
        time.sleep(AGAIN_S)


def stop(client: Client, job: str) -> bool:
    """Stops a job and waits for its end; False if it has not ended in time."""
    client.stop_job(job)
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        if client.get_job_status(job).is_terminal():
            return True
        time.sleep(AGAIN_S / 4)
    return False


def _in_short(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
