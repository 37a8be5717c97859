"""What the serving benchmark makes before it measures: models, environments, command lines; and how it reads /proc."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from benchmarks.serving import environments, floors, models
from benchmarks.serving.environments import ENVIRONMENTS, NotInstalled, interpreter, pinned
from benchmarks.serving.figures import Floor
from benchmarks.serving.models import MODELS, Model, difference
from benchmarks.serving.processes import _Stat, family, peak_bytes
from benchmarks.serving.systems import ECHO, PEERS, SYSTEMS, Start, variables
from nearmesh.package import load

# Models.


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Model]:
    """The small models, in a folder of the test's."""
    monkeypatch.setattr(models, "BUILD", tmp_path)
    found = {name: MODELS[name] for name in ("tiny", "tiny-int8", "image-int8")}
    for model in found.values():
        models.make(model)
    return found


@pytest.mark.parametrize("name", ["tiny", "tiny-int8"])
def test_a_model_is_a_package_whose_warm_up_it_passes(made: dict[str, Model], name: str) -> None:
    model = made[name]
    package = load(model.folder)
    assert (package.name, package.batching.max_batch) == (name, 32)
    assert [(spec.name, spec.dtype, spec.shape) for spec in package.inputs] == [("x", "FP32", (-1, 64))]
    inputs, outputs = models.load(model.folder, package.warmup[0].file)
    source = package.variants[0].source.path
    assert source is not None
    session = onnxruntime.InferenceSession(model.folder / source, providers=["CPUExecutionProvider"])
    found = dict(zip(outputs, session.run(list(outputs), dict(inputs)), strict=True))
    assert difference(found, outputs) == 0


def test_requests_differ_and_have_an_answer_each(made: dict[str, Model]) -> None:
    inputs, outputs = models.load(made["tiny"].folder)
    assert inputs["x"].shape == (models.REQUESTS, 64)
    assert len(np.unique(outputs["y"], axis=0)) == models.REQUESTS


@pytest.mark.parametrize("name", ["tiny", "tiny-int8", "image-int8"])
def test_another_requests_answer_is_told_from_the_right_one(made: dict[str, Model], name: str) -> None:
    _, outputs = models.load(made[name].folder)
    rows = [{output: array[i] for output, array in outputs.items()} for i in range(models.REQUESTS)]
    pairs = ((one, other) for one in rows for other in rows if one is not other)
    assert min(difference(one, other) for one, other in pairs) > made[name].tolerance


def test_the_smaller_precision_says_about_the_same(made: dict[str, Model]) -> None:
    (_, full), (_, small) = (models.load(made[name].folder) for name in ("tiny", "tiny-int8"))
    assert 0 < difference(small, full) < made["tiny-int8"].tolerance
    assert made["tiny-int8"].weights.stat().st_size < made["tiny"].weights.stat().st_size


def test_a_model_is_made_once_and_again_when_its_source_changes(
    made: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = made["tiny"].weights
    before = weights.stat().st_mtime_ns
    models.make(made["tiny"])
    assert weights.stat().st_mtime_ns == before
    monkeypatch.setattr(models, "_made_from", lambda: "something else")
    models.make(made["tiny"])
    assert weights.stat().st_mtime_ns > before


def test_the_engine_alone_is_measured_in_every_way_and_batch(made: dict[str, Model]) -> None:
    model = made["tiny"]
    found = Floor(round=1, model="tiny", **floors.measure(str(model.folder), str(model.weights), 8, seconds=0))
    cores = len(os.sched_getaffinity(0))
    assert {(way["sessions"], way["threads"]) for way in found.ways} == {(1, cores), (cores, 1)}
    assert sorted(way["batch"] for way in found.ways) == sorted(2 * floors.BATCHES)
    assert found.best["per_s"] > found.alone["per_s"] > 0
    assert found.peak_bytes > 1_000_000


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"y": np.array([1.0, 2.0])}, 0.0),
        ({"y": np.array([[1.0, 1.5]])}, 0.25),
        ({"y": np.array([1.0])}, float("inf")),
        ({"z": np.array([1.0, 2.0])}, float("inf")),
        ({"y": np.array([1.0, np.nan])}, float("inf")),
    ],
)
def test_a_difference_is_relative_to_the_largest_number(answer: Any, expected: float) -> None:
    assert difference(answer, {"y": np.array([1.0, 2.0])}) == pytest.approx(expected)


# Environments and systems.


def test_every_peer_has_exact_versions_and_our_engine() -> None:
    for environment in ENVIRONMENTS.values():
        assert all("==" in package for package in environment.packages)
    assert pinned("onnxruntime") == f"onnxruntime=={onnxruntime.__version__}"


def test_a_package_that_is_not_pinned_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("numpy==2.0\n")
    with pytest.raises(NotInstalled, match="does not pin onnxruntime"):
        pinned("onnxruntime", tmp_path / "requirements.txt")


def test_an_installation_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "BUILD", tmp_path)
    monkeypatch.setattr(environments, "interpreter", lambda environment: str(tmp_path / "no-such-python"))
    with pytest.raises(NotInstalled, match=r"kserve: .*no-such-python"):
        environments.make(ENVIRONMENTS["kserve"])


def test_a_finished_environment_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "BUILD", tmp_path)
    monkeypatch.setattr(environments, "_run", lambda line, name: pytest.fail(f"{name} ran {line}"))
    environment = ENVIRONMENTS["mlserver"]
    environment.folder.mkdir(parents=True)
    wanted = [*environment.packages, pinned("onnxruntime")]
    (environment.folder / environments.STAMP).write_text("".join(f"{line}\n" for line in wanted))
    environments.make(environment)


def test_without_a_system_python_pytriton_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments.shutil, "which", lambda name, path: None)
    with pytest.raises(NotInstalled, match=r"system's own python3\.11"):
        interpreter(ENVIRONMENTS["pytriton"])
    assert interpreter(ENVIRONMENTS["kserve"]).endswith("python3.11")


@pytest.fixture
def start(tmp_path: Path) -> Start:
    return Start(model=MODELS["image"], folder=tmp_path, grpc_port=1001, http_port=1002)


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_every_system_is_told_its_model_and_its_ports(name: str, start: Start) -> None:
    line = SYSTEMS[name].command(start)
    said = " ".join(line) + "".join(file.read_text() for file in start.folder.iterdir())
    assert str(start.model.folder) in said
    assert str(SYSTEMS[name].port(start)) in said
    assert SYSTEMS[name].port(start) == (1002 if name == "litserve" else 1001)


@pytest.mark.parametrize("name", [*PEERS, ECHO])
def test_every_server_file_is_there(name: str, start: Start) -> None:
    scripts = [Path(word) for word in SYSTEMS[name].command(start) if word.endswith(".py")]
    assert all(script.is_file() for script in scripts)
    assert scripts or name == "mlserver"


def test_mlserver_batches(start: Start) -> None:
    SYSTEMS["mlserver"].command(start)
    settings = json.loads((start.folder / "model-settings.json").read_text())
    assert settings["max_batch_size"] == 8
    assert settings["max_batch_time"] > 0


def test_a_task_of_microseconds_has_one_thread(start: Start) -> None:
    assert start.task(0).threads == len(os.sched_getaffinity(0))
    assert replace(start, model=MODELS["tiny"]).task(0).threads == 1


def test_servers_start_no_threads_beside_the_engines() -> None:
    found = variables({"PATH": "/bin", "OMP_NUM_THREADS": "64"})
    assert (found["PATH"], found["OMP_NUM_THREADS"]) == ("/bin", "1")


def test_a_process_whose_name_has_brackets_is_understood() -> None:
    tail = "S 7 7 5 0 -1 4194560 1 2 3 4 100 50 30 20 20 0 1"
    found = _Stat.parse(f"42 (a) b) {tail}")
    assert (found.pid, found.parent, found.session) == (42, 7, 5)
    assert found.cpu_s == pytest.approx(200 / os.sysconf("SC_CLK_TCK"))


def test_a_process_is_of_its_own_family_and_has_memory() -> None:
    assert os.getpid() in {stat.pid for stat in family(os.getpid())}
    assert peak_bytes(os.getpid()) > 1_000_000
