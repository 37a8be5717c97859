"""One process for each folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nearmesh.errors import AlreadyRunning
from nearmesh.process import only_one


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
