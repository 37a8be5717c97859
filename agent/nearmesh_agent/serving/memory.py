"""What this process takes of the machine's memory, what it may take, and how freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from nearmesh.package import Package

MIB = 1024 * 1024
# Of what the machine or the container has, unless the operator says otherwise: the rest is for the agent itself, for
# requests on their way, and for the system's cache of files.
SHARE = 0.8

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Control groups, version 2 and 1: what a container may take. Without a bound they say "max", or nearly 2**63.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def budget(memory_budget_mib: int) -> int:
    """Bytes that loaded versions may take together; 0: a share of what the machine or its control group has."""
    if memory_budget_mib:
        return memory_budget_mib * MIB
    return int(SHARE * min([os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES, *map(_limit, _LIMITS)]))


def _limit(path: Path) -> float:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return float("inf")


def resident() -> int:
    """Bytes of this process that are in memory; 0 on a system that does not say."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


class Footprint:
    """What one version takes in memory: said by its package, measured, or estimated from its weights."""

    def __init__(self, declared_bytes: int = 0) -> None:
        """`declared_bytes` of 0: it is measured."""
        self._declared_bytes = declared_bytes
        # Of its weights' files; 0 where they are not known.
        self.weights_bytes = 0
        # 0 before any load.
        self.loaded_bytes = 0

    @property
    def needed_bytes(self) -> int:
        """Room to make for a load: before the first one, the weights twice and something for the rest."""
        return self.loaded_bytes or self._declared_bytes or 2 * self.weights_bytes + MIB

    def held_bytes(self, copies: int, hanging: int) -> int:
        """What it takes with its weights so many times in memory, 0 for not at all, and with engines that hang."""
        return (int(copies > 0) + hanging) * self.loaded_bytes + max(0, copies - 1) * self.weights_bytes

    def measured(self, grown_bytes: int) -> None:
        """Takes in by how much the process grew in a load; the first counts, since later ones find memory to reuse.

        Other work in the process blurs it, so the weights' size bounds it.
        """
        if not self.loaded_bytes:
            low = self.weights_bytes
            self.loaded_bytes = self._declared_bytes or max(low, min(grown_bytes, 4 * low + 16 * MIB))


def weights_bytes(folder: Path, package: Package) -> int:
    """Of the files that one node loads: the largest variant, of a pipeline that of each step."""
    largest: dict[str, int] = {}
    for variant in (*package.made_variants, *package.variants):
        size = sum(path.stat().st_size for name in variant.sources if (path := folder / name).exists())
        largest[variant.step] = max(largest.get(variant.step, 0), size)
    return sum(largest.values())


def _glibc(name: str) -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL(None), name)  # type: ignore[no-any-return]
    except (OSError, AttributeError):
        # Not glibc: its allocator has its own ways.
        return None


_trim, _mallopt = _glibc("malloc_trim"), _glibc("mallopt")
# Of glibc's malloc.h.
_M_ARENA_MAX = -8


def use_one_arena() -> None:
    """Lets all threads allocate from one heap; for the beginning of a process, before it has threads.

    `give_back` cannot trim the ends of the others, where engines that another thread loaded leave holes: over 200 swaps
    of a model with 4 MiB of weights the process went between 120 and 137 MiB, with one heap between 116.6 and 117.7.
    Small allocations are cached for each thread, and ONNX Runtime keeps its own pools, so that few wait for the lock.
    """
    if _mallopt:
        _mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Hands freed memory back to the system. Blocks for some milliseconds, without Python's lock.

    glibc keeps what was freed below the top of its heap. Measured with ONNX Runtime and 14 MiB of weights: a closed
    session left all of 18 to 35 MiB with the process, and 2 to 7 ms here gave all of it back.
    """
    if _trim:
        _trim(0)
