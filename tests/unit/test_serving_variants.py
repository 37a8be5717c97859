"""Which variant serves: timed against each other by a clock that each engine moves by its own time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from nearmesh_agent.serving.variants import BestVariants

from nearmesh.errors import EngineFailure, PackageError, WarmupFailed
from nearmesh.package import Quantize, Source, Step, Variant
from tests.tiny_models import package, spec, write_warmup
from tests.unit.test_report import MADE, REFERENCE, REPORT

X = np.array([1, 2], np.float32)


@dataclass
class World:
    """What the engines of a test share."""

    # Seconds of a call, by variant or "STEP:VARIANT".
    seconds: dict[str, float]
    # What is added to the right answer.
    off: dict[str, float] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    now_s: float = 0.0
    open: list[str] = field(default_factory=list)
    # All that ever were.
    opened: list[str] = field(default_factory=list)


class Engine:
    """Doubles."""

    providers, instances, variant_why = (), 1, ""

    def __init__(self, world: World, parts: list[str]) -> None:
        self.name, self.variant, self._world, self._parts = "fake", ",".join(parts), world, parts
        world.open.append(self.variant)
        world.opened.append(self.variant)

    def infer(self, inputs, *, alone=False):
        self._world.now_s += sum(self._world.seconds[part] for part in self._parts)
        off = sum(self._world.off.get(part, 0.0) for part in self._parts)
        return {"y": inputs["x"] * 2 + np.float32(off)}

    def close(self):
        self._world.open.remove(self.variant)


@dataclass(frozen=True)
class Engines:
    """In the place of OnnxEngines."""

    world: Any
    choice: Mapping[str, tuple[str, ...]]
    variants: Mapping[str, str] = field(default_factory=dict)

    def options(self, folder, package, step=""):
        return tuple(Variant(name=name, step=step, source=Source(path="x")) for name in self.choice[step])

    def __call__(self, folder, package):
        parts = [
            f"{step}:{self.variants.get(step, names[0])}" if step else self.variants.get(step, names[0])
            for step, names in self.choice.items()
        ]
        if broken := self.world.broken.intersection(parts):
            raise EngineFailure(f"{broken} cannot be opened")
        return Engine(self.world, parts)


@pytest.fixture
def described(tmp_path):
    warmup = write_warmup(tmp_path, input_x=X, output_y=2 * X)
    made = (Quantize(variant="int8", kind="int8-dynamic"), Quantize(variant="fp16", kind="fp16"))
    return package("m", [spec("x", "FP32", -1)], [spec("y", "FP32", -1)], warmup=(warmup,), quantize=made)


def best(world, choice, **more):
    return BestVariants(Engines(world, choice), clock=lambda: world.now_s, **more)


def write_report(folder, *variants):
    (folder / "report.json").write_bytes(replace(REPORT, variants=(REFERENCE, *variants)).to_bytes())


def test_the_fastest_is_taken_and_why_is_said(tmp_path, described):
    write_report(tmp_path, MADE)
    world = World({"fp32": 0.021, "int8": 0.010})
    engine = best(world, {"": ("fp32", "int8")})(tmp_path, described)
    assert engine.variant == "int8" and world.open == ["int8"]
    assert engine.variant_why == "2.1 times as fast as fp32 here, accuracy 0.985 of 0.990"
    assert engine.opened_s == 0, "what choosing took is no part of what loading it again will take"


@pytest.mark.parametrize(
    ("seconds", "why"),
    [
        (0.020, "int8 is no faster here"),
        (0.0195, "int8 is no faster here"),
        (0.022, "int8 is no faster here"),
        (0.030, "1.4 times as fast as int8 here"),
    ],
)
def test_one_that_is_hardly_faster_or_slower_is_not(tmp_path, described, seconds, why):
    world = World({"fp32": 0.021, "int8": seconds})
    engine = best(world, {"": ("fp32", "int8")})(tmp_path, described)
    assert engine.variant == "fp32" and world.open == ["fp32"]
    assert engine.variant_why == why


def test_of_three_the_fastest(tmp_path, described):
    world = World({"fp32": 0.030, "int8": 0.015, "fp16": 0.010})
    engine = best(world, {"": ("fp32", "int8", "fp16")})(tmp_path, described)
    assert engine.variant == "fp16" and world.open == ["fp16"]
    assert engine.variant_why == "1.5 times as fast as int8 here; 3.0 times as fast as fp32 here"


def test_it_is_found_out_once(tmp_path, described):
    world = World({"fp32": 0.02, "int8": 0.01})
    engines = best(world, {"": ("fp32", "int8")})
    first = engines(tmp_path, described)
    first.close()
    again = engines(tmp_path, described)
    assert (again.variant, again.variant_why) == ("int8", first.variant_why)
    assert world.opened == ["fp32", "int8", "int8"] and world.open == ["int8"]


def test_measuring_is_bounded(tmp_path, described):
    world = World({"fp32": 3.0, "int8": 1.0})
    best(world, {"": ("fp32", "int8")})(tmp_path, described)
    # The proof of each, and one round.
    assert world.now_s == 8.0


def test_p5_a_variant_whose_warm_up_is_wrong_never_serves(tmp_path, described):
    world = World({"fp32": 0.02, "int8": 0.001}, off={"int8": 0.5})
    engine = best(world, {"": ("fp32", "int8")})(tmp_path, described)
    assert engine.variant == "fp32" and world.open == ["fp32"]
    assert engine.variant_why == "int8 does not do here, see the node's log"


def test_p5_a_made_variant_may_be_off_by_what_its_report_allows_and_no_more(tmp_path, described):
    write_report(tmp_path, replace(MADE, warmup_difference={"y": 0.1}))
    for off, expected in ((0.15, "int8"), (0.25, "fp32")):
        world = World({"fp32": 0.02, "int8": 0.001}, off={"int8": off})
        assert best(world, {"": ("fp32", "int8")})(tmp_path, described).variant == expected


def test_p5_what_was_given_may_not_be_off_whatever_a_report_says(tmp_path, described):
    given = replace(REFERENCE, warmup_difference={"y": 0.1})
    (tmp_path / "report.json").write_bytes(replace(REPORT, variants=(given, MADE)).to_bytes())
    world = World({"fp32": 0.001, "int8": 0.02}, off={"fp32": 0.05})
    assert best(world, {"": ("fp32", "int8")})(tmp_path, described).variant == "int8"


def test_the_reference_that_does_not_do_gives_way(tmp_path, described):
    world = World({"fp32": 0.02, "int8": 0.03}, broken={"fp32"})
    engine = best(world, {"": ("fp32", "int8")})(tmp_path, described)
    assert engine.variant == "int8" and engine.variant_why == "fp32 does not do here, see the node's log"


def test_p5_none_that_does_is_an_error(tmp_path, described):
    world = World({"fp32": 0.02, "int8": 0.03}, off={"fp32": 1.0, "int8": 1.0})
    with pytest.raises(WarmupFailed, match="output 'y' differs"):
        best(world, {"": ("fp32", "int8")})(tmp_path, described)
    assert world.open == []


def test_the_only_one_is_not_timed(tmp_path, described):
    world = World({"int8": 0.01})
    engine = best(world, {"": ("int8",)})(tmp_path, described)
    assert engine.variant_why == "the only one that runs here" and world.now_s == 0
    single = replace(described, quantize=())
    assert best(world, {"": ("int8",)})(tmp_path, single).variant_why == ""


def test_an_operator_pins_a_variant(tmp_path, described):
    write_report(tmp_path, MADE)
    for name in ("fp32.onnx", "int8.onnx"):
        (tmp_path / name).write_bytes(b"")
    world = World({"fp32": 0.02, "int8": 0.01})
    engine = best(world, {"": ("fp32", "int8")}, pins={"m": "fp32", "other": "int8"})(tmp_path, described)
    assert (engine.variant, engine.variant_why) == ("fp32", "pinned by node.toml") and world.now_s == 0


@pytest.mark.parametrize("name", ["fp64", "fp16"])
def test_p5_a_pin_to_what_is_not_there_or_did_not_pass(tmp_path, described, name):
    write_report(tmp_path, MADE)
    for file in ("fp32.onnx", "int8.onnx", "fp16.onnx"):
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(PackageError, match=f"node.toml pins 'm' to '{name}'; it has fp32, int8"):
        best(World({}), {"": ("fp32",)}, pins={"m": name})(tmp_path, described)


def test_a_pipelines_steps_are_chosen_one_by_one(tmp_path, described):
    steps = (Step(name="see"), Step(name="read"))
    given = tuple(Variant(name="fp32", step=step.name, source=Source(path="x.onnx")) for step in steps)
    piped = replace(described, steps=steps, variants=given, quantize=())
    world = World({"see:fp32": 0.01, "see:int8": 0.02, "read:fp32": 0.05, "read:int8": 0.02})
    choice = {"see": ("fp32", "int8"), "read": ("fp32", "int8")}
    engine = best(world, choice)(tmp_path, piped)
    assert engine.variant == "see:fp32,read:int8" and world.open == [engine.variant]
    assert engine.variant_why == "read: 2.0 times as fast as fp32 here; see: 1.3 times as fast as int8 here"


def test_a_pin_leaves_other_steps_as_they_are_given(tmp_path, described):
    steps = (Step(name="see"), Step(name="read"))
    given = tuple(Variant(name="fp32", step=step.name, source=Source(path="x.onnx")) for step in steps)
    made = (Quantize(variant="int8", kind="int8-dynamic", step="read"),)
    piped = replace(described, steps=steps, variants=given, quantize=made)
    write_report(tmp_path, replace(MADE, step="read"))
    for name in ("see.fp32.onnx", "read.fp32.onnx", "read.int8.onnx"):
        (tmp_path / name).write_bytes(b"")
    world = World({"see:fp32": 0.01, "read:fp32": 0.05, "read:int8": 0.02})
    engine = best(world, {"see": ("fp32",), "read": ("fp32", "int8")}, pins={"m": "int8"})(tmp_path, piped)
    assert (engine.variant, engine.variant_why) == ("see:fp32,read:int8", "pinned by node.toml")


def test_an_engine_that_fails_while_it_is_timed_leaves_nothing_open(tmp_path, described):
    class Failing(Engine):
        def infer(self, inputs, *, alone=False):
            if self._world.now_s > 0.05:
                raise EngineFailure("the device is gone")
            return super().infer(inputs)

    world = World({"fp32": 0.02, "int8": 0.03})
    engines = best(world, {"": ("fp32", "int8")})
    opened = engines._open
    engines._open = lambda *order: (opened(*order).close(), Failing(world, list(order[2].values())))[1]
    with pytest.raises(EngineFailure, match="the device is gone"):
        engines(tmp_path, described)
    assert world.open == []
