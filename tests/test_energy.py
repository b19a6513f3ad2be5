"""Energy counters, read from a tree like the kernel's and from a stand-in for NVML."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from raybench.hardware import energy


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_nvml", lambda: None)


def package(root: Path, name: str, microjoules: int | str, top: int = 262_143_328_850) -> None:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{top}\n")


def test_packages_add_up_and_their_parts_do_not_count_again(tmp_path):
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        package(tmp_path, name, 1_000_000)
    before = energy.joules(tmp_path)
    assert before.keys() == {"intel-rapl:0", "intel-rapl:1"}
    package(tmp_path, "intel-rapl:0", 3_500_000)
    package(tmp_path, "intel-rapl:1", 1_250_000)
    package(tmp_path, "intel-rapl:0:0", 9_000_000)
    assert energy.since(before, tmp_path) == {"energy_j": 2.75}


def test_a_counter_that_starts_again_goes_on(tmp_path):
    package(tmp_path, "intel-rapl:0", 9_000_000, top=10_000_000)
    before = energy.joules(tmp_path)
    package(tmp_path, "intel-rapl:0", 2_000_000, top=10_000_000)
    assert energy.since(before, tmp_path) == {"energy_j": 3.0}


def test_a_machine_that_tells_nothing_has_no_column(tmp_path):
    package(tmp_path, "intel-rapl:0", "")
    assert energy.joules(tmp_path) == {}
    assert energy.joules(tmp_path / "missing") == {}
    assert energy.since({}, tmp_path) == {}


def test_only_the_gpus_of_the_process_count(tmp_path, monkeypatch):
    millijoules = {"GPU-1": iter([5_000, 7_500])}
    nvml = SimpleNamespace(
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(millijoules[handle]),
        NVMLError=KeyError,
    )
    monkeypatch.setattr(energy, "_nvml", lambda: nvml)
    monkeypatch.setattr(energy.gpu, "uuids", lambda: ["GPU-1", "GPU-without-a-counter"])
    assert energy.since(energy.joules(tmp_path), tmp_path) == {"energy_j": 2.5}
