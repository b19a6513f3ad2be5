"""Nothing in a results folder is run, and nothing of a local Ray listens to the network."""

from __future__ import annotations

import ast
import importlib
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raybench import artefact, train, tune
from raybench.results.read import read
from raybench.training import checkpoint

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("raybench/**/*.py"), *ROOT.glob("trainers/**/*.py")])

TUNES_OWN_ERRORS = ROOT / "raybench/cluster/scheduler.py"
"""It reads the error that Tune has pickled into this process's own temporary folder."""


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def test_no_pickle_is_loaded_in_the_sources():
    loads = []
    for path in FILES:
        for call in calls(path):
            name, options = ast.unparse(call.func), {k.arg: k.value for k in call.keywords}
            if name == "torch.load":
                loads.append(path)
                assert ast.unparse(options["weights_only"]) == "True", path
            safe = (
                not options.get("allow_pickle") or ast.unparse(options["allow_pickle"]) == "False"
            )
            assert safe, path
            pickled = name.split(".")[0] in ("pickle", "cloudpickle", "dill", "joblib", "shelve")
            assert not pickled or path == TUNES_OWN_ERRORS, f"{path}: {name}"
    assert loads  # the walk sees them


class Bomb:
    """Runs a command where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (os.system, (f"touch {self.trace}",))


@pytest.fixture
def trace(tmp_path) -> Path:
    return tmp_path / "it ran".replace(" ", "_")


def test_the_bomb_works(trace):
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists()


def test_a_planted_checkpoint_is_set_aside(trace, tmp_path):
    path = tmp_path / "3.pt"
    torch.save({"epoch": 1, "weights": Bomb(trace)}, path)
    assert checkpoint.usable(path) is None
    path.write_bytes(pickle.dumps(Bomb(trace)))
    assert checkpoint.usable(path) is None
    with pytest.raises(Exception, match=r"(?i)weights|checkpoint|load"):
        checkpoint.load(tmp_path / "3.pt.damaged")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["net.packed", "net.safetensors", "net.pt", "net.onnx"])
def test_a_planted_model_is_refused(trace, tmp_path, name):
    for write in (torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))):
        write(Bomb(trace), tmp_path / name)
        with pytest.raises(ValueError, match=name):
            artefact.load(tmp_path / name)
    assert not trace.exists()


def test_planted_tables_and_state_are_read_as_data(trace, tmp_path):
    """Arrow's extension types may carry a pickle; log and journal are text."""
    bomb = pickle.dumps(Bomb(trace))
    planted = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": bomb,
    }
    field = pa.field("number", pa.int64(), metadata=planted)
    folder = tmp_path / "results" / "sweep"
    for table in ("trials", "epochs"):
        (folder / table).mkdir(parents=True)
        schema = pa.schema([field], metadata={b"pandas": bomb, b"raybench": bomb})
        pq.write_table(pa.table([[0]], schema), folder / table / f"{table}.parquet")
    (folder / ".state").mkdir()
    for name in ("log", "study.journal", "sweep.json"):
        (folder / ".state" / name).write_bytes(bomb)
    with pytest.raises(Exception, match=r"."):
        read(folder)
    space = str(ROOT / "search_spaces" / "pruning.py")
    typed = ["--space", space, "--name", "sweep", "--results", str(folder.parent)]
    assert tune.run(tune.parse(typed)) == 2
    assert not trace.exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", "..", "", "a\\..\\..\\b/.."])
def test_no_name_leads_out_of_the_results_folder(name, tmp_path, capsys):
    results = tmp_path / "results"
    space = str(ROOT / "search_spaces" / "pruning.py")
    typed = ["--space", space, f"--name={name}", "--results", str(results)]
    assert tune.run(tune.parse(typed)) == 2
    assert "a name without slashes" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("family", ["../../x", "os", "results/pruning", "..", ".pruning"])
def test_no_family_leads_out_of_the_trainers(family, capsys):
    with pytest.raises(ValueError, match="no family"):
        train.parse([family])


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_a_local_ray_listens_on_the_loopback_alone():
    from raybench.cluster.guardian import MARK, marked
    from raybench.cluster.session import session

    psutil = importlib.import_module("psutil")  # which Ray has brought along
    with session():
        own = {*marked(os.environ[MARK]), os.getpid()}
        listening = [
            (connection.laddr.ip, psutil.Process(connection.pid).name())
            for connection in psutil.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN and connection.pid in own
        ]
    assert len(listening) > 3
    assert {ip.removeprefix("::ffff:") for ip, _ in listening} <= {"127.0.0.1", "::1"}, listening
