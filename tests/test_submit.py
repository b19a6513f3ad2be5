"""What submit makes of a command line, of a log that breaks off, and of what a head offers."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from raybench import submit
from raybench.arguments.paths import IN_A_JOB, settled
from raybench.cluster.guardian import MARK
from raybench.cluster.jobs import follow, submission
from raybench.cluster.jobs.client import Client, connect
from raybench.cluster.jobs.submission import Run

SPACE = "--space search_spaces/pruning.py"
DEADLINE_S = 30.0


class TestCommandLine:
    @pytest.mark.parametrize(
        ("typed", "own", "others"),
        [
            (SPACE, "", SPACE),
            (f"{SPACE} --stop", "--stop", SPACE),
            (f"--address http://h:1 tune {SPACE}", "--address http://h:1", f"tune {SPACE}"),
            (f"{SPACE} --fetch=x --exclude a", "--fetch=x --exclude a", SPACE),
            ("--detach -- train pruning --stop", "--detach", "train pruning --stop"),
            ("compare --help", "--help", "compare"),
            (f"{SPACE} --no-stop", "--no-stop", SPACE),
        ],
    )  # fmt: skip
    def test_options_of_submit_are_told_from_those_of_the_command(self, typed, own, others):
        assert submit.split(typed.split()) == (own.split(), others.split())

    @pytest.mark.parametrize(
        ("typed", "name", "paths"),
        [
            (f"tune {SPACE}", "raybench-tune-pruning", ["~/raybench/results/pruning"]),
            (f"{SPACE} --name a/b", None, []),
            (f"{SPACE} --name x", "raybench-tune-x", ["~/raybench/results/x"]),
            (
                "compare --model resnet20 --data beans",
                "raybench-compare-resnet20-beans-bytes",
                ["~/raybench/results/resnet20-beans-bytes"],
            ),
        ],
    )
    def test_a_run_is_named_after_its_results(self, typed, name, paths):
        _, command, others = submit.parse(typed.split())
        run = submit._described(command, others)
        if name is not None:
            assert (run.name, list(run.paths)) == (name, paths)
        assert run.entrypoint == f"python -m raybench.{command} {' '.join(others)}"

    def test_another_folder_is_another_run(self):
        runs = {
            submit._described("tune", [*SPACE.split(), "--results", folder]).name
            for folder in ("results", "more", "/shared/results")
        }
        assert len(runs) == 3

    def test_a_training_is_told_by_all_its_arguments(self):
        one = submit._described("train", ["pruning", "--store", "net.packed"])
        other = submit._described("train", ["pruning", "--store", "net.packed", "--seed", "1"])
        assert one.name != other.name
        assert one.paths == ("~/raybench/results/pruning-runs", "~/raybench/net.packed")

    def test_results_at_an_address_are_named_but_not_fetched(self, tmp_path):
        run = submit._described("tune", [*SPACE.split(), "--results", "s3://b/runs/?region=x"])
        address = run.paths[0]
        if address.startswith("s3://"):  # where --results takes addresses
            assert address == "s3://b/runs/pruning?region=x"
        with pytest.raises(ValueError, match="need no --fetch"):
            submit._fetch(None, replace(run, paths=("s3://b/runs/pruning",)), tmp_path)  # type: ignore[arg-type]
        doctor = submit._described("doctor", ["--data", "cifar10"])
        assert (doctor.entrypoint, doctor.paths) == (
            "python -m raybench.doctor --data cifar10",
            (),
        )

    def test_a_space_that_does_not_travel_is_refused(self):
        for space in ("/elsewhere/space.py", "../space.py", "ignored/space.py"):
            run = submit._described("tune", ["--space", space])
            with pytest.raises(ValueError, match="is not in the upload"):
                submit._require_packed(run, frozenset({"space.py"}))
        run = submit._described("tune", ["--space", "./a/../space.py"])
        submit._require_packed(run, frozenset({"space.py"}))


class TestPathsOfAJob:
    @pytest.fixture
    def job(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv(IN_A_JOB, "{}")
        return tmp_path

    def test_relative_ones_are_below_the_home_and_others_stay(self, job):
        assert settled(Path("results")) == job / "raybench/results"
        assert settled("results") == f"{job}/raybench/results"
        for path in ("/shared/results", "s3://bucket/runs"):
            assert settled(path) == path
        assert settled(Path("/shared")) == Path("/shared")

    def test_every_command_uses_them(self, job):
        from raybench import compare, train, tune

        assert Path(tune.parse(SPACE.split()).results) == job / "raybench/results"
        assert Path(compare.parse([]).results) == job / "raybench/results"
        typed = train.parse(["pruning", "--store", "a.packed", "--checkpoint", "/c/a.pt"])
        assert Path(typed.results) == job / "raybench/results"
        assert (typed.store, typed.checkpoint) == (job / "raybench/a.packed", Path("/c/a.pt"))

    def test_outside_of_a_job_nothing_changes(self, monkeypatch):
        monkeypatch.delenv(IN_A_JOB, raising=False)
        assert settled(Path("results")) == Path("results")


def test_settings_are_handed_on_but_not_those_of_a_running_ray(monkeypatch):
    for name in [name for name in os.environ if name.startswith("RAYBENCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAYBENCH_DATA", "/data")
    monkeypatch.setenv(MARK, "0123")
    assert submission.handed_on("abc") == {"RAYBENCH_DATA": "/data", "RAYBENCH_COMMIT": "abc"}
    monkeypatch.setenv("RAYBENCH_COMMIT", "mine")
    assert submission.handed_on("abc")["RAYBENCH_COMMIT"] == "mine"
    assert "RAYBENCH_COMMIT" in submission.handed_on("")


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    with pytest.raises(
        ValueError, match=r"no job server answers at http://127\.0\.0\.1:9"
    ) as error:
        connect("127.0.0.1:9")
    assert "ssh -L" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("wants", "is_open"), [(None, True), ("Bearer secret", False)])
def test_a_cluster_without_a_token_is_noticed(wants, is_open, tmp_path, monkeypatch):
    """Also where ~/.netrc holds a password for the host, which requests would send."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            self.send_response(401 if wants not in (None, given) else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login x password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = Client.__new__(Client)
        there._address, there._verify = f"http://127.0.0.1:{server.server_port}", True
        assert there.open_to_all() is is_open
        server.shutdown()


@dataclass
class Server:
    """A job server whose connections break where the test says; then the job has ended."""

    log: str
    connections: list[list[str] | Exception]
    code: int | None = 0
    status: JobStatus = JobStatus.SUCCEEDED
    message: str = ""
    silent: bool = False
    gone: bool = False
    opened: int = field(default=0)

    async def tail_job_logs(self, job):
        self.opened += 1
        if self.gone:
            raise OSError("refused")
        if not self.connections:
            yield self.log
            return
        texts = self.connections.pop(0)
        if isinstance(texts, Exception):
            raise texts
        for text in texts:
            yield text
        if self.silent:
            await asyncio.sleep(DEADLINE_S)
        raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_status(self, job):
        if self.gone:
            raise OSError("refused")
        return JobStatus.RUNNING if self.connections else self.status

    def get_job_logs(self, job):
        return self.log

    def get_job_info(self, job):
        return SimpleNamespace(status=self.status, driver_exit_code=self.code, message=self.message)


class TestFollow:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch):
        monkeypatch.setattr(follow, "AGAIN_S", 0.001)
        monkeypatch.setattr(follow, "LOST_S", 0.05)
        monkeypatch.setattr(follow, "SILENT_S", 0.1)

    def followed(self, server: Server) -> tuple[int, list[str]]:
        said: list[str] = []
        return follow.follow(server, "job-1", said.append), said

    @pytest.mark.parametrize("silent", [False, True])
    def test_a_log_whose_connection_breaks_is_printed_once(self, silent, capsys):
        log = "".join(f"line {i}\n" for i in range(6))
        cuts = [[log[:9], log[9:16]], OSError("reset"), [log[:20]], [log[:3], log[3:30]]]
        server = Server(log, cuts, silent=silent)
        assert self.followed(server) == (0, [])
        assert capsys.readouterr().out == log

    def test_the_end_of_a_log_is_printed_after_a_break(self, capsys):
        """The connection broke, and the job has ended since: there is no next connection."""
        assert self.followed(Server("one\ntwo\n", [["one\n"]])) == (0, [])
        assert capsys.readouterr().out == "one\ntwo\n"

    def test_the_code_is_that_of_the_command(self, capsys):
        assert self.followed(Server("", [], code=2, status=JobStatus.FAILED))[0] == 2
        assert self.followed(Server("", [], code=-15, status=JobStatus.STOPPED))[0] == 130

    def test_a_job_that_never_ran_says_why(self, capsys):
        server = Server("", [], None, JobStatus.FAILED, "\nRuntime env setup failed\ntraceback")
        code, said = self.followed(server)
        assert (code, said) == (1, ["job-1 did not run: Runtime env setup failed"])

    def test_a_lost_head_is_noticed(self, capsys):
        with pytest.raises(follow.HeadLost):
            self.followed(Server("", [["a"]], gone=True))


def test_a_run_with_other_arguments_is_not_attached_to(monkeypatch, capsys):
    run = submit._described("tune", [*SPACE.split(), "--trials", "9"])
    job = SimpleNamespace(
        submission_id="raybench-tune-pruning-1",
        status=JobStatus.RUNNING,
        start_time=1,
        metadata={
            submission.RUN: run.name,
            submission.ARGUMENTS: json.dumps([*SPACE.split(), "--trials", "5"]),
        },
    )
    monkeypatch.setattr("raybench.cluster.jobs.client.connect", lambda _: None)
    monkeypatch.setattr(submission, "jobs_of", lambda client, run: [job])
    with pytest.raises(ValueError, match="is running with other arguments"):
        submit._run(submit.Submit(), run)


def test_a_run_is_frozen():
    assert Run(command="tune", arguments=("--space", "a b.py"), name="n", paths=()).entrypoint == (
        "python -m raybench.tune --space 'a b.py'"
    )
