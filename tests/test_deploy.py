"""What deploy/ holds: manifests against KubeRay's schema, a Slurm script that starts, an image."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from raybench import tune

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((Path(__file__).parent / "kuberay_rayjob.schema.json").read_text())
MANIFESTS = sorted((ROOT / "deploy" / "kuberay").glob("*.yaml"))
SBATCH = ROOT / "deploy" / "slurm" / "raybench.sbatch"
BIN = Path(sys.executable).parent


def linter(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([str(BIN), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{name} is not installed; it comes with the packages of the tests")
    return found


def manifest(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
class TestKubeRay:
    def test_the_manifest_is_of_the_schema(self, path):
        jsonschema.validate(manifest(path), SCHEMA)

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            (("spec", "entryPoint"), "python"),
            (("spec", "backoffLimit"), "3"),
            (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
            (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
            (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplica"), 0),
        ],
    )
    def test_a_slip_in_it_would_be_seen(self, path, place, value):
        changed = deepcopy(manifest(path))
        inner: Any = changed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, SCHEMA)

    def test_it_is_safe_scales_and_keeps_its_results(self, path):
        spec = manifest(path)["spec"]
        cluster = spec["rayClusterSpec"]
        assert cluster["authOptions"]["mode"] == "token"
        assert cluster["enableInTreeAutoscaling"] is True
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert all(group["minReplicas"] == 0 for group in cluster["workerGroupSpecs"])
        command = spec["entrypoint"].split()
        assert command[:3] == ["python", "-m", "raybench.tune"]
        typed = tune.parse(command[3:])
        assert str(typed.results).startswith("s3:")
        assert (ROOT / typed.space.relative_to("/opt/raybench")).exists()
        pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
        assert pinned is not None
        assert cluster["rayVersion"] == pinned[1]

    def test_gpus_are_asked_for_where_the_sweep_takes_them(self, path):
        spec = manifest(path)["spec"]
        groups = spec["rayClusterSpec"]["workerGroupSpecs"]
        limits = [
            group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in groups
        ]
        takes = "--gpus 1" in spec["entrypoint"]
        assert takes == ("gpu" in path.name)
        assert takes == any("nvidia.com/gpu" in limit for limit in limits)


STAND_INS = {
    "scontrol": 'printf "node1\\nnode2\\nnode3\\n"',
    "hostname": 'echo "10.0.0.1 172.17.0.1"',
    # As srun does, it leaves its own options and runs the command.
    "srun": 'echo "srun $*" >> "$LOG"; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "ray": """echo "ray $* token=$RAY_AUTH_TOKEN mode=$RAY_AUTH_MODE" >> "$LOG"
case $1 in
    get-auth-token) echo secret ;;
    start) exec sleep 60 ;;
esac""",
    "python": """echo "python $* address=$RAY_ADDRESS token=$RAY_AUTH_TOKEN" >> "$LOG"
[[ -n ${HOLD:-} ]] || exit 3
trap 'echo "saved" >> "$LOG"; exit 130' TERM
kill -TERM "$PPID"
for _ in $(seq 300); do sleep 0.1; done""",
}


class TestSlurm:
    @pytest.fixture
    def environment(self, tmp_path) -> dict[str, str]:
        """A machine whose Slurm and Ray write down how they were called."""
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, text in STAND_INS.items():
            file = folder / name
            file.write_text(f"#!/usr/bin/env bash\n{text}\n")
            file.chmod(0o755)
        slurm = {"JOB_ID": "4711", "JOB_NODELIST": "node[1-3]", "CPUS_PER_TASK": "16"}
        return {
            **{f"SLURM_{name}": value for name, value in slurm.items()},
            "SLURM_GPUS_ON_NODE": "4",
            "LOG": str(tmp_path / "log"),
            "PATH": os.pathsep.join([str(folder), os.environ["PATH"]]),
        }

    def run(self, tmp_path: Path, environment: dict[str, str]) -> tuple[int, list[str]]:
        done = subprocess.run(
            ["bash", str(SBATCH), "--space", "a b.py"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, (tmp_path / "log").read_text().splitlines()

    def test_it_is_bash(self):
        subprocess.run(["bash", "-n", str(SBATCH)], check=True, timeout=60)

    def test_shellcheck_finds_nothing(self):
        done = subprocess.run(
            [linter("shellcheck"), str(SBATCH)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout

    def test_it_starts_a_head_the_workers_and_the_sweep(self, tmp_path, environment):
        code, lines = self.run(tmp_path, environment)
        assert code == 3  # that of the sweep
        ray = [line for line in lines if line.startswith("ray start")]
        heads = [line for line in ray if "--head" in line]
        assert len(heads) == 1
        assert "--node-ip-address=10.0.0.1 --port=24711" in heads[0]
        assert all("token=secret mode=token" in line for line in ray)
        assert all("--num-cpus=16 --num-gpus=4" in line for line in ray)
        others = [line for line in lines if line.startswith("srun") and "--address=" in line]
        assert len(others) == 1
        assert "--nodes=2 --ntasks=2 --exclude=node1" in others[0]
        assert "--address=10.0.0.1:24711" in others[0]
        assert "python -m raybench.tune --space a b.py address=10.0.0.1:24711 token=secret" in lines

    def test_the_notice_before_the_time_limit_reaches_the_sweep(self, tmp_path, environment):
        code, lines = self.run(tmp_path, {**environment, "HOLD": "1"})
        assert "saved" in lines  # a worker may write its line after it
        assert code == 130


class TestImage:
    def test_hadolint_finds_nothing(self):
        done = subprocess.run(
            [linter("hadolint"), str(ROOT / "deploy" / "Dockerfile")],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout

    def test_what_it_copies_exists_and_is_not_ignored(self):
        text = (ROOT / "deploy" / "Dockerfile").read_text()
        copied = {
            name
            for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)
            for name in line.split()
        }
        allowed = {
            line[1:]
            for line in (ROOT / ".dockerignore").read_text().splitlines()
            if line[:1] == "!"
        }
        assert copied == allowed
        assert all((ROOT / name).exists() for name in copied)
