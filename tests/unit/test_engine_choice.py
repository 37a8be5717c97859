"""Which variant runs on a node, and how its calls share the cores."""

from __future__ import annotations

import pytest
from nearmesh_agent.engines.choice import CPU, CUDA, Layout, choose_variant, lay_out

from nearmesh.errors import PackageError
from nearmesh.package import Source, Step, Variant
from tests.tiny_models import package, spec


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
def test_choose_variant(variants, providers, libraries, expected):
    assert choose_variant(described(*variants), providers, libraries=libraries).name == expected


def test_no_variant_runs_here():
    with pytest.raises(PackageError, match=r"no variant of 'm' runs here: it has fast \(CUDA.*; the node has CPUExec"):
        choose_variant(described(CUDA_ONLY), [CPU])


def test_a_step_has_variants_of_its_own():
    first, second = variant("fp32", step="first"), variant("fp32", step="second")
    steps = (Step(name="first"), Step(name="second"))
    found = choose_variant(described(first, second, steps=steps), [CPU], step="second")
    assert found.file == "second.fp32.onnx"


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
