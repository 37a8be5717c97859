"""What the processor gives this process: how many cores its scheduler and control group leave, and 8 bits' pitfalls."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

_GROUPS = Path("sys/fs/cgroup")


def usable_cores(*, root: Path = Path("/"), affinity: int | None = None) -> int:
    """Whole cores, at least 1. `root` holds /proc and /sys; `affinity` is the scheduler's answer unless given."""
    return cores_of(len(os.sched_getaffinity(0)) if affinity is None else affinity, _quotas(root))


def cores_of(affinity: int, quotas: Iterable[str]) -> int:
    """The least of the cores that the scheduler gives and of each quota, a control group's "QUOTA PERIOD" in us.

    A part of a core counts for none: an engine thread that is stopped in the middle of a call costs more than it adds.
    """
    least = float(affinity)
    for text in quotas:
        quota, _, period = text.strip().partition(" ")
        # "max" is no quota; the first generation of control groups says -1.
        if quota.isdecimal() and period.isdecimal() and int(period):
            least = min(least, int(quota) / int(period))
    return max(1, int(least))


@cache
def eight_bits_overflow(root: Path = Path("/")) -> bool:
    """Whether ONNX Runtime's fast sums of 8-bit products are too narrow here: on x86 without instructions for them.

    Its slower kernels are exact; processors with VNNI need them not, and would lose speed.
    """
    lines = (line for line in _read(root / "proc/cpuinfo").splitlines() if line.startswith("flags"))
    flags = set(next(lines, "").split())
    return "avx2" in flags and not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}


def _quotas(root: Path) -> Iterator[str]:
    """Of the process's own control group and all above it, in both generations' places."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own = Path(path.strip().lstrip("/"))
        for group in (own, *own.parents):
            if not controllers:
                yield _read(root / _GROUPS / group / "cpu.max")
            elif "cpu" in controllers.split(","):
                folder = root / _GROUPS / "cpu" / group
                yield f"{_read(folder / 'cpu.cfs_quota_us').strip()} {_read(folder / 'cpu.cfs_period_us').strip()}"


def _read(path: Path) -> str:
    """Its text; "" where there is none, as on a machine without control groups."""
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
