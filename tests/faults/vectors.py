"""A node's vectors killed while they are written: their process, Milvus Lite under it, and a move to another store."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearmesh.process import leashed
from tests.faults.vector_store_worker import applied
from tests.signals import send

WHAT = ("the process", "Milvus Lite", "a move")
# From when it writes on, at any moment of these; a move begins with the start of another Lite, which takes a second.
_KILL_AFTER_S = {"the process": (0.02, 1.5), "Milvus Lite": (0.02, 1.5), "a move": (0.8, 4.0)}
_SOON_S = 60.0


@dataclass
class Seen:
    """What the worker has said, over all its lives."""

    # By id, which operation wrote it, after the last that is known to be there.
    state: dict[str, int] = field(default_factory=dict)
    number: int = 0
    acknowledged: int = 0
    # Operations that were there after a kill and had not been acknowledged: they may be.
    more: int = 0
    # What was killed last, for whoever reads that something was lost.
    killed: str = ""

    def check(self, found: dict[str, Any]) -> None:
        """Every acknowledged operation is there, none twice, and what it deleted stays deleted."""
        number = found["state"].get("count", 0)
        assert self.acknowledged <= number <= self.acknowledged + 1, (self.killed, number, self.acknowledged)
        self.more += number - self.acknowledged
        while self.number < number:
            self.number += 1
            self.state = applied(self.state, self.number)
        assert found["state"] == self.state, self.killed
        assert found["count"] == len(self.state), self.killed
        self.acknowledged = number


def killed(folder: Path, whats: Sequence[str], kills: int, seed: int = 1) -> dict[str, Any]:
    """Each of them so many times, one after the other; the figures. Raises AssertionError for what was lost."""
    folder.mkdir(parents=True, exist_ok=True)
    seen, started_s = Seen(), time.monotonic()
    operations = []
    for what in whats:
        before, chance = seen.acknowledged, random.Random(seed)
        for _ in range(kills):
            _one_life(folder, what, seen, chance.uniform(*_KILL_AFTER_S[what]))
            seen.killed = what
        operations.append(seen.acknowledged - before)
    # A last look at what the last kill left.
    with _worker(folder, "write") as process:
        seen.check(json.loads(_line(process)))
    return {
        "kills": kills * len(whats),
        "operations": seen.number,
        "fewest_operations": min(operations),
        "rows": len(seen.state),
        "written and not acknowledged": seen.more,
        "seconds": round(time.monotonic() - started_s, 1),
    }


def _one_life(folder: Path, what: str, seen: Seen, after_s: float) -> None:
    with _worker(folder, "move" if what == "a move" else "write") as process:
        found = json.loads(_line(process))
        seen.check(found)
        assert process.stdout is not None
        end = time.monotonic() + after_s
        while time.monotonic() < end:
            seen.acknowledged = int(_line(process))
        if what == "Milvus Lite":
            send(found["lite"], signal.SIGKILL)
            # Writes go on meanwhile, and for some time after it is back.
            end = time.monotonic() + 2 * after_s
            while time.monotonic() < end:
                seen.acknowledged = int(_line(process))
        process.kill()
        # What it had said before it died; the last word may be half of one.
        for line in process.stdout:
            if line.endswith("\n"):
                seen.acknowledged = int(line)


@contextmanager
def _worker(folder: Path, what: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.faults.vector_store_worker", str(folder), what]
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(leashed(command), stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the worker ended with {process.wait(_SOON_S)}"
    return line
