"""How many cores this process may use: what the scheduler and its control group leave, not what the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
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
