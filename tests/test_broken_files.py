"""Files that hold no trained model, or half of one: refused, and never unpickled."""

from __future__ import annotations

import json
import pickle
import struct

import pytest
import torch
from pruned_networks import assert_same_bits, pruned

from raybench import artefact
from trainers.pruning import base


class TestBroken:
    def test_a_truncated_file_raises(self, tmp_path):
        path = tmp_path / "m"
        artefact.save(pruned(0.5), base, 10, path)
        whole = path.read_bytes()
        for length in (0, 4, 8, 500, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match="holds no trained model"):
                artefact.load(path)

    def test_nothing_is_ever_unpickled(self, tmp_path, monkeypatch):
        path = tmp_path / "m"
        model = pruned(0.5)
        artefact.save(model, base, 10, path)
        header = struct.unpack("<Q", path.read_bytes()[:8])[0]
        assert "__metadata__" in json.loads(path.read_bytes()[8 : 8 + header])

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("unpickled")

        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(pickle, name, refuse)
        assert_same_bits(model, artefact.load(path))

    def test_a_pickle_is_refused_unread(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return (open, (str(tmp_path / "sprung"), "w"))

        (tmp_path / "pickle").write_bytes(pickle.dumps(Trap()))
        torch.save(Trap(), tmp_path / "torch")
        for name in ("pickle", "torch"):
            with pytest.raises(ValueError, match="holds no trained model"):
                artefact.load(tmp_path / name)
        assert not (tmp_path / "sprung").exists()

    def test_a_failing_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "m"
        artefact.save(pruned(0.5), base, 10, path)
        before = path.read_bytes()
        monkeypatch.setattr(artefact, "encode", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            artefact.save(pruned(0.9), base, 10, path)
        assert path.read_bytes() == before
