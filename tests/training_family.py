"""A SuperNode, its SuperExec and apps as far as processes go: each does nothing but what its name says.

python training_family.py flower-supernode APPS     begins a flower-superexec
python training_family.py flower-superexec APPS     begins so many apps, which use a core each
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path


def tree(apps: int) -> list[str]:
    """The command line of such a SuperNode."""
    return [sys.executable, str(Path(__file__)), "flower-supernode", str(apps)]


def cpu_s(pid: int) -> float:
    """What a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def state(pid: int) -> str:
    """As in /proc: "T" stands still, "Z" has ended, "" is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def named(group: int, name: str) -> list[int]:
    """Processes of a group, but its leader, that have such a word in their command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and folder.name != str(group) and _group(int(folder.name)) == group:
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if name.encode() in words:
                found.append(int(folder.name))
    return found


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return 0


def _be(role: str, apps: str) -> None:
    me = [sys.executable, __file__]
    if role == "flower-supernode":
        subprocess.Popen([*me, "flower-superexec", apps])
    elif role == "flower-superexec":
        for _ in range(int(apps)):
            subprocess.Popen([*me, "an-app", apps])
    while role == "an-app":
        pass
    while True:
        time.sleep(60)


if __name__ == "__main__":
    _be(*sys.argv[1:])
