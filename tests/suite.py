"""The whole test suite, in the time that `make test` may take: `python -m tests.suite`.

Most tests wait more than they work, so that several at a time are done sooner. Faults whose times are measured come one
by one afterwards. Beside those that are in no hurry runs what only computes, in the kernel's idle class, which has the
processor when nothing else wants it; the live run, where each late call counts, has the machine for itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# Two cores are busy with so many.
WORKERS = 4
# As many as the timed faults leave room for.
IDLE_WORKERS = 2
# Those that take half a minute and more go first: short ones fill up what is left at the end.
LONGEST = [
    f"tests/{name}.py"
    for name in (
        "integration/test_readme",
        "integration/test_federated_run",
        "faults/test_federated",
        "faults/test_vectors",
        "contract/test_vectors_store",
        "integration/test_stock_app",
        "integration/test_agent",
        "integration/test_p9_what_leaves_a_site",
        "integration/test_islands",
        "integration/test_rollouts",
        "faults/test_durability",
        "integration/test_canaries",
        "integration/test_fleet",
        "integration/test_scale_to_zero",
        "integration/test_vectors_process",
        "integration/test_vectors_sites",
        "integration/test_control_planes",
        "integration/test_wheels",
    )
]
UNTIMED_FAULTS = [
    f"tests/faults/test_{name}.py" for name in ("federated", "vectors", "durability", "publishing", "pulls", "fuzz")
]
SIDE_BY_SIDE = [*dict.fromkeys([*LONGEST, *UNTIMED_FAULTS]), "tests/integration", "tests/contract"]
LIVE = ["tests/faults/test_live.py"]
TIMED = ["tests/faults", *(f"--ignore={path}" for path in (*UNTIMED_FAULTS, *LIVE))]
IDLE = ["models", "tests/unit"]


def main() -> int:
    """0: all passed."""
    began_s = time.monotonic()
    codes = [told("side by side", pytest(*workers(WORKERS), *SIDE_BY_SIDE)), told("the live run", pytest(*LIVE))]
    with beside(pytest(*workers(IDLE_WORKERS), *IDLE)) as idle:
        codes.append(told("timed faults", pytest(*TIMED)))
    codes.append(idle.returncode)
    say(f"all of it: {time.monotonic() - began_s:.0f} s")
    return status(codes)


def status(codes: Sequence[int]) -> int:
    """Of several processes; one that a signal ended has a negative one."""
    return int(any(codes))


def told(what: str, command: Sequence[str]) -> int:
    """Its exit status; how long it took is said."""
    began_s = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    say(f"{what}: {time.monotonic() - began_s:.0f} s")
    return code


@contextmanager
def beside(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Runs in the idle class meanwhile, and to its end; what it says comes then."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
        try:
            yield process
            process.wait()
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        sys.stdout.buffer.write(output.read())


def pytest(*arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", "pytest", *arguments]


def workers(count: int) -> Sequence[str]:
    """A file's tests share what they start."""
    return ["-n", str(count), "--dist", "loadfile", "--no-loadscope-reorder"]


def say(words: str) -> None:
    print(words, flush=True)


if __name__ == "__main__":
    sys.exit(main())
