"""A real agent that is killed again and again while it pulls a version: it goes on from what it has, and what it loads
is whole."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

from nearmesh.chunks import ChunkIndex
from nearmesh.oci import Manifest, digest_file
from nearmesh.packaging.build import Artifact
from tests.heavy_model import ADDED, heavy
from tests.integration.mesh_processes import Node, added, control_plane, node, question

WEIGHTS_MIB = 48
# The pull takes some seconds, whatever machine this is.
MBIT_S = 160.0
_TAKEN_UP = re.compile(r"taken up model=heavy blob=(\S+) chunks=(\d+)")
_FROM_REGISTRY = re.compile(r"pulled model=heavy .* the_registry=(\d+)")
_LINE = re.compile(rb"^(\d+) sha256:[0-9a-f]{64}\n", re.MULTILINE)


async def killed_while_pulling(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Counts what happened. Raises AssertionError where something torn appears, or where what was here is not used."""
    chance = random.Random(seed)
    artifact = await asyncio.to_thread(heavy, folder / "package", WEIGHTS_MIB)
    found = {"kills": 0, "while_pulling": 0, "taken_up": 0, "whole_at_kill": 0}
    async with control_plane(folder / "plane") as plane:
        async with plane.operator() as operator:
            await operator.publish(artifact)
            await operator.deploy("heavy", "1")
        store = {"bandwidth_mbit_s": MBIT_S}
        async with node(plane, folder / "agent", "here", store=store) as agent:
            total, journals = _chunks(artifact), dict[str, int]()
            for number in range(kills):
                if number:
                    await agent.start()
                await _come_to(agent, artifact, chance.uniform(_journaled(agent), total * 1.02))
                await agent.kill()
                found["kills"] += 1
                found["taken_up"] += _check_taken_up(agent, journals)
                journals = _journals(agent)
                agent.child.log_path.write_bytes(b"")
                if _check_whole(agent, artifact):
                    found["whole_at_kill"] += 1
                    shutil.rmtree(agent.data / "models")
                    journals = {}
                elif _journaled(agent):
                    found["while_pulling"] += 1
            await agent.start()
            await agent.serves("heavy", "1")
            answer = await agent.stub().ModelInfer(question("heavy"), timeout=10)
            assert added(answer) == ADDED
            assert _check_whole(agent, artifact)
            found["taken_up"] += _check_taken_up(agent, journals)
    return found


async def killed_sharer(folder: Path) -> dict[str, Any]:
    """Three agents of a site pull at once, and one is killed half way: the others take its share over."""
    artifact = await asyncio.to_thread(heavy, folder / "package", WEIGHTS_MIB)
    store = {"bandwidth_mbit_s": MBIT_S / 2}
    async with (
        control_plane(folder / "plane") as plane,
        node(plane, folder / "a", "a", site="s", store=store) as a,
        node(plane, folder / "b", "b", site="s", store=store) as b,
        node(plane, folder / "c", "c", site="s", store=store) as c,
    ):
        async with plane.operator() as operator:
            await operator.publish(artifact)
            await operator.deploy("heavy", "1")
        await _come_to(c, artifact, _chunks(artifact) / 2)
        began_s = time.monotonic()
        await c.kill()
        await asyncio.gather(a.serves("heavy", "1", within_s=60), b.serves("heavy", "1", within_s=60))
        seconds = time.monotonic() - began_s
        read = [int(size) for each in (a, b) for size in _FROM_REGISTRY.findall(each.log)]
        assert len(read) == 2, (a.log, b.log)
        # What the dead one had and had not handed on is read anew.
        assert sum(read) <= 1.4 * artifact.manifest.size_bytes, read
        return {"seconds": seconds, "times_the_size": sum(read) / artifact.manifest.size_bytes}


def _chunks(artifact: Artifact) -> int:
    assert artifact.manifest.chunks
    index = artifact.blobs[artifact.manifest.chunks.digest]
    assert isinstance(index, bytes)
    return sum(len(chunks) for chunks in ChunkIndex.from_bytes(index).files.values())


def _journals(agent: Node) -> dict[str, int]:
    """By blob the number of chunks in lines that are whole."""
    found = {}
    for path in (agent.data / "models" / "drafts").glob("*/*.done"):
        # It goes when its blob is whole.
        with contextlib.suppress(FileNotFoundError):
            found[f"sha256:{path.stem}"] = len(set(_LINE.findall(path.read_bytes())))
    return found


def _journaled(agent: Node) -> int:
    return sum(_journals(agent).values())


async def _come_to(agent: Node, artifact: Artifact, chunks: float, within_s: float = 60.0) -> None:
    """Until so many chunks are here, or all of the version is."""
    end_s = time.monotonic() + within_s
    while not _folder(agent, artifact).exists() and _journaled(agent) < chunks:
        assert time.monotonic() < end_s, agent.child.last_words(30)
        await asyncio.sleep(0.005)


def _folder(agent: Node, artifact: Artifact) -> Path:
    return agent.data / "models" / "versions" / artifact.digest.removeprefix("sha256:")


def _check_whole(agent: Node, artifact: Artifact) -> bool:
    """Whether the version is there; if it is, then all of it, and right."""
    folder = _folder(agent, artifact)
    if not folder.exists():
        return False
    assert Manifest.from_bytes((folder / "manifest.json").read_bytes()) == artifact.manifest
    for file in artifact.manifest.files:
        assert digest_file(folder / file.title) == file.digest
    for blob in (agent.data / "models" / "blobs").iterdir():
        assert digest_file(blob) == f"sha256:{blob.name}"
    return True


def _check_taken_up(agent: Node, before: dict[str, int]) -> bool:
    """What was written down when the agent was killed before, `before`, was used when it started again."""
    told = {blob: int(chunks) for blob, chunks in _TAKEN_UP.findall(agent.log)}
    for blob, chunks in before.items():
        # It may have been killed again before it looked.
        assert blob not in told or told[blob] >= chunks, (told, before)
    return bool(told)
