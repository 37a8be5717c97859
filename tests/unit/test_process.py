"""One process for each folder, and what is known of one that is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nearmesh.errors import AlreadyRunning
from nearmesh.process import has_died, leashed, only_one


def test_a_folder_is_held_by_one_and_the_other_is_told_by_whom(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "at the first start"
    with only_one(folder, "an agent"):
        with pytest.raises(AlreadyRunning) as caught, only_one(folder, "an agent"):
            pass
        assert caught.value.message == f"an agent in {folder} is running already (pid {os.getpid()})"
    with only_one(folder, "an agent"):
        pass


def test_a_lock_that_a_dead_process_left_behind_holds_nobody(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("4194305")
    with only_one(tmp_path, "an agent"):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_failure_inside_gives_the_folder_back(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), only_one(tmp_path, "an agent"):
        raise ValueError("inside")
    with only_one(tmp_path, "an agent"):
        pass


def test_it_is_known_that_a_process_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "alive" / "7"
    assert not has_died(path)
    text = "import pathlib, sys; from nearmesh.process import hold_for_life; hold_for_life(pathlib.Path(sys.argv[1]))"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{text}; print(flush=True); input()", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None and child.stdout is not None
    with child.stdin, child.stdout:
        child.stdout.readline()
        assert not has_died(path)
        child.kill()
        child.wait()
        assert has_died(path)


def test_one_that_is_about_to_say_that_it_lives_counts_as_alive(tmp_path: Path) -> None:
    (tmp_path / "7").touch()
    assert not has_died(tmp_path / "7")


@pytest.mark.skipif(sys.platform != "linux", reason="priorities as Linux has them")
@pytest.mark.parametrize("nice", [0, 7, 19])
def test_a_child_gives_way_as_far_as_it_is_told_and_so_does_its_session(nice: int) -> None:
    autogroup = Path("/proc/self/autogroup")
    own = os.getpriority(os.PRIO_PROCESS, 0)
    says = "import os, pathlib as p; a = p.Path('/proc/self/autogroup'); print(os.getpriority(os.PRIO_PROCESS, 0)); "
    says += "print(a.read_text() if a.exists() else '')"
    command = leashed([sys.executable, "-I", "-c", says], nice=nice)
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, start_new_session=True).stdout
    assert int(said.split()[0]) == max(own, nice)
    # Where the kernel has none of that, or it is switched off, there is nothing to read.
    if nice and "nice" in said and os.access(autogroup, os.R_OK):
        assert said.split()[-1] == str(nice)
