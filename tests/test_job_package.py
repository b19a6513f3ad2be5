"""The upload of a job: what travels, what stays, and the limit."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from raybench.cluster.jobs.package import commit_of, files_of, pack

ROOT = Path(__file__).parent.parent


def write(folder: Path, *names: str, text: str = "x") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def work(tmp_path) -> Path:
    """A working directory as people have it: code beside everything that a job must not get."""
    folder = tmp_path / "work"
    write(folder, "space.py", "nets/small.py", "photos/train/cat/1.png", "empty.py", "logging.py")
    write(folder, ".venv/pyvenv.cfg", ".venv/lib/torch.py", "my-env/pyvenv.cfg", "my-env/a.py")
    write(folder, "conda/conda-meta/history", "conda/bin/python")
    write(folder, ".mypy_cache/CACHEDIR.TAG", ".mypy_cache/3.11/x.json", "nets/__pycache__/s.pyc")
    write(folder, "results/pruning/.state/log", "results/pruning/trials/trials.parquet")
    write(folder, "runs/mine/.state/log", "runs/mine/models/0.packed", "pkg.egg-info/PKG")
    write(folder, ".git-not/x", "node_modules/left-pad/index.js")
    return folder


WANTED = [
    ".git-not/x", "empty.py", "logging.py", "nets/small.py", "photos/train/cat/1.png", "space.py",
]  # fmt: skip


def test_code_travels_and_environments_caches_and_results_stay(work):
    assert files_of(work) == WANTED


@pytest.mark.parametrize("repository", [True, False])
def test_what_git_ignores_stays_but_new_files_travel(work, repository):
    (work / ".gitignore").write_text("/photos/\n*.log\nlog*\n!logging.py\n")
    write(work, "train.log", "nets/train.log", "untracked.py")
    if repository:
        subprocess.run(["git", "init", "--quiet", str(work)], check=True, timeout=60)
    expected = {*WANTED, ".gitignore", "untracked.py"} - {"photos/train/cat/1.png"}
    assert files_of(work) == sorted(expected)


def test_a_tracked_file_travels_though_a_pattern_names_it(work):
    (work / ".gitignore").write_text("log*\n")
    subprocess.run(["git", "init", "--quiet", str(work)], check=True, timeout=60)
    assert "logging.py" not in files_of(work)
    subprocess.run(["git", "add", "-f", "logging.py"], cwd=work, check=True, timeout=60)
    assert "logging.py" in files_of(work)


def test_without_git_all_the_rest_still_holds(work, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert files_of(work) == WANTED
    assert commit_of(work) == ""


def test_excluded_paths_and_patterns_stay(work):
    names = files_of(work, ["photos/", "*.py"])
    assert names == [".git-not/x"]


def test_links_are_followed_once(work, tmp_path):
    write(tmp_path / "elsewhere", "spaces/more.py")
    (work / "linked").symlink_to(tmp_path / "elsewhere")
    (work / "loop").symlink_to(work)
    (work / "nets" / "up").symlink_to(work / "nets")
    (work / "broken").symlink_to(work / "nowhere")
    (work / "venv-link").symlink_to(work / ".venv")
    assert files_of(work) == sorted([*WANTED, "linked/spaces/more.py"])


def test_the_same_files_give_the_same_upload(work, tmp_path):
    first = pack(work, tmp_path / "1.zip", limit_mb=1)
    (work / "space.py").touch()
    again = pack(work, tmp_path / "2.zip", limit_mb=1)
    assert first.path.read_bytes() == again.path.read_bytes()
    (work / "space.py").write_text("y")
    changed = pack(work, tmp_path / "3.zip", limit_mb=1)
    assert first.path.read_bytes() != changed.path.read_bytes()
    with zipfile.ZipFile(changed.path) as archive:
        assert archive.namelist() == WANTED
        assert archive.read("space.py") == b"y"
    assert str(changed).startswith("6 files, 0.00 MB")


def test_too_much_is_refused_with_the_largest_folders(work, tmp_path):
    write(work, "photos/big.png", text="x" * 3_000_000)
    write(work, "weights.ckpt", text="x" * 2_000_000)
    with pytest.raises(ValueError, match=r"holds 5 MB in 8 files, more than --upload-limit 4") as e:
        pack(work, tmp_path / "x.zip", limit_mb=4)
    assert "photos 3 MB, weights.ckpt 2 MB" in str(e.value)
    assert "--exclude photos" in str(e.value)
    assert not (tmp_path / "x.zip").exists()
    assert pack(work, tmp_path / "x.zip", exclude=["photos"], limit_mb=4).names == {
        *WANTED, "weights.ckpt",
    } - {"photos/train/cat/1.png"}  # fmt: skip


def test_raybench_itself_is_a_small_upload(tmp_path):
    packed = pack(ROOT, tmp_path / "raybench.zip", limit_mb=100)
    assert packed.bytes <= 2_000_000
    assert {"raybench/tune.py", "search_spaces/pruning.py", "pyproject.toml"} <= packed.names
    outside = {name.split("/")[0] for name in packed.names}
    assert not outside & {".git", ".venv", "results", ".ruff_cache", ".mypy_cache"}


def test_the_commit_is_that_of_the_working_directory(work):
    assert commit_of(work) == ""
    run = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(work)]
    for arguments in (["init", "--quiet"], ["add", "space.py"], ["commit", "-qm", "first"]):
        subprocess.run([*run, *arguments], check=True, timeout=60, capture_output=True)
    commit = commit_of(work)
    assert len(commit) == 40
    (work / "space.py").write_text("changed")
    assert commit_of(work) == f"{commit}-dirty"
