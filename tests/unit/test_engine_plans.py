"""Plans on disk: what their name depends on, that they are whole, and that they do not fill the disk."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
from nearmesh_agent.engines.tensorrt.plans import PlanKey, PlanStore, file_sha256, precision_of
from nearmesh_agent.engines.tensorrt.shapes import Span

from nearmesh.errors import EngineFailure

SPANS = {"a": Span((1, 3), (4, 3), (8, 3)), "b": Span((2,), (2,), (2,))}
KEY = PlanKey(
    onnx_sha256="0" * 64,
    architecture="sm_90",
    library="tensorrt",
    version="10.9.0",
    precision="graph",
    profile=SPANS,
)
PLAN = bytes(range(256)) * 40


def key(number):
    return replace(KEY, version=f"10.{number}")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "plans"


@pytest.fixture
def store(folder):
    return PlanStore(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"onnx_sha256": "1" * 64},
        {"architecture": "none"},
        {"architecture": "sm_89"},
        {"library": "tensorrt-rtx"},
        {"version": "10.9.1"},
        {"precision": "fp16"},
        {"profile": {}},
        {"profile": {**SPANS, "a": Span((1, 3), (4, 3), (9, 3))}},
        {"profile": {**SPANS, "a": Span((1, 3), (8, 3), (8, 3))}},
        {"profile": {"c": SPANS["a"], "b": SPANS["b"]}},
    ],
)
def test_another_key_is_another_plan(change):
    assert replace(KEY, **change).name != KEY.name


def test_equal_keys_name_one_plan():
    turned = {name: SPANS[name] for name in reversed(SPANS)}
    assert replace(KEY, profile=turned).name == KEY.name
    # What is on nodes' disks must be found by the next release.
    assert KEY.name == "92d04d9f2d3146df98314aa060bddf45"


@pytest.mark.parametrize(
    ("variant", "expected"), [("fp16", "fp16"), ("rtx-FP16", "fp16"), ("fp32", "graph"), ("int8", "graph")]
)
def test_precision_of(variant, expected):
    assert precision_of(variant) == expected


def test_file_sha256(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"abc")
    assert file_sha256(tmp_path / "m.onnx") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(EngineFailure, match=r"none\.onnx: No such file"):
        file_sha256(tmp_path / "none.onnx")


def test_a_plan_comes_back(store, folder):
    assert store.get(KEY) is None
    store.put(KEY, PLAN)
    assert store.get(KEY) == PLAN
    assert store.get(replace(KEY, precision="fp16")) is None
    assert PlanStore(folder).get(KEY) == PLAN
    store.put(KEY, b"newer")
    assert store.get(KEY) == b"newer"
    assert [path.name for path in folder.iterdir()] == [f"{KEY.name}.plan"]
    store.discard(KEY)
    store.discard(KEY)
    assert store.get(KEY) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:-1] + b"x",
        lambda data: b"x" + data[1:],
        lambda data: PLAN,
    ],
    ids=["empty", "cut", "longer", "flipped", "head", "headless"],
)
def test_a_damaged_plan_is_discarded(store, folder, damage, caplog):
    store.put(KEY, PLAN)
    file = folder / f"{KEY.name}.plan"
    file.write_bytes(damage(file.read_bytes()))
    assert store.get(KEY) is None
    assert not file.exists() and "discarding a damaged plan" in caplog.text
    store.put(KEY, PLAN)
    assert store.get(KEY) == PLAN


def test_a_plan_of_another_key_under_this_name_is_discarded(store, folder):
    other = key(5)
    store.put(other, PLAN)
    (folder / f"{other.name}.plan").rename(folder / f"{KEY.name}.plan")
    assert store.get(KEY) is None and list(folder.iterdir()) == []


def test_a_disk_that_refuses(folder):
    folder.write_text("a file where the folder should be")
    with pytest.raises(EngineFailure, match="cannot be kept"):
        PlanStore(folder).put(KEY, PLAN)
    with pytest.raises(EngineFailure, match="cannot be made"):
        PlanStore(folder).provider_folder(KEY)
    assert PlanStore(folder).get(KEY) is None


def test_a_write_that_fails_leaves_the_old_plan(store, folder, monkeypatch):
    store.put(KEY, PLAN)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineFailure, match="No space left"):
        store.put(KEY, b"newer")
    assert store.get(KEY) == PLAN and len(list(folder.iterdir())) == 1


def age(path, seconds):
    past = time.time() - seconds
    os.utime(path, (past, past))


def test_those_nobody_asked_for_leave_first(folder):
    store = PlanStore(folder, most_bytes=4 * len(PLAN))
    for number in range(3):
        store.put(key(number), PLAN)
        age(folder / f"{key(number).name}.plan", 1000 - number)
    # The oldest is asked for once more.
    assert store.get(key(0)) == PLAN
    store.put(key(3), PLAN)
    assert [store.get(key(number)) is not None for number in range(4)] == [True, False, True, True]


def test_the_newest_stays_however_large(folder):
    store = PlanStore(folder, most_bytes=10)
    store.put(key(0), PLAN)
    store.put(key(1), PLAN)
    assert store.get(key(0)) is None and store.get(key(1)) == PLAN


def test_folders_of_the_provider_are_kept_and_bounded_likewise(folder):
    store = PlanStore(folder, most_bytes=2 * len(PLAN))
    first = store.provider_folder(key(0))
    (first / "engine").write_bytes(PLAN)
    assert store.provider_folder(key(0)) == first and (first / "engine").exists()
    age(first, 100)
    store.put(key(1), PLAN)
    store.put(key(2), b"small")
    assert not first.exists() and store.get(key(1)) == PLAN and store.get(key(2)) == b"small"


def test_what_a_crash_left_goes_in_time(store, folder):
    folder.mkdir()
    old, young = folder / "a.plan.1.unfinished", folder / "b.plan.2.unfinished"
    for file in (old, young):
        file.write_bytes(b"half")
    age(old, 2 * 24 * 3600)
    store.put(KEY, PLAN)
    assert not old.exists() and young.exists()
