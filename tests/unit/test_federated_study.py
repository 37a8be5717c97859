"""The studies of federated runs: that graphs say what recipes say, and that rounds gain what the page claims."""

from __future__ import annotations

import csv
import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.federated import hospitals, mesh_page, page, speakers
from benchmarks.federated.comparison import Alone, Comparison, Split, compare_split
from benchmarks.federated.study import PACKAGES, Data, Study
from nearmesh.package import load
from nearmesh.packaging.release import release

COLUMNS = hospitals.STUDY.recipe.COLUMNS
STUDIES = pytest.mark.parametrize("study", [speakers.STUDY, hospitals.STUDY], ids=lambda study: study.name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made up, in the form of the real ones: digits are bands that are loud, speakers shift them."""
    folder = tmp_path_factory.mktemp("data")
    drawn = np.random.default_rng(3)
    speaker, digit, take = (a.ravel() for a in np.meshgrid(range(6), range(10), range(37, 50), indexing="ij"))
    x = drawn.normal(-14, 1, (len(digit), 32, 16))
    x[np.arange(len(digit)), 3 * digit + speaker // 3] += 4
    (folder / "fsdd_speakers").mkdir()
    np.savez(
        folder / "fsdd_speakers" / "logmel_32x16.npz", x=x.astype(np.float16), digit=digit, speaker=speaker, take=take
    )
    (folder / "heart_disease_sites").mkdir()
    with (folder / "heart_disease_sites" / "patients.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["site", *COLUMNS, "num"])
        writer.writerows(_patient(site, drawn) for site in hospitals.SITES for _ in range(120))
    return folder


def _patient(site: str, drawn: np.random.Generator) -> list[object]:
    """Exercise that hurts means disease, mostly; one hospital never looks at the vessels."""
    row: dict[str, object] = {"age": drawn.integers(30, 75), "sex": drawn.integers(2), "cp": drawn.integers(1, 5)}
    row |= {"trestbps": drawn.integers(90, 180), "chol": drawn.choice([0, 220, 300]), "fbs": drawn.choice(["", 0, 1])}
    row |= {"restecg": drawn.integers(3), "thalach": drawn.integers(80, 190), "exang": drawn.integers(2)}
    row |= {"oldpeak": round(float(drawn.normal(1, 1)), 1), "slope": drawn.choice(["", 1, 2, 3])}
    row |= {"ca": "" if site == "va" else drawn.integers(4), "thal": drawn.choice(["", 3, 6, 7])}
    ill = drawn.random() < (0.9 if row["exang"] else 0.1)
    return [site, *(row[name] for name in COLUMNS), int(ill)]


@STUDIES
def test_the_graph_answers_what_the_recipe_says_it_answers(study: Study, data: Path) -> None:
    """Preprocessing is in both: raw numbers go in, missing ones too."""
    from onnxruntime import InferenceSession

    drawn = np.random.default_rng(0)
    arrays = {name: array + drawn.normal(0, 0.3, array.shape) for name, array in study.first(data).items()}
    session = InferenceSession(study.graph(arrays).SerializeToString())
    for site in study.read(data, 0).values():
        answered = session.run(["scores"], dict(site.train.inputs))[0]
        np.testing.assert_allclose(answered, study.recipe.outputs(arrays, site.train.inputs), atol=1e-5)


@STUDIES
def test_the_package_passes_its_own_gate_and_names_the_parameters_that_it_trains(
    study: Study, data: Path, tmp_path: Path
) -> None:
    folder = study.make_package(data, tmp_path / study.name)
    artifact = release(folder, tmp_path)
    assert {"fp32.onnx", "int8.onnx"} <= {file.title for file in artifact.manifest.files}
    training = load(folder).training
    assert training and set(training.parameters) == study.first(data).keys()


@STUDIES
def test_rounds_come_near_the_pooled_model_and_beat_each_site_alone_elsewhere(study: Study, data: Path) -> None:
    settings = tomllib.loads((PACKAGES / study.name / "model.toml").read_text())["training"]["settings"]
    found = compare_split(replace(study, rounds=4), study.read(data, 0), study.first(data), settings, 0)
    assert found.first < found.federated[-1] and found.of_pooled > 0.9
    assert len(found.federated) == 4 and [one.site for one in found.alone] == list(study.sites)


@STUDIES
def test_sites_share_no_example_and_the_publisher_has_others(study: Study, data: Path) -> None:
    parts = [part for site in study.read(data, 0).values() for part in (site.train, site.held_back)]
    parts += study.sets(data).values()
    rows = [row.tobytes() for part in parts for row in _input(part)]
    assert len(rows) == len(set(rows)) > 400


def test_each_speaker_is_at_one_site_and_the_folders_hold_the_first_split(data: Path, tmp_path: Path) -> None:
    asked = speakers.write_sites(data, tmp_path)
    for site, parts in speakers.read(data, 0).items():
        assert asked[site] == {"path": str(tmp_path / site), "format": "arrays"}
        with np.load(tmp_path / site / "held_back.npz") as found:
            np.testing.assert_array_equal(found["input.logmel"], parts.held_back.inputs["logmel"])
            np.testing.assert_array_equal(found["target"], parts.held_back.targets)


def test_each_hospital_gets_a_file_of_its_own_patients(data: Path, tmp_path: Path) -> None:
    asked = hospitals.write_sites(data, tmp_path)
    for site, settings in asked.items():
        with Path(settings["path"]).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["site"] for row in rows} == {site} and len(rows) == 108
        assert settings["inputs"] == list(COLUMNS) and settings["missing"] == -9.0


def test_missing_findings_are_zero_and_told_where_that_says_something() -> None:
    recipe = hospitals.STUDY.recipe
    nothing = np.full((1, 13), recipe.MISSING, np.float32)
    (row,) = recipe.features(nothing)
    told = {name for name, value in zip(recipe.FEATURES, row, strict=True) if value}
    assert told == {f"no {name}" for name in recipe.TOLD_IF_MISSING}
    unmeasured = nothing.copy()
    unmeasured[0, COLUMNS.index("chol")] = 0
    np.testing.assert_array_equal(recipe.features(unmeasured), [row])


@pytest.mark.parametrize(("elsewhere", "pooled", "good"), [(0.7, 0.9, True), (0.95, 0.9, False), (0.7, 0.99, False)])
def test_the_page_says_what_was_not_reached(elsewhere: float, pooled: float, good: bool) -> None:
    alone = [Alone(site="a", own=0.99, elsewhere=elsewhere, federated_elsewhere=0.9)]
    comparison = Comparison(
        name="m", splits=[Split(seed=0, first=0.5, federated=[0.8, 0.9], pooled=pooled, alone=alone)]
    )
    study = {**comparison.to_json(), "title": "T", "rounds": 2, "settings": {"epochs": 1}, "examples": 4}
    results = json.loads(json.dumps({"studies": [study], "taken": _TAKEN, "machine": _MACHINE}))
    report, text = page.REPORT, page.REPORT.page(results)
    assert report.held(results) is good and ("NOT HELD" in text) is not good
    assert "| federated, after round 2 | 0.900 |" in text and len(report.tables(results)) == 3


@pytest.mark.parametrize(
    ("wrong", "bars"),
    [
        ({}, 0),
        ({"state": "refused"}, 1),
        ({"gate": {"variant fp32": "passed"}}, 1),
        ({"of_pooled": 0.97}, 1),
        ({"above_all": False}, 1),
        ({"errors": ["Overloaded: full"], "state": "rolled back"}, 2),
    ],
)
def test_the_page_of_runs_through_a_mesh_says_what_was_not_reached(wrong: dict[str, object], bars: int) -> None:
    study = {
        "name": "m",
        "title": "T",
        "rounds": 1,
        "state": "served",
        "variants": ["int8"],
        "gate": {"variant int8": "accuracy 0.9"},
        "took_s": 60.0,
        "history": [0.5, 0.9],
        "served": 0.9,
        "pooled": 0.9,
        "of_pooled": 1.0,
        "above_all": True,
        "alone": [{"site": "a", "own": 0.9, "elsewhere": 0.7, "federated_elsewhere": 0.9}],
        "requests": 100,
        "errors": [],
        "p99_ms": 9.0,
        "table": "watching\nRounds: accuracy\n 1  0.9\n",
        **wrong,
    }
    results = {"studies": [study], "taken": _TAKEN, "machine": _MACHINE}
    text = mesh_page.REPORT.page(results)
    assert text.count("NOT HELD") == bars and mesh_page.REPORT.held(results) is not bool(bars)
    assert "watching" not in text and "Rounds: accuracy" in text


def _input(part: Data) -> np.ndarray:
    (array,) = part.inputs.values()
    return array


_TAKEN = {"at": "now", "command": "c", "commit": "0" * 40, "uncommitted_changes": False, "duration_s": 1.0}
_MACHINE = {"cpu": "c", "cores": 2, "kernel": "k", "python": "3", "libraries": {"numpy": "2"}}
