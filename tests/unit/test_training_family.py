"""Which processes belong to training, which of them do the work, and what all have used, from a /proc of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from nearmesh_agent.training.family import Family

ME, GROUP = os.getpid(), os.getpgrp()
TICKS = os.sysconf("SC_CLK_TCK")
# Ids that no process of this machine has: nothing that is found here is ever signalled.
SUPERNODE, SUPEREXEC, APP, CHILD, STRANGER, NURSERY = (2**22 + each for each in range(1, 7))


class Proc:
    """Files as /proc has them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "self").mkdir()
        self.put(ME, parent=1, command="warden")

    def put(
        self,
        pid: int,
        *,
        parent: int,
        command: str,
        group: int = 1,
        cpu_s: float = 0.0,
        state: str = "R",
        started: int = 7,
    ) -> None:
        place = self.folder / str(pid)
        (place / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
        fields = [state, parent, group, *[0] * 8, round(cpu_s * TICKS), 0, 0, 0, *[0] * 4, started]
        (place / "stat").write_text(f"{pid} (a) name (of)) " + " ".join(map(str, fields)))
        (place / "cmdline").write_text(command.replace(" ", "\0") + "\0" if command else "")

    def remove(self, pid: int) -> None:
        for name in ("stat", "cmdline", f"task/{pid}", "task", ""):
            place = self.folder / str(pid) / name
            place.unlink() if place.is_file() else place.rmdir()


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    made = Proc(tmp_path)
    made.put(SUPERNODE, parent=ME, command="/bin/python -I -S leash.py 12 /bin/python -m it flower-supernode --port 1")
    made.put(SUPEREXEC, parent=SUPERNODE, command="/bin/python /venv/bin/flower-superexec --parent-pid 12")
    made.put(APP, parent=SUPEREXEC, command="/bin/python /venv/bin/flwr-clientapp --token secret")
    made.put(STRANGER, parent=1, command="/bin/python /venv/bin/flwr-clientapp --token other")
    return made


def workers(family: Family) -> set[int]:
    family.look()
    return {process.pid for process in family.workers}


def test_apps_are_at_work_and_those_that_keep_the_connection_are_not(proc: Proc) -> None:
    family = Family(proc.folder)
    assert workers(family) == {APP}
    assert {process.pid for process in family.alive} == {SUPERNODE, SUPEREXEC, APP}


def test_what_an_app_brings_forth_is_at_work_as_well_and_stays_when_the_app_is_gone(proc: Proc) -> None:
    family = Family(proc.folder)
    proc.put(CHILD, parent=APP, command="loader")
    assert workers(family) == {APP, CHILD}
    proc.remove(APP)
    proc.put(CHILD, parent=ME, command="loader")
    assert workers(family) == {CHILD}


def test_one_that_is_found_by_its_group_alone_belongs_to_it(proc: Proc) -> None:
    family = Family(proc.folder)
    proc.put(CHILD, parent=1, group=GROUP, command="loader")
    assert workers(family) == {APP, CHILD}


@pytest.mark.parametrize("command", ["/bin/python /venv/bin/flower-superexec", ""])
def test_one_that_was_just_forked_is_at_work_once_it_is_itself(proc: Proc, command: str) -> None:
    family = Family(proc.folder)
    proc.put(CHILD, parent=SUPEREXEC, command=command)
    assert workers(family) == {APP}
    proc.put(CHILD, parent=SUPEREXEC, command="/venv/bin/flwr-clientapp")
    assert workers(family) == {APP, CHILD}


def test_the_nursery_is_left_alone_and_what_it_has_forked_is_at_work(proc: Proc) -> None:
    nursery = "/bin/python -m nearmesh_agent.training.nursery flower-nursery"
    proc.put(NURSERY, parent=SUPERNODE, command=nursery)
    # Its id is the smaller one where ids have begun anew.
    proc.put(CHILD, parent=NURSERY, group=GROUP, command=nursery)
    assert workers(Family(proc.folder)) == {APP, CHILD}


def test_an_id_that_another_process_has_by_now_says_nothing_of_the_former(proc: Proc) -> None:
    family = Family(proc.folder)
    assert workers(family) == {APP}
    proc.put(APP, parent=SUPERNODE, command="flower-superexec", started=8)
    assert workers(family) == set()


def test_what_they_used_is_not_lost_and_counted_once_while_one_ends(proc: Proc) -> None:
    family = Family(proc.folder)
    others = family.look()
    proc.put(APP, parent=SUPEREXEC, command="app", cpu_s=3.5)
    assert family.look() - others == pytest.approx(3.5)
    proc.put(APP, parent=SUPEREXEC, command="", cpu_s=3.5, state="Z")
    assert family.look() - others == pytest.approx(3.5)
    assert family.workers == []
    # Its parent has noticed, and its time is counted there.
    proc.remove(APP)
    proc.put(SUPEREXEC, parent=SUPERNODE, command="flower-superexec", cpu_s=3.5)
    assert family.look() - others == pytest.approx(3.5)
