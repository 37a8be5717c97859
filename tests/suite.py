"""The whole test suite, in the time that `make test` may take: `python -m tests.suite`.

Most tests wait more than they work, so that several at a time are done sooner. Faults whose times are measured come one
by one afterwards. What only computes runs beside those in the kernel's idle class, which has the processor when nothing
else wants it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

# Two cores are busy with so many.
WORKERS = 4
# As many as the timed faults leave room for.
IDLE_WORKERS = 2
# Whole meshes first: short files fill up what is left at the end.
LONGEST = ["tests/integration/test_readme.py", "tests/integration/test_federated_run.py"]
UNTIMED_FAULTS = [
    f"tests/faults/test_{name}.py" for name in ("federated", "durability", "vectors", "publishing", "pulls", "fuzz")
]
SIDE_BY_SIDE = [*LONGEST, *UNTIMED_FAULTS, "tests/integration"]
TIMED = ["tests/faults", *(f"--ignore={path}" for path in UNTIMED_FAULTS)]
IDLE = ["tests/contract", "models", "tests/unit"]


def main() -> int:
    """0: all passed."""
    codes = [side_by_side(), timed()]
    return max(codes)


def side_by_side() -> int:
    began_s = time.monotonic()
    code = subprocess.run(pytest(*workers(WORKERS), *SIDE_BY_SIDE), check=False).returncode
    say(f"side by side: {time.monotonic() - began_s:.0f} s")
    return code


def timed() -> int:
    began_s = time.monotonic()
    with tempfile.TemporaryFile() as said:
        idle = subprocess.Popen(pytest(*workers(IDLE_WORKERS), *IDLE), stdout=said, stderr=subprocess.STDOUT)
        os.sched_setscheduler(idle.pid, os.SCHED_IDLE, os.sched_param(0))
        try:
            code = subprocess.run(pytest(*TIMED), check=False).returncode
            say(f"timed faults: {time.monotonic() - began_s:.0f} s; beside them:")
            beside = idle.wait()
        finally:
            idle.kill()
            idle.wait()
        said.seek(0)
        sys.stdout.buffer.write(said.read())
    say(f"both: {time.monotonic() - began_s:.0f} s")
    return max(code, beside)


def pytest(*arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", "pytest", *arguments]


def workers(count: int) -> Sequence[str]:
    """A file's tests share what they start."""
    return ["-n", str(count), "--dist", "loadfile", "--no-loadscope-reorder"]


def say(words: str) -> None:
    print(words, flush=True)


if __name__ == "__main__":
    sys.exit(main())
