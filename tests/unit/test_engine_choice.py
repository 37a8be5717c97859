"""Which variant runs on a node, and how its calls share the cores."""

from __future__ import annotations

import pytest
from nearmesh_agent.engines.choice import CPU, CUDA, Layout, candidates, is_worth, lay_out, to_compare, why

from nearmesh.errors import PackageError
from nearmesh.package import Quantize, Source, Step, Variant
from tests.tiny_models import package, spec
from tests.unit.test_report import REPORT


def variant(name, **more):
    return Variant(name=name, source=Source(path=f"{name}.onnx"), **more)


PLAN = variant("plan", engine="tensorrt", hardware=CUDA)
RTX = variant("rtx", engine="tensorrt-rtx")
CUDA_ONLY = variant("fast", hardware=CUDA)
ANY = variant("fp32")


def described(*variants, **more):
    return package("m", [spec("x", "FP32", -1)], [spec("y", "FP32", -1)], variants=variants, **more)


@pytest.mark.parametrize(
    ("variants", "providers", "libraries", "expected"),
    [
        ([CUDA_ONLY, ANY], [CPU], [], "fp32"),
        ([CUDA_ONLY, ANY], [CUDA, CPU], [], "fast"),
        ([ANY, CUDA_ONLY], [CUDA, CPU], [], "fp32"),
        # TensorRT's come first only where its library is there, and the other TensorRT is none of it.
        ([PLAN, CUDA_ONLY, ANY], [CUDA, CPU], ["tensorrt"], "plan"),
        ([PLAN, CUDA_ONLY, ANY], [CUDA, CPU], [], "fast"),
        ([PLAN, RTX, ANY], [CUDA, CPU], ["tensorrt-rtx"], "rtx"),
        ([PLAN, RTX, ANY], [CPU], ["tensorrt"], "fp32"),
        # With nothing else, ONNX Runtime executes their file.
        ([RTX], [CPU], [], "rtx"),
        ([PLAN, RTX], [CUDA, CPU], [], "plan"),
    ],
)
def test_the_first_that_runs_here(variants, providers, libraries, expected):
    assert candidates(described(*variants), providers, libraries=libraries)[0].name == expected


def test_no_variant_runs_here():
    with pytest.raises(PackageError, match=r"no variant of 'm' runs here: it has fast \(CUDA.*; the node has CPUExec"):
        candidates(described(CUDA_ONLY), [CPU])


def test_a_step_has_variants_of_its_own():
    first, second = variant("fp32", step="first"), variant("fp32", step="second")
    steps = (Step(name="first"), Step(name="second"))
    (found,) = candidates(described(first, second, steps=steps), [CPU], step="second")
    assert found.file == "second.fp32.onnx"


MADE = (Quantize(variant="half", kind="fp16", hardware=CUDA), Quantize(variant="int8", kind="int8-dynamic"))


@pytest.mark.parametrize(
    ("providers", "without", "expected"),
    [
        ([CPU], [], ["int8", "fp32"]),
        ([CUDA, CPU], [], ["half", "int8", "fp32"]),
        ([CUDA, CPU], ["half.onnx", "fp32.onnx"], ["int8"]),
    ],
)
def test_what_is_made_comes_before_what_it_is_made_from(providers, without, expected):
    found = candidates(described(ANY, quantize=MADE), providers, without=without)
    assert [variant.name for variant in found] == expected


def test_nothing_is_left_to_run():
    with pytest.raises(PackageError, match="it has none left; the node has CPU"):
        candidates(described(ANY), [CPU], without=["fp32.onnx"])


@pytest.mark.parametrize(
    ("variants", "libraries", "expected"),
    [
        ([ANY], [], ["fp32"]),
        # The reference first: the last that is given.
        ([variant("int8"), variant("fp32")], [], ["fp32", "int8"]),
        # A plan that can be built here is not timed before it is; one that cannot is a file like any other.
        ([RTX, ANY], ["tensorrt-rtx"], ["rtx"]),
        ([ANY, RTX], ["tensorrt-rtx"], ["fp32"]),
    ],
)
def test_whose_speed_decides(variants, libraries, expected):
    package = described(*variants)
    found = to_compare(package, candidates(package, [CPU], libraries=libraries), libraries)
    assert [variant.name for variant in found] == expected


@pytest.mark.parametrize(("seconds", "worth"), [(0.9, True), (0.92, False), (1.0, False), (2.0, False)])
def test_what_is_worth_a_change(seconds, worth):
    assert is_worth(seconds, 1.0) is worth


def test_why_is_said_in_a_few_words():
    assert why("int8", {"fp32": 0.021, "int8": 0.01}) == "2.1 times as fast as fp32 here"
    assert why("fp32", {"fp32": 0.02}) == why("fp32", {}) == ""
    said = why("int8", {"fp32": 0.021, "int8": 0.01}, report=REPORT)
    assert said == "2.1 times as fast as fp32 here, accuracy 0.985 of 0.990"
    assert why("fp32", {"fp32": 0.01, "int8": 0.02}, report=REPORT).endswith("as int8 here, accuracy 0.990")
    assert why("half", {"fp32": 0.02, "half": 0.01}, report=REPORT) == "2.0 times as fast as fp32 here"


@pytest.mark.parametrize(
    ("cores", "fixed", "expected"),
    [
        # As many calls of one thread as there are cores, and all of them for a lone call.
        (2, {}, Layout(instances=2, threads=1, wide=2)),
        (8, {}, Layout(instances=8, threads=1, wide=8)),
        (1, {}, Layout(instances=1, threads=1)),
        (8, {"wide": False}, Layout(instances=8, threads=1)),
        # What somebody fixed.
        (8, {"threads": 3}, Layout(instances=2, threads=3)),
        (2, {"threads": 4}, Layout(instances=1, threads=4)),
        (8, {"instances": 2}, Layout(instances=2, threads=4)),
        (8, {"instances": 16}, Layout(instances=16, threads=1)),
        (8, {"instances": 3, "threads": 1}, Layout(instances=3, threads=1)),
        (8, {"instances": 2, "wide": True}, Layout(instances=2, threads=4, wide=8)),
        # Nothing is wider than what has all cores already.
        (8, {"instances": 1, "wide": True}, Layout(instances=1, threads=8)),
        (1, {"wide": True}, Layout(instances=1, threads=1)),
    ],
)
def test_lay_out_on_the_cpu(cores, fixed, expected):
    assert lay_out([CPU], cores, **fixed) == expected


@pytest.mark.parametrize(
    ("fixed", "expected"),
    [
        ({}, Layout(instances=2, threads=1)),
        ({"wide": True}, Layout(instances=2, threads=1)),
        ({"instances": 5, "threads": 2}, Layout(instances=5, threads=2)),
    ],
)
def test_lay_out_on_a_gpu(fixed, expected):
    assert lay_out([CUDA, CPU], 16, **fixed) == expected
