"""`nearmesh model quantize`, `evaluate`, and what `publish` and `show` make of variants; nothing is converted here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nearmesh.packaging import quantize
from nearmesh.packaging.evaluate import evaluate
from nearmesh.packaging.release import release
from nearmesh.v1 import node_pb2
from tests.fake_admin import Bench, local_mesh, replica
from tests.unit.test_lineage import LINEAGE
from tests.unit.test_packaging_evaluate import CASES, Runs
from tests.unit.test_report import REPORT
from tests.variants_package import EVALUATION, QUANTIZE, write_package


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in ("NEARMESH_MESH", "NEARMESH_CONTROL_PLANE", "NEARMESH_CA", "NEARMESH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NEARMESH_CACHE", str(tmp_path / "cache"))
    return Bench(local_mesh(tmp_path))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def convert(section: Any, files: dict[str, Path], samples: Path | None, scratch: Path) -> Path:
        target = scratch / "made.onnx"
        target.write_bytes(next(iter(files.values())).read_bytes())
        return target

    monkeypatch.setattr(quantize, "_convert", convert)
    return write_package(tmp_path / "package", QUANTIZE, EVALUATION, cases=CASES)


def tried_by(monkeypatch: pytest.MonkeyPatch, runs: Runs) -> None:
    assert evaluate.__kwdefaults__ and release.__kwdefaults__
    monkeypatch.setitem(evaluate.__kwdefaults__, "run", runs)
    monkeypatch.setitem(release.__kwdefaults__, "run", runs)


def test_what_was_made_is_listed(run: Bench, folder: Path) -> None:
    found = json.loads(run("model", "quantize", str(folder), "--json").stdout)
    assert [(made["variant"], made["kind"], made["of"]) for made in found] == [
        ("int8", "int8-static", "fp32"),
        ("light", "int8-dynamic", "fp32"),
        ("half", "fp16", "fp32"),
    ]
    assert all(Path(made["path"]).stat().st_size == made["size_bytes"] for made in found)
    table = run("model", "quantize", str(folder), "--variant", "light").stdout
    assert "int8-dynamic" in table and "int8-static" not in table


def test_nothing_to_make_and_a_name_that_is_not_there(run: Bench, folder: Path, tmp_path: Path) -> None:
    assert "nothing to make" in run("model", "quantize", str(write_package(tmp_path / "plain"))).stdout
    done = run("model", "quantize", str(folder), "--variant", "int4")
    assert (done.exit_code, done.stdout) == (1, "") and "makes 'int4'; 'classes' has half, int8, light" in done.stderr


def test_a_plan_without_a_builder_ends_well_unless_asked_for(
    run: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "_why_not", lambda section: "skipped: no builder here" * (section.variant == "half"))
    done = run("model", "quantize", str(folder))
    assert done.exit_code == 0 and "skipped: no builder here" in done.stdout
    done = run("model", "quantize", str(folder), "--variant", "half")
    assert (done.exit_code, done.stderr) == (1, "error: variant 'half': skipped: no builder here\n")


def test_variants_are_tried_and_shown(run: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried_by(monkeypatch, Runs({"int8": 1 / CASES}))
    done = run("model", "evaluate", str(folder))
    assert done.exit_code == 0, done.output
    assert "accuracy" in done.stdout and "0.9833" in done.stdout and "98.33 %" in done.stdout
    assert "int8-static of fp32" in done.stdout and f"{CASES} cases on" in done.stdout
    record = json.loads(run("model", "evaluate", str(folder), "--variant", "light", "--json").stdout)
    assert [variant["name"] for variant in record["variants"]] == ["fp32", "light"]


def test_one_that_may_not_be_published_ends_with_1(run: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried_by(monkeypatch, Runs({"int8": 0.5}))
    done = run("model", "evaluate", str(folder), "--json")
    assert done.exit_code == 1 and "int8 may not be published: accuracy 0.5000 is 0.5000 below" in done.stderr
    assert [variant["passed"] for variant in json.loads(done.stdout)["variants"]] == [True, False, True, True]


def test_p5_publish_refuses_it_unless_it_is_left_out(run: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried_by(monkeypatch, Runs({"int8": 0.5}))
    done = run("model", "publish", str(folder))
    assert done.exit_code == 1 and not hasattr(run, "admin"), "nobody was asked"
    assert "int8: accuracy 0.5000 is 0.5000 below the 1.0000 of fp32" in done.stderr and "--without int8" in done.stderr
    done = run("model", "publish", str(folder), "--without", "int8")
    assert done.exit_code == 0, done.output
    ((_, model, files),) = run.admin.done
    assert model == "classes" and "light.onnx" in files and "report.json" in files and "int8.onnx" not in files


def test_show_has_the_report_and_why_a_node_took_a_variant(run: Bench) -> None:
    serving = replica("node-a", node_pb2.REPLICA_STATE_READY)
    serving.status.variant, serving.status.variant_why = "int8", "2.1 times as fast as fp32 here"
    run.pretend(replica_list=[serving], report_json=REPORT.to_bytes().decode())
    shown = run("model", "show", "digits").stdout
    assert "2.1 times as fast as fp32 here" in shown
    assert "Variants of 1: 100 cases on 2 cores of a processor" in shown and "0.9850" in shown
    record = json.loads(run("model", "show", "digits", "--json").stdout)
    assert record["replicas"][0]["variant_why"] == "2.1 times as fast as fp32 here"
    assert record["versions"][0]["report"]["variants"][1]["name"] == "int8"


def test_show_says_where_a_version_comes_from_that_rounds_made(run: Bench) -> None:
    assert json.loads(run("model", "show", "digits", "--json").stdout)["versions"][0]["lineage"] is None
    run.pretend(lineage_json=LINEAGE.to_bytes().decode())
    shown = " ".join(run("model", "show", "digits").stdout.split())
    assert "1 comes from: round 5 of run r7 from 1.0, fedprox (mu 0.1), begun 1970-01-01 00:16" in shown
    assert "UTC by anna" in shown
    for row in ("site-1 5 300 0.7000 0.9000", "site-2 4 100 - -", "all 5 400 0.7000 0.9000"):
        assert row in shown
    assert "differential privacy: epsilon 3.2 at delta 1e-05" in shown
    record = json.loads(run("model", "show", "digits", "--json").stdout)
    assert record["versions"][0]["lineage"]["parent"]["version"] == "1.0"


def test_check_leaves_made_variants_to_evaluate(run: Bench, folder: Path) -> None:
    done = run("model", "check", str(folder), "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["proven"] == ["fp32"]
    assert found["untried"] == [
        f"{n} is made and tried by `nearmesh model evaluate`" for n in ("int8", "light", "half")
    ]


def test_publish_says_what_could_not_be_made(run: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried_by(monkeypatch, Runs())
    monkeypatch.setattr(quantize, "_why_not", lambda section: "skipped: no builder here" * (section.variant == "half"))
    done = run("model", "publish", str(folder), "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["model"] == "classes"
    assert "Note: half is not published: skipped: no builder here." in done.stderr
