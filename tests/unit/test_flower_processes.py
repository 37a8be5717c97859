"""What Flower's processes are told, and that those which they start end with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nearmesh import flower_processes
from nearmesh.errors import NotInstalled
from nearmesh.flower_processes import environment, script


def test_flowers_processes_send_nothing_home_and_see_no_secret(tmp_path: Path) -> None:
    own = {
        "PATH": "/usr/bin",
        "HOME": "/root",
        "PGPASSWORD": "secret",
        "HTTPS_PROXY": "http://proxy",
        "FLWR_HOME": "/x",
    }
    found = environment(tmp_path, own)
    assert found == {
        "HOME": "/root",
        "PATH": f"{tmp_path / 'programs'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}/usr/bin",
        "FLWR_HOME": str(tmp_path),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
    }


def test_what_is_not_installed_is_named_with_the_way_to_it() -> None:
    assert Path(script("flower-superlink", "nearmesh-controlplane")).exists()
    with pytest.raises(NotInstalled, match=r"pip install 'nearmesh-agent\[rounds\]'"):
        script("flower-of-another-time", "nearmesh-agent")


def test_a_program_that_flower_starts_ends_with_its_starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    program = tmp_path / "flwr-serverapp"
    program.write_text('#!/bin/sh\necho "$1"\nexec sleep 60\n')
    program.chmod(0o755)
    monkeypatch.setattr(flower_processes.sys, "executable", str(python))
    found = environment(tmp_path)
    starter = subprocess.Popen(
        ["/bin/sh", "-c", "flwr-serverapp asked & wait"], env=found, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    assert starter.stdout.readline() == "asked\n"
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    # It comes to an end when nobody has the other end of the pipe any more; else the test does not.
    assert starter.stdout.read() == ""
    starter.stdout.close()


def test_a_command_of_ours_stands_in_the_place_of_a_program_of_flowers(tmp_path: Path) -> None:
    found = environment(tmp_path, instead={"flwr-serverapp": (sys.executable, "-c", "import sys; print(sys.argv[1:])")})
    done = subprocess.run(["/bin/sh", "-c", "flwr-serverapp a 'b c'"], env=found, capture_output=True, text=True)
    assert done.stdout == "['a', 'b c']\n"
