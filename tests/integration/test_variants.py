"""Variants for real: made by the libraries' tools, tried by the agent's program, published, chosen by a node."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearmesh.errors import PackageError
from nearmesh.package import load
from nearmesh.packaging.agent_run import by_agent
from nearmesh.packaging.build import build
from nearmesh.packaging.release import release
from nearmesh.report import REPORT_FILE, Report
from tests.integration.mesh_processes import control_plane, node, until
from tests.variants_package import EVALUATION, QUANTIZE, write_package

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("package"), QUANTIZE, EVALUATION)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def nearmesh(*arguments: str, cache: Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("nearmesh")), *arguments]
    environment = os.environ | {"NEARMESH_CACHE": str(cache)} | more
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_every_variant_is_tried_as_a_node_runs_it(folder: Path, cache: Path) -> None:
    done = nearmesh("model", "evaluate", str(folder), "--json", cache=cache)
    assert done.returncode == 0, done.stderr
    report = Report.from_bytes(done.stdout.encode())
    assert [variant.name for variant in report.variants] == ["fp32", "int8", "light", "half"]
    assert report.cases == 60
    for variant in report.variants:
        assert variant.passed and variant.ms_p50 > 0 and variant.rows_per_second > 0
        assert variant.metric is not None and variant.metric > 0.9
    made = {variant.name: variant for variant in report.variants[1:]}
    assert made["int8"].warmup_difference.keys() == {"y"}, "8 bits are not 32"
    assert made["light"].size_bytes < report.variants[0].size_bytes


def test_a_crash_of_a_variant_is_its_own(folder: Path, cache: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "fp32.onnx").write_bytes(b"no graph")
    with pytest.raises(PackageError, match="ONNX Runtime cannot load it"):
        by_agent(broken, {"": "fp32"}, folder / "evaluation.npz")


def published(folder: Path, cache: Path, **changes: Any) -> Any:
    """The artifact, with a report that says something else."""
    artifact = release(folder, cache)
    digest = next(file.digest for file in artifact.manifest.files if file.title == REPORT_FILE)
    content = artifact.blobs[digest]
    report = Report.from_bytes(content if isinstance(content, bytes) else content.read_bytes())
    changed = replace(report, variants=tuple(replace(v, **changes.get(v.name, {})) for v in report.variants))
    path = cache / "changed.json"
    path.write_bytes(changed.to_bytes())
    files = {file.title: artifact.blobs[file.digest] for file in artifact.manifest.files}
    more = {name: Path(str(files[name])) for name in ("int8.onnx", "light.onnx", "half.onnx")}
    return build(folder, cache, more={**more, REPORT_FILE: path})


async def test_p5_a_mesh_serves_what_passed_and_says_why(folder: Path, cache: Path, tmp_path: Path) -> None:
    async with control_plane(tmp_path / "mesh") as plane, node(plane, tmp_path / "node", "n1"):
        async with plane.operator() as operator:
            with pytest.raises(PackageError, match="'int8' did not pass its gate: it is bad"):
                await operator.publish(published(folder, cache, int8={"passed": False, "why": "it is bad"}))
            with pytest.raises(PackageError, match="speaks of 'light' with sha256:0000"):
                await operator.publish(published(folder, cache, light={"digest": f"sha256:{'0' * 64}"}))
            artifact = await asyncio.to_thread(release, folder, cache)
            version = await operator.publish(artifact)
            # From another machine: the same files, other times.
            again = await operator.publish(published(folder, cache, fp32={"ms_p50": 123.0}))
            assert (again.digest, again.version) == (version.digest, version.version)
            await operator.deploy("classes", "1")

            async def serves() -> bool:
                replicas = (await operator.model("classes")).replicas
                return bool(replicas) and replicas[0].status.variant_why != ""

            await until(serves)
            model = await operator.model("classes")
        status = model.replicas[0].status
        assert status.variant in ("fp32", "int8", "light")
        assert re.search(r"(times as fast as \w+|is no faster) here", status.variant_why)
        report = json.loads(model.versions[0].report_json)
        assert report == json.loads(_report_of(artifact))


def _report_of(artifact: Any) -> bytes:
    digest = next(file.digest for file in artifact.manifest.files if file.title == REPORT_FILE)
    content = artifact.blobs[digest]
    return content if isinstance(content, bytes) else content.read_bytes()


def test_a_pipeline_is_tried_one_variant_at_a_time(tmp_path: Path, cache: Path) -> None:
    folder = write_package(tmp_path / "piped")
    text = (folder / "model.toml").read_text()
    text = text.replace('name = "fp32"\n', 'name = "fp32"\nstep = "score"\n').replace("[batching]\nmax_batch = 8\n", "")
    steps = (
        '\n[[steps]]\nname = "score"\noutputs = { y = "raw" }\n\n[[steps]]\nname = "pick"\npython = "steps.py:pick"\n'
    )
    quantize = QUANTIZE.split('[[quantize]]\nvariant = "half"')[0].replace(
        'kind = "int8', 'step = "score"\nkind = "int8'
    )
    (folder / "model.toml").write_text(text + steps + quantize + EVALUATION)
    (folder / "steps.py").write_text("def pick(raw):\n    return {'y': raw * 1}\n")
    report = Report.from_bytes(nearmesh("model", "evaluate", str(folder), "--json", cache=cache).stdout.encode())
    assert [variant.label for variant in report.variants] == ["score:fp32", "score:int8", "score:light"]
    assert all(variant.passed for variant in report.variants)
    assert load(folder).steps and np.isfinite([variant.metric or 0 for variant in report.variants]).all()
