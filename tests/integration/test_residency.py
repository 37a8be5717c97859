"""Over gRPC with ONNX Runtime: more models than memory, and Triton's model control."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from nearmesh_agent.config import NodeConfig
from nearmesh_agent.server import POLICY
from tritonclient.utils import InferenceServerException

from nearmesh.rpc import OPERATORS
from tests.serving_node import scaler, serving_node

MIB = 2**20


async def test_sixty_models_in_memory_for_six_answer_zipf_traffic(tmp_path: Path) -> None:
    async with serving_node(NodeConfig(data=tmp_path, memory_budget_mib=6)) as node:
        for number in range(60):
            folder = scaler(tmp_path / f"m{number}", f"m{number}", factor=number, memory_bytes=MIB)
            await node.add(folder)
        table = node.node.table
        assert sum(replica.active for replica in table) == 6
        chance = random.Random(1)
        asked = chance.choices(range(60), weights=[1 / (rank + 1) for rank in range(60)], k=300)

        async def caller(share: list[int]) -> None:
            for number in share:
                assert await node.ask(f"m{number}") == number
                assert node.node.residency.used_bytes <= 6 * MIB

        await asyncio.gather(*(caller(asked[start::4]) for start in range(4)))
        loads = sum(replica.tally.loads for replica in table)
        evictions = sum(replica.tally.evictions for replica in table)
        # The hot ones stayed.
        assert 60 < loads < 60 + len(asked) and loads - evictions == 6
        assert await node.client.is_server_ready()


async def test_triton_s_model_control(tmp_path: Path) -> None:
    async with serving_node(NodeConfig(data=tmp_path)) as node:
        await node.add(scaler(tmp_path / "m", "m"))
        await node.add(scaler(tmp_path / "n", "n", factor=3))

        async def index() -> dict[str, tuple[str, str]]:
            found = await node.client.get_model_repository_index()
            return {model.name: (model.state, model.reason) for model in found.models}

        assert await index() == {"m": ("READY", ""), "n": ("READY", "")}
        await node.client.unload_model("m")
        assert await index() == {"m": ("UNAVAILABLE", "unloaded"), "n": ("READY", "")}
        assert not await node.client.is_model_ready("m")
        # What an operator wanted out is no fault of the node.
        assert await node.client.is_server_ready()
        with pytest.raises(InferenceServerException, match="'m' is unloaded by an operator") as caught:
            await node.ask("m")
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        await node.node.table.get("n").deactivate()
        assert (await index())["n"] == ("READY", "cold")
        assert await node.client.is_model_ready("n") and await node.ask("n") == 3
        await node.client.load_model("m")
        assert await node.ask("m") == 2
        assert await index() == {"m": ("READY", ""), "n": ("READY", "")}
        with pytest.raises(InferenceServerException, match=r"takes no parameters here, got .'config'.") as caught:
            await node.client.load_model("m", config="{}")
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_model_control_is_for_operators(method: str) -> None:
    assert POLICY[f"/inference.GRPCInferenceService/{method}"] == OPERATORS


async def test_a_model_that_is_larger_than_the_node_s_memory(tmp_path: Path) -> None:
    async with serving_node(NodeConfig(data=tmp_path, memory_budget_mib=10)) as node:
        with pytest.raises(Exception, match=r"needs about 11\.0 MiB .* 10\.0 MiB: raise `memory_budget_mib`"):
            await node.add(scaler(tmp_path / "m", "m", memory_bytes=11 * MIB))
        assert not await node.client.is_server_ready()
