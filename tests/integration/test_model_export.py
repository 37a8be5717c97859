"""From a published version to a folder that an image is made of, and from there into a node that pulls nothing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

from nearmesh.devmesh.children import script
from nearmesh.oci_layout import Layout
from nearmesh.signature import tag
from tests.integration.adding_model import adding
from tests.integration.mesh_processes import ControlPlane, control_plane, node


async def export(plane: ControlPlane, folder: Path, *targets: str) -> subprocess.CompletedProcess[str]:
    (folder / "ca.pem").write_bytes(plane.authority.ca_pem)
    (folder / "operator.jwt").write_text(plane.token("operator"))
    place = ["--control-plane", plane.public, "--ca", str(folder / "ca.pem"), "--token", str(folder / "operator.jwt")]
    command = [script("nearmesh"), *place, "model", "export", *targets, "--into", str(folder / "weights"), "--json"]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ)
    )


async def test_a_node_with_its_weights_in_the_image_pulls_nothing(tmp_path: Path) -> None:
    artifacts = [adding(tmp_path / name, name, "1", float(number)) for number, name in enumerate(("one", "two"), 1)]
    async with control_plane(tmp_path / "plane") as plane, plane.operator() as operator:
        for artifact in artifacts:
            await operator.publish(artifact)
        done = await export(plane, tmp_path, "one", "two@1")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["versions"]
        assert [(one["model"], one["digest"], one["signed"]) for one in found] == [
            (artifact.manifest.model, artifact.digest, True) for artifact in artifacts
        ]
        layout = Layout(tmp_path / "weights")
        assert layout.named("one:1") == artifacts[0].manifest_bytes
        assert layout.named(f"two:{tag(artifacts[1].digest)}")

        await operator.deploy("one", "1")
        baked = {"baked": [str(tmp_path / "weights")]}
        async with node(plane, tmp_path / "node", "node", store=baked) as agent:
            await agent.serves("one", "1")
        (link,) = (tmp_path / "node").rglob("fp32.onnx")
        assert link.resolve().is_relative_to(tmp_path / "weights"), "used where it lies"


async def test_a_version_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with control_plane(tmp_path / "plane") as plane, plane.operator() as operator:
        await operator.publish(adding(tmp_path / "one", "one", "1", 1.0))
        done = await export(plane, tmp_path, "one@2")
    assert done.returncode == 1 and "no version '2' of 'one'" in done.stderr
