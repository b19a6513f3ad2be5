"""The two checkpoints of a trial: what is damaged is set aside, and the one before it is taken."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from raybench.training import checkpoint


@pytest.fixture
def path(tmp_path) -> Path:
    """Where the states of epochs 1 and 2 were saved."""
    file = tmp_path / "new folder" / "3.pt"
    for epoch in (1, 2):
        checkpoint.write({"epoch": epoch, "weights": list(range(1000))}, file)
    return file


def epoch_of(found: Path | None) -> int | None:
    return None if found is None else checkpoint.load(found)["epoch"]


def test_the_latest_is_taken(path):
    assert epoch_of(checkpoint.usable(path)) == 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["3.pt", "3.pt.previous"]


def test_none_is_there(tmp_path):
    assert checkpoint.usable(tmp_path / "3.pt") is None


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_one_is_set_aside_and_the_one_before_taken(path, seed):
    draw, content = random.Random(seed), bytearray(path.read_bytes())
    how = draw.choice(["cut", "emptied", "zeroed", "flipped", "longer"])
    place = draw.randrange(len(content))
    if how == "cut":
        del content[place:]
    elif how == "emptied":
        content.clear()
    elif how == "zeroed":
        content = bytearray(len(content))
    elif how == "flipped":
        content[place] ^= 1 << draw.randrange(8)
    else:
        content += b"\0"
    path.write_bytes(content)
    assert epoch_of(checkpoint.usable(path)) == 1
    assert (path.parent / "3.pt.damaged").read_bytes() == content
    checkpoint.write({"epoch": 3}, path)
    assert epoch_of(checkpoint.usable(path)) == 3


def test_both_are_damaged(path):
    for file in list(path.parent.iterdir()):
        file.write_bytes(b"nothing")
    assert checkpoint.usable(path) is None


def test_a_kill_between_the_two_renames_leaves_the_one_before(path):
    path.replace(path.with_name("3.pt.previous"))
    assert epoch_of(checkpoint.usable(path)) == 2


def test_a_kill_while_writing_leaves_both(path):
    path.with_name("3.pt.partial").write_bytes(b"half of")
    assert epoch_of(checkpoint.usable(path)) == 2
    checkpoint.write({"epoch": 3}, path)
    assert epoch_of(checkpoint.usable(path)) == 3


class TestRemark:
    """What `raybench.train --checkpoint` says before it starts."""

    def test_nothing_of_a_good_one_or_none(self, path, tmp_path):
        assert checkpoint.remark(path) == checkpoint.remark(tmp_path / "none") == ""

    @pytest.mark.parametrize("previous", [True, False])
    def test_a_damaged_one_is_told(self, path, previous):
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
        if not previous:
            path.with_name("3.pt.previous").unlink()
        then = "goes on from the state before it" if previous else "starts from the beginning"
        assert checkpoint.remark(path) == (
            f"{path} is damaged: it was moved to {path}.damaged, and the run {then}"
        )
        assert checkpoint.remark(path) == ""

    @pytest.mark.parametrize("content", [b"# Notes", b"PK\x03\x04 weights of somebody"])
    def test_a_file_of_another_kind_stays_where_it_is(self, tmp_path, content):
        other = tmp_path / "notes.md"
        other.write_bytes(content)
        with pytest.raises(ValueError, match=r"notes\.md is not a checkpoint: name another file"):
            checkpoint.remark(other)
        assert other.read_bytes() == content
