"""Results that come from a head: a still copy, whole files, and no name that leads astray."""

from __future__ import annotations

import hashlib
import io
import json
import os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from raybench.cluster.jobs import fetch, handout


@pytest.fixture
def sweep(tmp_path) -> Path:
    folder = tmp_path / "head" / "pruning"
    for name in ("trials/trials.parquet", "epochs/epochs-00000.parquet", ".state/log"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} 1\n")
    for name in (".state/lock", ".state/checkpoints/0.pt", ".state/trials.parquet.tmp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of the running sweep")
    (folder / "models").mkdir()
    (folder / "models" / "empty").touch()
    return folder


class TestHandout:
    def listed(self, sweep: Path, stage: Path) -> list[dict]:
        stage.mkdir()
        return handout.manifest([sweep], stage, stage.name)

    def test_the_copy_stays_still_while_the_sweep_goes_on(self, sweep, tmp_path):
        stage = tmp_path / "stage"
        entries = self.listed(sweep, stage)
        assert [entry["name"] for entry in entries] == [
            *("pruning/epochs/epochs-00000.parquet", "pruning/models/empty"),
            *("pruning/trials/trials.parquet", "pruning/.state/log"),
        ]
        new = sweep / ".state" / "new"
        new.write_text("another table")
        new.replace(sweep / "trials/trials.parquet")
        with (sweep / ".state/log").open("a") as log:
            log.write("2\n")
        for entry in entries:
            content = (stage / str(entry["number"])).read_bytes()[: entry["size"]]
            assert hashlib.sha256(content).hexdigest() == entry["sha256"]

    def test_another_file_system_is_linked_to(self, sweep, tmp_path, monkeypatch):
        link = os.link

        def not_across(source, target, **options):
            if Path(target).parent.name == "stage":
                raise OSError(18, "cross-device link")
            link(source, target, **options)

        monkeypatch.setattr(os, "link", not_across)
        self.test_the_copy_stays_still_while_the_sweep_goes_on(sweep, tmp_path)

    def test_a_file_system_without_links_is_copied(self, sweep, tmp_path, monkeypatch):
        def none(*_: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", none)
        entries = self.listed(sweep, tmp_path / "stage")
        assert len(entries) == 4
        assert not (tmp_path / "stage" / "0").is_symlink()


class Head:
    """A head that hands out a stage; `damage` is what a file's bytes become on the way."""

    def __init__(self, stage: Path, damage=lambda name, content, tries: content) -> None:
        self.stage, self.damage, self.asked = stage, damage, []

    @contextmanager
    def download(self, node, file, deadline_s):
        self.asked.append(file)
        number = Path(file).name
        content = (self.stage / number).read_bytes()
        box = io.BytesIO(self.damage(number, content, self.asked.count(file)))
        yield SimpleNamespace(iter_content=lambda size: iter(lambda: box.read(size), b""))


class TestFetch:
    def fetched(self, sweep: Path, into: Path, **options) -> tuple[fetch.Fetched, Head]:
        stage = into.parent / f"stage-{len([*into.parent.iterdir()])}"
        stage.mkdir()
        entries = json.loads(json.dumps(handout.manifest([sweep], stage, stage.name)))
        head = Head(stage, **options)
        into.mkdir(exist_ok=True)
        return fetch._all(head, "node", "raybench-fetch-1", entries, into), head  # type: ignore[arg-type]

    def test_it_brings_what_is_new_alone(self, sweep, tmp_path):
        into = tmp_path / "got"
        first, _ = self.fetched(sweep, into)
        assert (first.files, first.new) == (4, 4)
        assert (into / "pruning/.state/log").read_text() == ".state/log 1\n"
        with (sweep / ".state/log").open("a") as log:
            log.write("2\n")
        second, head = self.fetched(sweep, into)
        assert (second.files, second.new, len(head.asked)) == (4, 1, 1)
        assert (into / "pruning/.state/log").read_text() == ".state/log 1\n2\n"
        assert not [*into.glob(".fetch-*")]

    def test_a_damaged_file_is_asked_for_again(self, sweep, tmp_path):
        def once(name, content, tries):
            return content[:-1] + b"?" if tries == 1 else content

        fetched, head = self.fetched(sweep, tmp_path / "got", damage=once)
        assert fetched.new == 4
        assert len(head.asked) == 6  # three files have content

    def test_one_that_stays_damaged_replaces_nothing(self, sweep, tmp_path):
        into = tmp_path / "got"
        self.fetched(sweep, into)
        (sweep / "trials/trials.parquet").write_text("a new table")
        with pytest.raises(OSError, match="did not come whole"):
            self.fetched(sweep, into, damage=lambda name, content, tries: content[:-1])
        assert (into / "pruning/trials/trials.parquet").read_text() == "trials/trials.parquet 1\n"

    def test_another_sweep_here_is_left_alone(self, sweep, tmp_path):
        into = tmp_path / "got"
        for name in (".state/log", "trials/trials.parquet"):
            (into / "pruning" / name).parent.mkdir(parents=True, exist_ok=True)
            (into / "pruning" / name).write_text("mine")
        with pytest.raises(ValueError, match="holds another sweep"):
            self.fetched(sweep, into)
        assert (into / "pruning/trials/trials.parquet").read_text() == "mine"

    @pytest.mark.parametrize("name", ["../x", "/etc/x", "pruning/../../x", "linked/x"])
    def test_no_name_leads_out_of_the_folder(self, name, tmp_path):
        into = tmp_path / "got"
        into.mkdir()
        (into / "linked").symlink_to(tmp_path)
        with pytest.raises(ValueError, match="lies outside"):
            fetch._below(into, name)
        assert fetch._below(into, "pruning/x") == into / "pruning" / "x"
