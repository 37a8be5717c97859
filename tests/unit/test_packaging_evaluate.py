"""Variants on an evaluation set, the gate before publishing, and the report that goes along. Nothing is run for real
here but NumPy: `run` stands in for a node's program."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nearmesh.errors import InvalidInput, PackageError
from nearmesh.package import load
from nearmesh.packaging import quantize, release
from nearmesh.packaging.agent_run import Ran, read_answers, write_answers
from nearmesh.packaging.evaluate import Subject, evaluate, kept_report
from nearmesh.packaging.machine import this_machine
from nearmesh.packaging.quantize import Made
from nearmesh.packaging.release import GateFailed
from nearmesh.report import Report, check_published
from tests.variants_package import EVALUATION, QUANTIZE, write_package

CASES = 60


class Runs:
    """Answers as told: by variant, the share of the cases that it gets wrong."""

    def __init__(self, wrong=None, **more):
        self.wrong, self.more, self.asked = wrong or {}, more, []

    def __call__(self, folder: Path, variants, cases):
        self.asked.append(dict(variants))
        (name,) = variants.values()
        assert (folder / f"{name}.onnx").is_file() and (folder / "model.toml").is_file()
        with np.load(cases) as archive:
            expected = archive["expected.y"]
        found = np.eye(8, dtype=np.float32)[expected]
        bad = round(self.wrong.get(name, 0.0) * len(found))
        found[:bad] = np.roll(found[:bad], 1, axis=1)
        if name in self.more.get("nan", ()):
            found[0, 0] = np.nan
        if name in self.more.get("fails", ()):
            raise PackageError(f"{name} crashed")
        return Ran(
            outputs={"y": found},
            ms_p50=2.0 if name == "fp32" else 1.0,
            rows_per_second=500.0,
            warmup_difference={} if name == "fp32" and "lukewarm" not in self.more else {"y": 0.01},
            warmup_failed="the warm-up has another shape" if name in self.more.get("cold", ()) else "",
        )


@pytest.fixture
def folder(tmp_path):
    return write_package(tmp_path / "package", QUANTIZE, EVALUATION, cases=CASES)


@pytest.fixture(autouse=True)
def made_at_once(monkeypatch):
    """Conversion takes seconds and is tested elsewhere."""

    def convert(section, files, samples, scratch):
        target = scratch / "made.onnx"
        target.write_bytes(next(iter(files.values())).read_bytes() + b"")
        return target

    monkeypatch.setattr(quantize, "_convert", convert)


@pytest.fixture
def subject(folder, tmp_path):
    package = load(folder)
    return Subject(package=package, folder=folder, cache=tmp_path, made=list(quantize.make(package, folder, tmp_path)))


def test_every_variant_is_tried_with_the_references_of_all_else(subject):
    runs = Runs({"int8": 2 / CASES})
    report = evaluate(subject, run=runs)
    assert runs.asked == [{"": "fp32"}, {"": "int8"}, {"": "light"}, {"": "half"}]
    fp32, int8, light, half = report.variants
    assert (fp32.name, fp32.metric, fp32.agreement, fp32.kind) == ("fp32", 1.0, None, "")
    assert (int8.name, int8.kind, int8.of) == ("int8", "int8-static", "fp32")
    assert int8.metric == int8.agreement == pytest.approx(1 - 2 / CASES)
    assert int8.warmup_difference == {"y": 0.01} and (int8.ms_p50, fp32.ms_p50) == (1.0, 2.0)
    assert all(variant.passed for variant in (fp32, int8, light, half))
    assert (report.cases, report.metric, report.model) == (CASES, "accuracy", "classes")
    assert report.machine == this_machine() and report.libraries["onnxruntime"]
    assert fp32.size_bytes == (subject.folder / "weights.onnx").stat().st_size


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        (Runs({"int8": 0.2}), "accuracy 0.8000 is 0.2000 below the 1.0000 of fp32, largest_loss is 0.05"),
        (Runs({"int8": 0.2}), "it says what fp32 says in 80.00 % of the cases"),
        (Runs(nan=["int8"]), "1 of the numbers in its outputs are NaN"),
        (Runs(fails=["int8"]), "int8 crashed"),
        (Runs(cold=["int8"]), "the warm-up has another shape"),
    ],
)
def test_p5_a_variant_that_is_not_good_enough_does_not_pass(subject, runs, why):
    report = evaluate(subject, run=runs)
    (failed,) = report.failed
    assert failed.name == "int8" and why in failed.why
    assert Report.from_bytes(report.to_bytes()) == report


def test_p5_what_was_given_keeps_its_own_promise(subject):
    report = evaluate(subject, run=Runs(lukewarm=True))
    (failed,) = report.failed
    assert failed.name == "fp32" and failed.warmup_difference == {}
    assert failed.why == "its warm-up's output 'y' is 0.01 further off than the tolerance"


def test_a_reference_that_cannot_be_run_is_an_error(subject):
    with pytest.raises(PackageError, match="fp32 crashed"):
        evaluate(subject, run=Runs(fails=["fp32"]))


def test_only_some(subject):
    runs = Runs()
    report = evaluate(subject, only=["light"], run=runs)
    assert [variant.name for variant in report.variants] == ["fp32", "light"]
    with pytest.raises(InvalidInput, match="no variant 'int4' can be tried here; there are fp32, half, int8, light"):
        evaluate(subject, only=["int4"], run=runs)


def test_what_was_measured_of_the_same_files_is_kept(subject):
    asked = []

    def measure():
        asked.append(1)
        return evaluate(subject, run=Runs())

    first, path = kept_report(subject, measure)
    again, _ = kept_report(subject, measure)
    assert first == again and len(asked) == 1
    path.write_bytes(b"damaged")
    assert kept_report(subject, measure)[0] == first and len(asked) == 2
    np.savez(subject.folder / "evaluation.npz", **{"input.x": np.ones((2, 16), np.float32), "expected.y": [0, 1]})
    assert kept_report(subject, measure)[0].cases == 2


def test_without_an_evaluation_nothing_is_known(tmp_path):
    folder = write_package(tmp_path / "p", QUANTIZE)
    with pytest.raises(PackageError, match=r"has no \[evaluation\]: nothing says how good a variant of 'classes' is"):
        release.release(folder, tmp_path, run=Runs())


# ---- publishing


def titles(artifact):
    return {file.title for file in artifact.manifest.files}


def test_an_artifact_has_what_passed_and_the_report(folder, tmp_path):
    said = []
    artifact = release.release(folder, tmp_path, run=Runs(), on_step=said.append)
    assert titles(artifact) == {
        *("model.toml", "warmup.npz", "report.json"),
        *("fp32.onnx", "int8.onnx", "light.onnx", "half.onnx"),
    }
    digests = {file.title: file.digest for file in artifact.manifest.files}
    content = artifact.blobs[digests["report.json"]]
    report = Report.from_bytes(content if isinstance(content, bytes) else content.read_bytes())
    check_published(artifact.package, digests, report)
    assert said == ["making half, int8, light", "trying fp32", "trying int8", "trying light", "trying half"]
    assert release.release(folder, tmp_path, run=Runs()).digest == artifact.digest, "publishing again changes nothing"


def test_p5_a_variant_that_fails_is_refused_with_its_figures(folder, tmp_path):
    with pytest.raises(GateFailed) as caught:
        release.release(folder, tmp_path, run=Runs({"int8": 0.5, "half": 0.1}))
    said = caught.value.message
    assert "int8: accuracy 0.5000 is 0.5000 below the 1.0000 of fp32" in said and "half: accuracy 0.9000" in said
    assert said.endswith("To publish without: --without int8 --without half")


def test_what_is_left_out_is_left_out(folder, tmp_path):
    runs = Runs({"int8": 0.5})
    artifact = release.release(folder, tmp_path, without=["int8"], run=runs)
    assert "int8.onnx" not in titles(artifact) and "light.onnx" in titles(artifact)
    assert {"": "int8"} not in runs.asked
    small = release.release(folder, tmp_path, without=["fp32", "int8", "half"], run=Runs())
    assert titles(small) == {"model.toml", "warmup.npz", "report.json", "light.onnx"}


@pytest.mark.parametrize(
    ("without", "error", "said"),
    [
        (["int4"], InvalidInput, "'classes' has no variant 'int4', but fp32, half, int8, light"),
        (["fp32", "int8", "half", "light"], PackageError, "there is no variant left"),
    ],
)
def test_what_cannot_be_left_out(folder, tmp_path, without, error, said):
    with pytest.raises(error, match=said):
        release.release(folder, tmp_path, without=without, run=Runs())


def test_a_package_without_either_is_published_as_before(tmp_path):
    folder = write_package(tmp_path / "p")
    artifact = release.release(folder, tmp_path, run=lambda *_: pytest.fail("nothing is to be tried"))
    assert titles(artifact) == {"model.toml", "warmup.npz", "fp32.onnx"}


def test_a_plan_that_was_not_made_here_is_left_out_and_said(tmp_path, monkeypatch):
    plan = '\n[[quantize]]\nvariant = "plan"\nkind = "tensorrt"\n'
    folder = write_package(tmp_path / "p", plan, EVALUATION)
    monkeypatch.setattr(quantize, "_why_not", lambda section: "skipped: no builder here")
    said = []
    artifact = release.release(folder, tmp_path, run=Runs(), on_note=said.append)
    assert "plan.onnx" not in titles(artifact)
    assert said == ["plan is not published: skipped: no builder here"]


# ---- answers on their way


@pytest.mark.parametrize(
    "cases",
    [
        [np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)],
        [np.ones((2, 3), np.float32), np.zeros((1, 3), np.float32)],
        [np.array([b"a", b"\0bc\0"], object), np.array([b"", b"x"], object)],
        [np.array([b"a"], object), np.array([], object)],
        [np.array(3, np.int64), np.array(4, np.int64)],
    ],
)
def test_answers_come_as_they_were(tmp_path, cases):
    write_answers(tmp_path / "a.npz", {"y": cases, "z.1": cases[:1]})
    found = read_answers(tmp_path / "a.npz")
    assert len(found["y"]) == len(cases) and len(found["z.1"]) == 1
    for ours, theirs in zip(found["y"], cases, strict=True):
        assert np.shape(ours) == theirs.shape and np.asarray(ours).tolist() == theirs.tolist()


def test_a_machine_by_what_its_kernel_says(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: A Processor 9\nflags\t\t: fpu avx2 avx512_vnni\n")
    found = this_machine(info)
    assert (found.processor, found.features) == ("A Processor 9", ("avx2", "avx512_vnni")) and found.cores >= 1
    assert this_machine(tmp_path / "none").processor


def test_made_says_where_it_is_from(subject):
    assert all(isinstance(found, Made) for found in subject.made)
    assert json.loads(evaluate(subject, run=Runs()).to_bytes())["variants"][1]["of"] == "fp32"
