"""Files that travel to the driver's machine: whole, and below one folder, whatever happens."""

from __future__ import annotations

import os
import signal
import sys
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError

from raybench.cluster import files
from raybench.cluster.files import Damaged, Folder, Home, Replaced
from raybench.cluster.trial_files import NAME, trial_files
from raybench.training.state_file import previous, seal

SENDER = uuid.UUID(int=1).hex
PART = 1000


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PART", PART)


@pytest.fixture
def root(memory_path: Path) -> Path:
    folder = memory_path / "results" / "sweep"
    folder.mkdir(parents=True)
    return folder


def written(folder: Folder, path: Path, content: bytes, sender: str = SENDER) -> list[int]:
    parts = [content[at : at + PART] for at in range(0, len(content), PART)]
    for number, part in reversed(list(enumerate(parts))):
        folder.write(str(path), sender, number * PART, part, zlib.crc32(part))
    return [zlib.crc32(part) for part in parts]


def sealed(path: Path, content: bytes) -> bytes:
    path.write_bytes(content)
    seal(path)
    return path.read_bytes()


class TestFolder:
    def test_parts_in_any_order_become_the_file(self, root):
        content = os.urandom(5 * PART + 7)
        folder, path = Folder(str(root)), root / "models" / "a.safetensors"
        sums = written(folder, path, content)
        assert not path.exists()
        folder.commit(str(path), SENDER, sums, False)
        assert path.read_bytes() == content
        folder.commit(str(path), SENDER, sums, False)  # the first answer was lost
        assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]

    def test_a_damaged_part_is_refused(self, root):
        with pytest.raises(Damaged, match="damaged on its way"):
            Folder(str(root)).write(str(root / "a"), SENDER, 0, b"abc", zlib.crc32(b"abd"))
        assert not list(root.iterdir())

    @pytest.mark.parametrize("damage", ["byte", "missing", "more", "all"])
    def test_a_file_with_damage_never_replaces_a_whole_one(self, root, damage):
        folder, path = Folder(str(root)), root / "a"
        path.write_bytes(b"whole")
        sums = written(folder, path, os.urandom(3 * PART))
        (partial,) = root.glob("*.partial")
        content = bytearray(partial.read_bytes())
        content[1500] ^= 1
        changed = {"byte": content, "missing": content[:2000], "more": content + b"x"}
        if damage == "all":
            partial.unlink()
        else:
            partial.write_bytes(changed[damage])
        with pytest.raises(Damaged, match="whole"):
            folder.commit(str(path), SENDER, sums, False)
        assert path.read_bytes() == b"whole"
        assert [p.name for p in root.iterdir()] == ["a"]

    @pytest.mark.parametrize(
        "path",
        ["../other", "../sweep2/a", "/etc/passwd", "link/a", "models/../../b", "a", ".", "stray"],
    )
    def test_paths_that_leave_the_folder_are_refused(self, root, path, monkeypatch):
        (root / "link").symlink_to(root.parent)
        (root / "stray").symlink_to(root.parent / "elsewhere")
        monkeypatch.chdir(root.parent)
        folder = Folder(str(root))
        told = path if path == "a" else str(root / path)  # relative: to where the actor runs
        for call in (
            lambda: folder.write(told, SENDER, 0, b"", 0),
            lambda: folder.commit(told, SENDER, [], False),
            lambda: folder.version(told, False),
            lambda: folder.version(told, True),
            lambda: folder.read(files.Version(told, 1, 1, 1), 0),
        ):
            with pytest.raises(ValueError, match="not in the folder"):
                call()
        assert sorted(p.name for p in root.parent.iterdir()) == ["sweep"]

    def test_a_senders_name_is_no_way_out(self, root):
        with pytest.raises(ValueError, match="not the id of a sender"):
            Folder(str(root)).write(str(root / "a"), "/../../x", 0, b"", 0)

    def test_files_that_the_user_named_may_be_anywhere(self, root):
        named = root.parent / "state.pt"
        folder = Folder(None, [str(named)])
        for content in (b"one", b"two"):
            folder.commit(str(named), SENDER, written(folder, named, content), True)
        assert named.read_bytes() == b"two"
        assert previous(named).read_bytes() == b"one"
        for other in (root / "a", named.with_name("state.pt2"), root.parent):
            with pytest.raises(ValueError, match="not in the folder"):
                folder.version(str(other), False)

    def test_what_a_lost_sender_left_is_deleted(self, root):
        folder, path = Folder(str(root)), root / "a"
        written(folder, path, os.urandom(2 * PART))
        written(folder, root / "ab", b"other")
        other = uuid.UUID(int=2).hex
        folder.commit(str(path), other, written(folder, path, b"new", other), False)
        assert sorted(p.name for p in root.iterdir()) == ["a", f"ab.{SENDER}.partial"]

    def test_a_damaged_state_gives_way_to_the_one_before(self, root):
        path = root / "0.pt"
        path.write_bytes(b"damaged")
        sealed(previous(path), b"older")
        version = Folder(str(root)).version(str(path), True)
        assert version is not None
        assert version.path == str(previous(path))
        assert Folder(str(root)).version(str(path), True) == version

    def test_a_file_that_is_replaced_is_not_mixed(self, root):
        folder, path = Folder(str(root)), root / "a"
        path.write_bytes(os.urandom(2 * PART))
        version = folder.version(str(path), False)
        assert version is not None
        assert len(folder.read(version, 0)[0]) == PART
        (root / "b").write_bytes(os.urandom(2 * PART))
        (root / "b").replace(path)
        with pytest.raises(Replaced):
            folder.read(version, PART)


class Away:
    """Plays the actor, in this process; `spoil` may change what travels."""

    def __init__(self, folder: Folder) -> None:
        self.folder, self.most, self._under_way = folder, 0, 0
        self.spoil: Callable[[str, Any], Any] = lambda name, parts: parts
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> Callable[[], Any]:
            self.calls.append(name)
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            travelled = self.spoil(name, arguments)

            def answer() -> Any:
                self._under_way -= 1
                try:
                    return getattr(self.folder, name)(*travelled)
                except OSError as error:
                    raise RayTaskError("f", "", error) from error

            return answer

        return SimpleNamespace(remote=remote)


@pytest.fixture
def away(root: Path, monkeypatch: pytest.MonkeyPatch) -> Away:
    actor = Away(Folder(str(root)))
    monkeypatch.setattr(files.ray, "get_actor", lambda name: actor)
    monkeypatch.setattr(files.ray, "get", lambda call, timeout: call())
    return actor


HOME = Home("/nowhere/seen", "actor")


class TestTravel:
    @pytest.mark.parametrize("size", [0, 1, PART, 9 * PART + 1])
    def test_there_and_back_with_a_few_parts_on_the_way(self, away, root, tmp_path, size):
        content = os.urandom(size)
        (tmp_path / "a").write_bytes(content)
        files.send(HOME, tmp_path / "a", str(root / "a"))
        assert (root / "a").read_bytes() == content
        assert files.fetch(HOME, str(root / "a"), tmp_path / "b")
        assert (tmp_path / "b").read_bytes() == content
        assert away.most <= files.AHEAD
        assert not files.fetch(HOME, str(root / "none"), tmp_path / "c")

    def test_damage_on_the_way_is_sent_again(self, away, root, tmp_path):
        (tmp_path / "a").write_bytes(os.urandom(3 * PART))
        spoiled = iter([True, *[False] * 99])

        def spoil(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            if name == "write" and next(spoiled):
                return (*arguments[:3], b"?" + arguments[3][1:], arguments[4])
            return arguments

        away.spoil = spoil
        files.send(HOME, tmp_path / "a", str(root / "a"))
        assert (root / "a").read_bytes() == (tmp_path / "a").read_bytes()
        assert [p.name for p in root.iterdir()] == ["a"]

    def test_lasting_damage_is_told(self, away, root, tmp_path):
        (tmp_path / "a").write_bytes(b"abc")
        away.spoil = lambda name, a: (*a[:3], b"?", a[4]) if name == "write" else a
        with pytest.raises(Damaged):
            files.send(HOME, tmp_path / "a", str(root / "a"))
        assert away.calls == ["write"] * files.TRIES

    def test_a_trial_elsewhere_leaves_its_files_at_home(self, away, root, monkeypatch, tmp_path):
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        killed = tmp_path / f"{NAME}{2**22 + 1}-x"  # no process has this id
        killed.mkdir()
        state, model = root / ".state" / "0.pt", root / "models" / "s-0.safetensors"
        with trial_files(str(state), str(model), HOME) as here:
            assert here.resume() is None
            content = sealed(here.checkpoint, b"first")
            here.saved()
            assert here.model is not None
            here.model.write_bytes(b"model")
            here.stored()
        assert (state.read_bytes(), model.read_bytes()) == (content, b"model")
        with trial_files(str(state), str(model), HOME) as here:
            resumed = here.resume()
            assert resumed == here.checkpoint
            assert resumed is not None
            assert resumed.read_bytes() == content
            sealed(here.checkpoint, b"second")
            here.saved()
        assert previous(state).read_bytes() == content
        assert not list(tmp_path.iterdir())

    def test_a_shared_disk_is_used_itself(self, root, tmp_path):
        (root / "seen").touch()
        home = Home(str(root / "seen"), "no such actor")
        with trial_files(str(root / "0.pt"), str(root / "m"), home) as here:
            assert (here.checkpoint, here.model) == (root / "0.pt", root / "m")
            assert here.resume() is None
            sealed(here.checkpoint, b"state")
            here.saved()
            here.stored()
            assert here.resume() == root / "0.pt"


@pytest.mark.ray
def test_the_actor_may_die_between_any_two_parts(root, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "is set")
    monkeypatch.setattr(files, "PART", 4 << 20)
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with files.served(root, root / "seen") as home:
            assert home is not None
            assert home.is_here
            actor = ray.get_actor(home.actor)
            heavy = actor.__ray_call__.remote(lambda folder: "torch" in sys.modules)
            assert not ray.get(heavy, timeout=60)
            (tmp_path / "a").write_bytes(os.urandom(50_000_000))
            number = 0

            def kill() -> None:
                call = actor.__ray_call__.remote(lambda folder: os.getpid())
                os.kill(ray.get(call, timeout=60), signal.SIGKILL)

            got = files._got

            def interrupted(call: Any) -> Any:
                nonlocal number
                number += 1
                if number in (3, 18):
                    kill()
                return got(call)

            monkeypatch.setattr(files, "_got", interrupted)
            files.send(home, tmp_path / "a", str(root / "a"))
            assert files.fetch(home, str(root / "a"), tmp_path / "b")
            assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
            with pytest.raises(ValueError, match="not in the folder"):
                files.fetch(home, "/etc/hostname", tmp_path / "c")
            assert number > 24
        assert [p.name for p in root.iterdir()] == ["a"]
    finally:
        ray.shutdown()
