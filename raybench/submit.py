"""python -m raybench.submit: a sweep, a study or a training run as a job on a Ray cluster."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import tyro

from raybench import Command
from raybench.arguments.nearest import nearest
from raybench.arguments.parse import parse as command_line
from raybench.arguments.paths import on_the_head, require_folder

if TYPE_CHECKING:
    from raybench.cluster.jobs.client import Client
    from raybench.cluster.jobs.submission import Run

COMMANDS = {
    "tune": "raybench.tune",
    "compare": "raybench.compare",
    "train": "raybench.train",
    "doctor": "raybench.doctor.__main__",
}
INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Runs tune, compare, train or doctor as a job on a Ray cluster, and prints its log.

    Examples:

      python -m raybench.submit --space search_spaces/pruning.py --trials 50
      python -m raybench.submit --address http://HEAD:8265 compare --model resnet20 --budget 2h
      python -m raybench.submit --space search_spaces/pruning.py --fetch results
      python -m raybench.submit --space search_spaces/pruning.py --stop

    Other options are passed to the command, by default `tune`. Ctrl-C detaches; the job continues.
    The same command attaches again, and after the job's end it resumes the run. Results are below
    ~/raybench on the head, unless --results is an absolute path or an address.
    """

    address: str | None = None
    """The cluster's job server. Default: that of RAY_ADDRESS, else this machine's."""
    detach: bool = False
    """Starts the job without following it."""
    attach: bool = False
    """Follows the running job without starting one."""
    fetch: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Downloads the results so far into DIR without starting a job."""
    stop: bool = False
    """Stops the running job. The same command without --stop resumes."""
    exclude: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A path or pattern to leave out of the upload; repeatable. Always left out: files that git
    ignores, environments, caches, results."""
    upload_limit: Annotated[float, tyro.conf.arg(metavar="MB")] = 100.0
    """Largest working directory to upload, in MB."""


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The options of submit, and those of the command, which include all after `--`."""
    own: list[str] = []
    others: list[str] = []
    switches = {f"--{f.name.replace('_', '-')}": f.type == "bool" for f in fields(Submit)}
    switches |= {name.replace("--", "--no-", 1): True for name, is_ in switches.items() if is_}
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        name, _, value = word.partition("=")
        if word == "--":
            return own, [*others, *waiting]
        if word in ("-h", "--help", "--help-all"):
            own.append(word)
        elif name not in switches:
            others.append(word)
        elif switches[name] or value:
            own.append(word)
        else:
            own += [word, *waiting[:1]]
            waiting = waiting[1:]
    return own, others


def parse(arguments: list[str]) -> tuple[Submit, str, list[str]]:
    """The options, the command, and its arguments. Raises SystemExit."""
    own, others = split(arguments)
    options = command_line(Submit, own, "submit")
    command = "tune"
    if others and not others[0].startswith("-"):
        command, *others = others
        if command not in COMMANDS:
            hint = nearest(command, [*COMMANDS])
            print(f"raybench.submit: no command {command!r}; {hint}", file=sys.stderr)
            raise SystemExit(2)
    return options, command, others


def run(arguments: list[str]) -> int:
    """The exit code: that of the command, 2 wrong usage, 130 detached or the head was lost."""
    try:
        options, command, others = parse(arguments)
        asked = [options.detach, options.attach, options.fetch is not None, options.stop]
        if sum(asked) > 1:
            raise ValueError("--detach, --attach, --fetch and --stop exclude each other")
        if not options.upload_limit > 0:
            raise ValueError(f"--upload-limit is {options.upload_limit:g}: MB, above 0")
        if options.fetch is not None:
            require_folder(options.fetch)
        return _run(options, _described(command, others))
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"raybench.submit: {error}", file=sys.stderr)
        return 2


def _described(command: str, arguments: list[str]) -> Run:
    """The run of a command line, whose errors are reported here, before any upload."""
    typed = importlib.import_module(COMMANDS[command]).parse(arguments)
    results = str(typed.results)
    if command == "tune":
        name = typed.name or typed.space.stem
        paths = [_below(results, name)]
    elif command == "doctor":
        name, paths = command, []
    elif command == "compare":
        from raybench.verdict.ready import name_of

        name = name_of(typed)
        paths = [_below(results, name)]
    else:
        name = typed.experiment.family
        kept = [path for path in (typed.store, typed.checkpoint) if path is not None]
        paths = [_below(results, f"{name}-runs"), *map(str, kept)]
    from raybench.cluster import use_token

    use_token()  # before Ray is imported, which reads it once
    from raybench.cluster.jobs.submission import Run

    # A sweep is identified by its folder, a training run by all of its arguments.
    args = arguments if command in ("train", "doctor") else [results]
    mark = "" if args == ["results"] else "-" + hashlib.sha256(repr(args).encode()).hexdigest()[:6]
    return Run(
        command=command,
        arguments=tuple(arguments),
        name=re.sub(r"[^\w.-]", "-", f"raybench-{command}-{name}{mark}"),
        paths=tuple(on_the_head(path) for path in paths),
    )


def _below(results: str, name: str) -> str:
    """The folder of a run; an address keeps its query, such as ?region=eu-west-1."""
    base, mark, query = results.partition("?") if "://" in results else (results, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


def _run(options: Submit, described: Run) -> int:
    from raybench.cluster.jobs import submission
    from raybench.cluster.jobs.client import connect

    client = connect(options.address)
    jobs = submission.jobs_of(client, described)
    running = submission.running(jobs)
    if options.fetch is not None:
        return _fetch(client, described, options.fetch)
    if options.stop:
        if running is None or running.submission_id is None:
            raise ValueError(f"no job of {described.name} is running there")
        if not submission.stop(client, running.submission_id):
            raise OSError(f"{running.submission_id} has not ended yet; try again in a minute")
        _say(f"{running.submission_id} is stopped; the same command without --stop resumes")
        return 0
    if running is not None and running.submission_id is not None:
        typed = json.loads((running.metadata or {})[submission.ARGUMENTS])
        if tuple(typed) != described.arguments:
            raise ValueError(
                f"{running.submission_id} is running with other arguments ({' '.join(typed)}): "
                "attach with these, or stop it first with --stop"
            )
        job = running.submission_id
        _say(f"attached to {job}, which is running")
    elif options.attach:
        raise ValueError(f"no job of {described.name} is running there; omit --attach to start it")
    else:
        job = _start(client, options, described, again=bool(jobs))
    if options.detach:
        _say("the same command without --detach attaches, with --stop it stops the job")
        return 0
    return _follow(client, job)


def _start(client: Client, options: Submit, described: Run, *, again: bool) -> str:
    from raybench.cluster.jobs import package, submission

    here = Path.cwd()
    if client.open_to_all():
        _say(
            "WARNING: this cluster accepts jobs without a token, so anyone who reaches it can run "
            "code on it; docs/cluster.md shows how to start it with a token"
        )
    environment = submission.handed_on(package.commit_of(here))
    with tempfile.TemporaryDirectory() as scratch:
        packed = package.pack(
            here,
            Path(scratch) / "working_dir.zip",
            exclude=options.exclude,
            limit_mb=options.upload_limit,
        )
        if described.command == "tune":
            _require_packed(described, packed.names)
        settings = " ".join(f"{name}={value}" for name, value in environment.items())
        _say(f"uploads {here.name}: {packed}" + (f"; hands on {settings}" if settings else ""))
        job = submission.start(client, described, packed.path, environment)
    where = f"; results: {', '.join(described.paths)}" if described.paths else ""
    _say(f"{job} {'resumes' if again else 'runs'}{where}")
    return job


def _require_packed(described: Run, names: frozenset[str]) -> None:
    """Raises ValueError if the space is not uploaded with the working directory."""
    space = str(importlib.import_module("raybench.tune").parse(list(described.arguments)).space)
    if str(PurePosixPath(os.path.normpath(space))) not in names:
        raise ValueError(
            f"--space {space} is not in the upload: name a file in the working directory, by a "
            "relative path, that neither git nor --exclude leaves out"
        )


def _follow(client: Client, job: str) -> int:
    from raybench.cluster.jobs.follow import HeadLost, follow

    try:
        return follow(client, job, _say)
    except KeyboardInterrupt:
        _say(
            f"detached; {job} continues. The same command attaches again; with --stop it stops the "
            "job, with --fetch DIR it brings the results"
        )
    except HeadLost:
        _say(
            f"the head of the cluster no longer answers. If {job} is still running, the same "
            "command attaches again; if the head was restarted, it resumes what is on its disk"
        )
    return INTERRUPTED


def _fetch(client: Client, described: Run, into: Path) -> int:
    there = [path for path in described.paths if "://" in path]
    if there or not described.paths:
        raise ValueError(
            f"the results are at {there[0]} and need no --fetch: read them with python -m "
            f"raybench.report {there[0]}"
            if there
            else f"{described.command} leaves no results to fetch"
        )
    from raybench.cluster.jobs.fetch import fetch

    fetched = fetch(client, described.paths, into)
    folders = ", ".join(map(str, fetched.folders))
    _say(
        f"{folders}: {fetched.files} files, {fetched.new} of them new, {fetched.bytes / 1e6:.2f} MB"
    )
    return 0


def _say(text: str) -> None:
    print(f"raybench.submit: {text}", file=sys.stderr, flush=True)


sys.modules[__name__].__class__ = Command

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
