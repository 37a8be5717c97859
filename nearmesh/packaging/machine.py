"""What this machine is, as far as it decides how fast variants are."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from nearmesh.report import Machine

_CPUINFO = Path("/proc/cpuinfo")
# Instructions for 8 and 16 bits, as Linux names them on x86 and on ARM.
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "asimddp", "i8mm", "fphp", "sve")


def this_machine(cpuinfo: Path = _CPUINFO) -> Machine:
    """By what its kernel says."""
    try:
        text = cpuinfo.read_text("utf-8")
    except OSError:
        text = ""
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    flags = set((said.get("flags") or said.get("Features") or "").split())
    return Machine(
        processor=said.get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        features=tuple(feature for feature in _FEATURES if feature in flags),
    )
