"""What a replica proves before it serves: its warm-up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from nearmesh_agent.serving.replica import Replica

from nearmesh.errors import PackageError, WarmupFailed
from nearmesh.lineage import LINEAGE_FILE
from nearmesh.package import Warmup
from nearmesh.quantiles import LEAST_SAMPLES
from tests.gated_engine import Gate
from tests.tiny_models import package, spec, write_warmup

PACKAGE = package("doubler", [spec("x", "FP32", -1)], [spec("y", "FP32", -1)])
INPUT = {"x": np.array([1.0, 2.0], np.float32)}


async def load(folder, engine, **changes):
    described = replace(PACKAGE, **changes)
    return await Replica.load(folder, "sha256:1", engine_factory=lambda *_: engine, package=described)


async def test_warm_up_measures(tmp_path):
    warmup = write_warmup(tmp_path, input_x=INPUT["x"], output_y=INPUT["x"] * 2)
    replica = await load(tmp_path, Gate(), warmup=(warmup,))
    stats = replica.stats()
    assert stats.service.p50_ms > 0 and stats.inferences_per_second > 0
    before = stats.service.p95_ms
    for _ in range(LEAST_SAMPLES):
        replica.measured.served(before + 1000)
    assert replica.stats().service.p95_ms == pytest.approx(before + 1000, rel=0.02)
    await replica.close()


async def test_one_slow_call_of_the_warm_up_does_not_speak_for_the_node(tmp_path):
    now = 0.0

    class Hiccup(Gate):
        def infer(self, inputs, *, alone=False):
            nonlocal now
            found = super().infer(inputs, alone=alone)
            now += 0.5 if self.calls == 3 else 0.01
            return found

    warmup = write_warmup(tmp_path, input_x=INPUT["x"], output_y=INPUT["x"] * 2)
    described = replace(PACKAGE, warmup=(warmup,))
    replica = await Replica.load(
        tmp_path, "sha256:1", engine_factory=lambda *_: Hiccup(), package=described, clock=lambda: now
    )
    stats = replica.stats()
    assert (stats.service.p50_ms, stats.service.p95_ms) == pytest.approx((10, 10))
    assert stats.inferences_per_second == pytest.approx(100)
    await replica.close()


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ([2.0, 4.5], "output 'y' differs from what is expected by up to 0.5"),
        ([2.0, 4.0, 6.0], r"output 'y' has shape \[2\], expected \[3\]"),
        ([2.0, np.nan], "output 'y' differs"),
    ],
)
async def test_a_wrong_warm_up_never_serves(tmp_path, expected, said):
    warmup = write_warmup(tmp_path, input_x=INPUT["x"], output_y=np.array(expected, np.float32))
    engine = Gate()
    with pytest.raises(WarmupFailed, match=said):
        await load(tmp_path, engine, warmup=(warmup,))
    assert engine.closed == 1


async def test_an_answer_that_is_not_a_number(tmp_path):
    class Nan(Gate):
        def infer(self, inputs, *, alone=False):
            return {"y": np.array([2, np.nan], np.float32)}

    warmup = write_warmup(tmp_path, input_x=INPUT["x"], output_y=np.array([2, np.nan], np.float32))
    with pytest.raises(WarmupFailed, match="1 of 2 values are NaN"):
        await load(tmp_path, Nan(), warmup=(warmup,))


async def test_other_wrong_warm_ups(tmp_path):
    broken = write_warmup(tmp_path, "nan.npz", input_x=np.array([np.nan], np.float32), output_y=INPUT["x"])
    other = write_warmup(tmp_path, "other.npz", input_x=INPUT["x"], output_z=INPUT["x"])
    empty = write_warmup(tmp_path, "empty.npz", input_x=INPUT["x"])
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "nothing.npz").write_bytes(b"")
    packed = tmp_path / "packed.npz"
    np.savez_compressed(packed, **{"input.x": np.zeros(999, np.float32)})
    spoilt = bytearray(packed.read_bytes())
    # After the name and numpy's extra field in the archive's first header: the packed bytes.
    start = spoilt.index(b"input.x.npy") + 31
    spoilt[start : start + 20] = b"\xff" * 20
    packed.write_bytes(spoilt)
    for warmup, error, said in (
        (broken, WarmupFailed, "nan.npz: not a number"),
        (other, WarmupFailed, "output 'z' is expected, the model has"),
        (empty, PackageError, "proves nothing"),
        (Warmup(file="text.npz"), PackageError, "text.npz is not an .npz"),
        (Warmup(file="nothing.npz"), PackageError, "nothing.npz is not an .npz"),
        (Warmup(file="packed.npz"), PackageError, "packed.npz is not an .npz"),
        (Warmup(file="absent.npz"), PackageError, "absent.npz is not an .npz"),
    ):
        with pytest.raises(error, match=said):
            await load(tmp_path, Gate(), warmup=(warmup,))


async def test_a_lineage_that_cannot_be_read_keeps_no_version_from_serving(tmp_path, caplog):
    (tmp_path / LINEAGE_FILE).write_text('{"run": "spring", "of_a_newer_mesh": 1}')
    replica = await load(tmp_path, Gate())
    assert replica.run == ""
    assert "receipts will not say which run made the version" in caplog.text
    await replica.close()
