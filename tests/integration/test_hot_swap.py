"""Swaps under traffic with ONNX Runtime: no request fails, and no memory is left behind."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from nearmesh_agent.config import NodeConfig
from nearmesh_agent.serving import memory
from tritonclient.utils import InferenceServerException

from tests.hot_swaps import SWAPS, Deployer
from tests.serving_node import scaler, serving_node


async def test_p4_a_hundred_swaps_under_traffic_fail_no_request_and_leave_no_memory_behind(tmp_path: Path) -> None:
    # In a process of its own: what other tests left behind is not this one's.
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.hot_swaps", str(tmp_path), stdout=PIPE, stderr=PIPE
    )
    async with asyncio.timeout(90):
        output, errors = await child.communicate()
    assert child.returncode == 0, errors.decode()
    found = json.loads(output)
    assert set(found["answers"]) == {"1.0", "2.0"} and min(found["answers"].values()) > SWAPS
    assert found["after"] <= found["before"] * 1.03


async def test_p4_requests_that_name_the_old_version_are_answered_until_it_is_drained(tmp_path: Path) -> None:
    for version in (1, 2):
        scaler(tmp_path / f"v{version}", "m", factor=version, version=str(version))
    async with serving_node(NodeConfig(data=tmp_path)) as node:
        deployer = Deployer(tmp_path, node, drain_s=1.0)
        await deployer.deploy(1)
        assert await node.ask("m", version="1") == 1
        await deployer.deploy(2, alone=False)
        # New requests that name it, after the shift.
        for _ in range(5):
            assert (await node.ask("m"), await node.ask("m", version="1")) == (2, 1)
        await deployer.deploy(2)
        with pytest.raises(InferenceServerException, match="has no version '1' on this node; it has '2'"):
            await node.ask("m", version="1")
        await deployer.reconciler.close()


async def test_p4_a_swap_on_a_node_with_memory_for_one_version_more_puts_others_out(tmp_path: Path) -> None:
    for version in (1, 2):
        scaler(tmp_path / f"v{version}", "m", factor=version, version=str(version), memory_bytes=memory.MIB)
    async with serving_node(NodeConfig(data=tmp_path, memory_budget_mib=2)) as node:
        deployer = Deployer(tmp_path, node, drain_s=0.0)
        await deployer.deploy(1)
        await node.add(scaler(tmp_path / "other", "other", factor=9, memory_bytes=memory.MIB))
        loads = node.node.table.get("m").tally.loads
        await deployer.deploy(2)
        assert not node.node.table.get("other").active and loads == 1
        assert (await node.ask("m"), await node.ask("other")) == (2, 9)
        await deployer.reconciler.close()
