"""The energy that the machine has used, if it has counters.

    processors   RAPL: /sys/class/powercap/intel-rapl:N/energy_uj, in microjoules (Intel and AMD)
    GPU          NVML: nvmlDeviceGetTotalEnergyConsumption, in millijoules (Volta and newer)

Both count all processes on these processors and on the GPUs that this process may use, so energies
are comparable only for a run that is alone on the machine. RAPL's counter wraps at
`max_energy_range_uj`, after hours at the earliest.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from raybench.hardware import gpu

POWERCAP = Path("/sys/class/powercap")

Joules = dict[str, tuple[float, float]]
"""Counter -> joules since its start, and the value at which it wraps; 0 if it never does."""


def joules(powercap: Path = POWERCAP) -> Joules:
    """The counters that this process may read; empty if there are none."""
    return _processors(powercap) | _gpus()


def since(before: Joules, powercap: Path = POWERCAP) -> dict[str, float]:
    """`energy_j`, the energy used since `before`; nothing if no counter can be read."""
    now = joules(powercap)
    used = [_used(before[name], now[name]) for name in before if name in now]
    return {"energy_j": sum(used)} if used else {}


def _used(before: tuple[float, float], now: tuple[float, float]) -> float:
    difference, top = now[0] - before[0], now[1]
    return difference + top if difference < 0 else difference


def _processors(powercap: Path) -> Joules:
    """One counter per package, which includes its parts such as `intel-rapl:0:1`."""
    counters: Joules = {}
    for package in sorted(powercap.glob("*-rapl:*")):
        if package.name.count(":") != 1:
            continue
        try:
            value = int((package / "energy_uj").read_text())
            top = int((package / "max_energy_range_uj").read_text())
        except (OSError, ValueError):  # since 2020 many systems allow only root to read it
            continue
        counters[package.name] = (value / 1e6, top / 1e6)
    return counters


def _gpus() -> Joules:
    nvml = _nvml()
    if nvml is None:
        return {}
    counters: Joules = {}
    for uuid in gpu.uuids():  # NVML lists all GPUs of the machine, also those of other users
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            counters[uuid] = (nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, 0)
        except nvml.NVMLError:  # GPUs before Volta have no such counter
            continue
    return counters


@cache
def _nvml() -> Any:
    """NVIDIA's binding (`pip install nvidia-ml-py`), if it is installed and finds a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, or no driver: the binding has its own error types
        return None
    return pynvml
