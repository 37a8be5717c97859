"""How many cores there are, from what schedulers and control groups of several machines say."""

from __future__ import annotations

import os

import pytest
from nearmesh_agent.engines.cores import cores_of, eight_bits_overflow, usable_cores


@pytest.mark.parametrize(
    ("affinity", "quotas", "expected"),
    [
        (8, [], 8),
        (8, ["max 100000"], 8),
        (8, ["200000 100000"], 2),
        (8, ["200000 100000\n", "max 100000\n"], 2),
        (8, ["800000 100000", "300000 100000"], 3),
        (2, ["800000 100000"], 2),
        # Parts of a core count for none, and there is always one.
        (8, ["250000 100000"], 2),
        (8, ["50000 100000"], 1),
        (8, ["30000 20000"], 1),
        # The first generation's way to say that there is no quota, and files that are not there or make no sense.
        (8, ["-1 100000"], 8),
        (8, ["", " ", "200000", "200000 0", "many 100000"], 8),
    ],
)
def test_cores_of(affinity, quotas, expected):
    assert cores_of(affinity, quotas) == expected


def machine(root, *, own, **files):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(own)
    for path, text in files.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_a_container_sees_its_own_quota_at_the_root(tmp_path):
    machine(tmp_path, own="0::/\n", **{"cpu.max": "300000 100000\n"})
    assert usable_cores(root=tmp_path, affinity=16) == 3


def test_a_quota_of_a_group_above_counts(tmp_path):
    files = {"system.slice/cpu.max": "200000 100000\n", "system.slice/agent.service/cpu.max": "max 100000\n"}
    machine(tmp_path, own="0::/system.slice/agent.service\n", **files)
    assert usable_cores(root=tmp_path, affinity=16) == 2


def test_control_groups_of_the_first_generation(tmp_path):
    files = {"cpu/docker/a1/cpu.cfs_quota_us": "400000\n", "cpu/docker/a1/cpu.cfs_period_us": "100000\n"}
    machine(tmp_path, own="12:cpuset:/docker/a1\n5:cpu,cpuacct:/docker/a1\n1:name=systemd:/docker/a1\n", **files)
    assert usable_cores(root=tmp_path, affinity=16) == 4
    assert usable_cores(root=tmp_path, affinity=2) == 2


def test_a_machine_without_control_groups(tmp_path):
    assert usable_cores(root=tmp_path, affinity=5) == 5


def test_this_machine():
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("flags", "overflow"),
    [
        ("fpu sse2 avx2", True),
        ("fpu avx2 avx512f", True),
        ("fpu avx2 avx512f avx512_vnni", False),
        ("fpu avx2 avx_vnni", False),
        # No x86: it has no flags, but features.
        ("", False),
    ],
)
def test_p5_where_sums_of_8_bits_overflow(tmp_path, flags, overflow):
    info = tmp_path / "proc" / "cpuinfo"
    info.parent.mkdir()
    info.write_text(f"processor\t: 0\nflags\t\t: {flags}\n" if flags else "Features\t: fp asimd asimddp\n")
    assert eight_bits_overflow(tmp_path) is overflow


def test_a_system_that_does_not_say_what_its_processor_is(tmp_path):
    assert eight_bits_overflow(tmp_path) is False
