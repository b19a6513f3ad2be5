"""Prints a job's log as it grows, until the job ends, the user detaches, or the head is lost."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
from ray.job_submission import JobStatus

from raybench.cluster.jobs.client import Client

SILENT_S = 60.0  # time without a line after which a new connection is opened
LOST_S = 30.0  # time without an answer of the job server after which the head counts as lost
AGAIN_S = 1.0
INTERRUPTED = 130
# The clients' errors for a broken connection or a dead server.
BROKEN = (TimeoutError, RuntimeError, OSError, aiohttp.ClientError)


class HeadLost(Exception):
    """The job server has not answered for `LOST_S`."""


def follow(client: Client, job: str, say: Callable[[str], None]) -> int:
    """Prints a job's log until the job ends; returns the exit code of its command.

    Args:
        say: prints a line about the job itself.

    Raises:
        HeadLost: the job server is gone.
        KeyboardInterrupt: the user detaches.
    """
    asyncio.run(_print_log(client, job))
    details = client.get_job_info(job)
    if details.status is JobStatus.STOPPED:
        say(f"{job} was stopped; the same command resumes")
        return INTERRUPTED
    if details.driver_exit_code is None:
        say(f"{job} did not run: {_first_line(details.message)}")
        return 1
    return details.driver_exit_code


async def _print_log(client: Client, job: str) -> None:
    printed, answered = 0, time.monotonic()
    while True:
        read = 0  # characters of this connection: each begins at the start of the log
        whole = False
        with contextlib.suppress(*BROKEN):
            async for text in _within(client.tail_job_logs(job), SILENT_S):
                _print(text[max(0, printed - read) :])
                read += len(text)
                printed = max(printed, read)
            whole = True
        try:
            ended = (await asyncio.to_thread(client.get_job_status, job)).is_terminal()
            if ended and not whole:
                _print((await asyncio.to_thread(client.get_job_logs, job))[printed:])
        except BROKEN as error:
            if time.monotonic() - answered > LOST_S:
                raise HeadLost from error
        else:
            answered = time.monotonic()
            if ended:
                return
        await asyncio.sleep(AGAIN_S)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


async def _within(texts: AsyncIterator[str], seconds: float) -> AsyncIterator[str]:
    """The texts; TimeoutError if the next one takes longer."""
    while True:
        try:
            text = await asyncio.wait_for(anext(texts), seconds)
        except StopAsyncIteration:
            return
        yield text


def _first_line(text: str | None) -> str:
    lines = [line for line in (text or "").splitlines() if line.strip()]
    return lines[0] if lines else "unknown reason"
