"""The GPU's tables: every part runs on a CPU in a few steps; nothing takes the rest with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from raybench.bench import gpu
from raybench.bench.gpu_parts import rows, subjects
from raybench.bench.gpu_parts.child import Child, Failure, Subject
from raybench.bench.gpu_parts.rows import FAILED, SECONDS, Row
from raybench.training import measure

DEADLINE_S = 120.0
ROOT = Path(__file__).parent.parent


@pytest.mark.workers
def test_a_part_runs_and_its_values_come_back(tmp_path):
    comes_back(tmp_path, "a")


@pytest.mark.workers
@pytest.mark.nightly
@pytest.mark.parametrize("part", ["c", "d", "e"])
def test_the_longer_parts_run_too(tmp_path, part):
    comes_back(tmp_path, part)


def comes_back(folder: Path, part: str) -> None:
    figures = gpu.measure(minutes=4.5, part=part, folder=folder)
    back = rows.read(folder)
    assert [row["note"] for row in back if row["figure"] == FAILED] == []
    assert figures["subjects"] == figures["of_subjects"] == len(subjects.subjects(part, small=True))
    assert figures["values"] == len(back) > 0
    assert {row["part"] for row in back} == {part}


def good(value: float) -> Iterator[Row]:
    yield Row("a", "good", "plain", "pid", float(os.getpid()))
    yield Row("a", "good", "plain", "value", value)


def wrong() -> Iterator[Row]:
    yield Row("a", "wrong", "plain", "value", 1.0)
    raise RuntimeError("CUDA error: an illegal memory access\nmore lines")


def dies() -> Iterator[Row]:
    yield Row("a", "dies", "plain", "value", 1.0)
    os._exit(9)


def hangs() -> Iterator[Row]:
    yield Row("a", "hangs", "plain", "value", 1.0)
    time.sleep(600)


def came_from(child: Child, name: str, rows_of: object, deadline_s: float = DEADLINE_S) -> list:
    subject = Subject(name, partial(rows_of), 1.0)  # type: ignore[arg-type]
    return list(child.rows(subject, deadline_s))


@pytest.mark.workers
def test_an_error_a_death_and_a_hang_end_only_their_subject():
    child = Child()
    try:
        first = came_from(child, "good", partial(good, 1.0))
        again = came_from(child, "good", partial(good, 2.0))
        assert [row.value for row in again] == [first[0].value, 2.0]  # the same process
        *kept, failure = came_from(child, "wrong", wrong)
        assert failure == Failure("RuntimeError: CUDA error: an illegal memory access")
        assert len(kept) == 1
        *kept, failure = came_from(child, "dies", dies)
        assert failure == Failure("its process died with exit code 9")
        assert len(kept) == 1
        warm = came_from(child, "good", partial(good, 3.0))
        assert warm[0].value != first[0].value
        began = time.monotonic()
        *kept, failure = came_from(child, "hangs", hangs, deadline_s=2.0)
        assert failure == Failure("it ran past its deadline of 2 s")
        assert len(kept) == 1
        assert time.monotonic() - began < 30
        with pytest.raises(ProcessLookupError):
            os.kill(int(warm[0].value), 0)
    finally:
        child.close()


class Inline:
    """A child in this process."""

    def rows(self, subject: Subject, deadline_s: float) -> Iterator[Row | Failure]:
        assert deadline_s > 0
        try:
            yield from subject.rows()
        except RuntimeError as error:
            yield Failure(str(error))

    def close(self) -> None:
        """Nothing to end."""


@pytest.fixture
def on_gpu(monkeypatch, tmp_path):
    """A part of two subjects, on a machine that says that it has a GPU."""
    measure.machine()  # is remembered, so it must not see what follows
    monkeypatch.setitem(subjects.PARTS, "a", lambda small: list(of_part))
    of_part = [Subject("good", partial(good, 1.0), 1), Subject("wrong", wrong, 1)]
    monkeypatch.setattr(gpu.gpu, "available", lambda: True)
    monkeypatch.setattr(gpu.gpu, "name", lambda: "a GPU")
    monkeypatch.setattr(gpu, "stamped", lambda row: rows.stamped(row) | {"gpu": "a GPU"})
    monkeypatch.setattr(gpu, "Child", Inline)
    return of_part


def test_a_second_call_goes_on_with_what_is_missing(on_gpu, tmp_path):
    figures = gpu.measure(minutes=4, part="a", folder=tmp_path)
    assert (figures["subjects"], figures["failed"]) == (1, 1)
    before = rows.read(tmp_path)
    reasons = [row["note"] for row in before if row["figure"] == FAILED]
    assert reasons == ["CUDA error: an illegal memory access\nmore lines"]
    on_gpu[1] = Subject("wrong", partial(good, 7.0), 1)  # mended
    figures = gpu.measure(minutes=4, part="a", folder=tmp_path)
    assert (figures["subjects"], figures["failed"]) == (2, 0)
    after = rows.read(tmp_path)
    assert [row for row in after if row["subject"] == "wrong"]
    assert not [row for row in after if row["figure"] == FAILED]
    assert len([row for row in after if row["figure"] == SECONDS]) == 2


def test_a_machine_without_a_gpu_leaves_a_gpus_rows(on_gpu, monkeypatch, tmp_path):
    of_gpu = rows.stamped(Row("a", "good", "plain", "value", 5.0)) | {"gpu": "a GPU"}
    rows.write(tmp_path, "a", [of_gpu])
    monkeypatch.setattr(gpu.gpu, "available", lambda: False)
    monkeypatch.setattr(gpu.gpu, "name", str)
    monkeypatch.setattr(gpu, "stamped", rows.stamped)
    on_gpu.pop()
    for _ in range(2):
        assert gpu.measure(minutes=4, part="a", folder=tmp_path)["subjects"] == 1
        back = rows.read(tmp_path)
        assert of_gpu in back
        assert len(back) == 4  # and two values and the seconds of this machine


def test_the_page_is_printed_without_measuring(tmp_path):
    assert gpu.measure(part="page", folder=tmp_path, printed=tmp_path / "gpu.md") == {}
    assert "Not measured yet." in (tmp_path / "gpu.md").read_text()
    with pytest.raises(ValueError, match="name it"):
        gpu.measure(part="page", folder=tmp_path)


def test_no_subject_begins_that_would_not_end_in_time(on_gpu, tmp_path):
    on_gpu[1] = Subject("long", partial(good, 2.0), 600)
    assert gpu.measure(minutes=4, part="a", folder=tmp_path)["subjects"] == 1
    assert {row["subject"] for row in rows.read(tmp_path)} == {"good"}


@pytest.mark.parametrize("option", [{"part": "z"}, {"minutes": 0.0}])
def test_wrong_options_are_refused(option, tmp_path):
    with pytest.raises(ValueError, match=f"--{next(iter(option))}"):
        gpu.measure(folder=tmp_path, **option)


@pytest.mark.workers
def test_it_needs_neither_ray_nor_optuna(tmp_path):
    for name in ("ray", "optuna"):
        (tmp_path / "absent" / name).mkdir(parents=True)
        text = f"raise ImportError({name!r})"
        (tmp_path / "absent" / name / "__init__.py").write_text(text)
    path = os.pathsep.join([str(tmp_path / "absent"), str(ROOT)])
    command = [sys.executable, "-m", "raybench.bench", "gpu", "--part", "b", "--minutes", "4"]
    done = subprocess.run(
        command,
        cwd=tmp_path,  # where the results go
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert [
        row["note"] for row in rows.read(tmp_path / gpu.FOLDER) if row["figure"] == FAILED
    ] == []
