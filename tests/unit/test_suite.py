"""`make test` leaves no test out, and runs none twice."""

from __future__ import annotations

from pathlib import Path

from tests import suite

ROOT = Path(__file__).parents[2]


def files(*given: str) -> set[Path]:
    """With tests in them, of a command line of pytest's."""
    left_out = {ROOT / word.removeprefix("--ignore=") for word in given if word.startswith("--ignore=")}
    paths = [ROOT / word for word in given if not word.startswith("--")]
    found = {file for path in paths for file in ([path] if path.is_file() else path.rglob("test_*.py"))}
    return found - left_out


def test_each_file_is_in_one_part_of_the_suite() -> None:
    parts = [files(*part) for part in (suite.SIDE_BY_SIDE, suite.LIVE, suite.TIMED, suite.IDLE)]
    everything = {*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "models").rglob("test_*.py")}
    assert everything == set().union(*parts)
    assert sum(map(len, parts)) == len(everything)
    assert all((ROOT / path).is_file() for path in (*suite.LONGEST, *suite.UNTIMED_FAULTS))


def test_a_part_that_fails_or_is_killed_fails_the_suite() -> None:
    assert suite.status([0, 0, 0, 0]) == 0
    assert suite.status([0, 1, 0, 0]) == suite.status([0, 0, -9, 0]) == 1
