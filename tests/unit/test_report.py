"""report.json: read back as it was written, bounded, and which versions it keeps from being published."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nearmesh.document import MAX_DOCUMENT_BYTES
from nearmesh.errors import PackageError
from nearmesh.package import Quantize
from nearmesh.report import Machine, Measured, Report, check_published
from tests.tiny_models import package, spec

FP32 = "sha256:" + "a" * 64
INT8 = "sha256:" + "b" * 64
REFERENCE = Measured(
    name="fp32", digest=FP32, size_bytes=1000, metric=0.99, ms_p50=2.0, rows_per_second=900.0, passed=True
)
MADE = Measured(
    name="int8",
    digest=INT8,
    size_bytes=260,
    of="fp32",
    kind="int8-static",
    metric=0.985,
    agreement=0.99,
    ms_p50=1.0,
    rows_per_second=1800.0,
    warmup_difference={"y": 0.01},
    passed=True,
)
REPORT = Report(
    model="m",
    version="1",
    metric="accuracy",
    cases=100,
    largest_loss=0.01,
    smallest_agreement=0.98,
    machine=Machine(processor="a processor", cores=2, features=("avx2",)),
    libraries={"onnxruntime": "1.2"},
    variants=(REFERENCE, MADE),
)
PACKAGE = package(
    "m",
    [spec("x", "FP32", -1)],
    [spec("y", "FP32", -1)],
    quantize=(Quantize(variant="int8", kind="int8-dynamic"),),
)
BOTH = {"fp32.onnx": FP32, "int8.onnx": INT8, "model.toml": FP32}


def test_it_is_read_as_it_was_written(tmp_path):
    assert Report.from_bytes(REPORT.to_bytes()) == REPORT
    assert REPORT.to_bytes() == Report.from_bytes(REPORT.to_bytes()).to_bytes()
    assert "agreement" not in json.loads(REPORT.to_bytes())["variants"][0], "what is not known is left out"
    assert Report.read(tmp_path) is None
    (tmp_path / "report.json").write_bytes(REPORT.to_bytes())
    assert Report.read(tmp_path) == REPORT
    assert REPORT.of("int8") == MADE and REPORT.of("fp16") is None and REPORT.of("int8", "step") is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "Expecting value"),
        (b"[1]", "expected an object, got list"),
        (b"\xff", "codec"),
        (b'{"model": "m"}', "missing"),
        (b"[" * 100_000, "report.json"),
        (b" " * (MAX_DOCUMENT_BYTES + 1), "above the limit"),
        (REPORT.to_bytes().replace(b'"cases": 100', b'"cases": "many"'), "cases"),
        (REPORT.to_bytes().replace(b'"passed": true', b'"passed": 1'), "passed"),
    ],
    ids=["empty", "list", "binary", "short", "deep", "large", "text for a number", "number for a truth"],
)
def test_anything_else_is_refused(data, said):
    with pytest.raises(PackageError, match=said):
        Report.from_bytes(data)


def test_what_may_be_published():
    check_published(PACKAGE, BOTH, REPORT)
    # What was given needs no report, and nothing is said of what does not go along.
    check_published(PACKAGE, {"fp32.onnx": FP32}, None)
    failed = replace(REPORT, variants=(REFERENCE, replace(MADE, passed=False, why="bad")))
    check_published(PACKAGE, {"fp32.onnx": FP32}, failed)


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (None, "'int8' was made and nothing says how good it is"),
        (replace(REPORT, variants=(REFERENCE,)), "'int8' was made and nothing says how good it is"),
        (
            replace(REPORT, variants=(REFERENCE, replace(MADE, passed=False, why="accuracy 0.5 is too low"))),
            "'int8' did not pass its gate: accuracy 0.5 is too low",
        ),
        (replace(REPORT, variants=(replace(REFERENCE, passed=False, why="NaN"), MADE)), "'fp32' did not pass its gate"),
        (replace(REPORT, variants=(REFERENCE, replace(MADE, digest=FP32))), "speaks of 'int8' with sha256:aaaa"),
        (replace(REPORT, version="2"), r"report.json is of m@2, model.toml of m@1"),
    ],
)
def test_p5_a_variant_that_did_not_pass_is_not_published(report, said):
    with pytest.raises(PackageError, match=said):
        check_published(PACKAGE, BOTH, report)
