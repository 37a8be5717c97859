"""kill -9 of the control plane at points of an upload that brings the new chunks of a file and names the others."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import numpy as np
import pytest

from nearmesh.client.admin import AdminClient
from nearmesh.errors import MeshError, Unreachable
from nearmesh.oci import digest_file
from nearmesh.packaging.build import Artifact
from tests.integration.adding_model import tuned
from tests.integration.mesh_processes import ControlPlane, control_plane, until

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(180)]

# Of what is to be sent; at the last one the files are being put together.
POINTS = (0.0, 0.4, 0.9, 1.0)
BODY = np.random.default_rng(9).bytes(6_000_000)


async def test_p3_a_control_plane_killed_while_it_is_sent_a_version_takes_it_afterwards(tmp_path: Path) -> None:
    async with control_plane(tmp_path / "plane") as plane:
        # Half of it is known to the control plane, so that each upload has chunks of both kinds.
        async with plane.operator() as operator:
            await operator.publish(tuned(tmp_path / "0", "0", body=BODY[:3_000_000]))
        for number, point in enumerate(POINTS, 1):
            made = tuned(tmp_path / str(number), str(number), body=BODY[: 3_000_000 + 500_000 * number])
            await killed_at(plane, made, point)
            assert made.digest not in index(plane) or whole(plane, made)
            await plane.start()
            async with plane.operator() as operator:
                await until(functools.partial(answers, operator), what="the control plane is back")
                assert (await operator.publish(made)).digest == made.digest
            assert whole(plane, made)
            assert not list((plane.data / "oci" / "blobs" / "sha256").glob(".incoming-*"))


async def killed_at(plane: ControlPlane, made: Artifact, point: float) -> None:
    """Publishes, and kills the control plane when so much has been handed to the connection."""
    loop, reached = asyncio.get_running_loop(), asyncio.Event()

    def watch(done: int, total: int) -> None:
        if done >= point * total:
            loop.call_soon_threadsafe(reached.set)

    async def publish() -> None:
        async with plane.operator() as operator:
            await operator.publish(made, watch)

    publishing = asyncio.create_task(publish())
    async with asyncio.timeout(60):
        await reached.wait()
    await plane.kill()
    try:
        await publishing
    except MeshError:
        pass


async def answers(operator: AdminClient) -> bool:
    """gRPC waits for a moment before it looks again for a server that was away."""
    try:
        await operator.models()
    except Unreachable:
        return False
    return True


def index(plane: ControlPlane) -> str:
    return (plane.data / "oci" / "index.json").read_text()


def whole(plane: ControlPlane, made: Artifact) -> bool:
    """Whether all of the version is there and right."""
    blobs = plane.data / "oci" / "blobs" / "sha256"
    return all(digest_file(blobs / blob.digest[7:]) == blob.digest for blob in made.manifest.blobs)
