"""A node measures whom the control plane names, and hands over each round trip once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from nearmesh_agent.session.peers import MAX_KEPT, MAX_PEERS, PeerTimes

from nearmesh.v1 import node_pb2


def peer(name: str, address: str = "127.0.0.1:1") -> node_pb2.Peer:
    return node_pb2.Peer(node=name, address=address, server_name=f"{name}.test")


def times(*peers: node_pb2.Peer) -> PeerTimes:
    return PeerTimes(lambda: peers, lambda: cast(Any, SimpleNamespace()))


async def test_targets_are_the_peers_of_the_moment_within_bounds() -> None:
    asked = [peer("a"), peer("b", "nonsense"), peer("c", "[::1]:8003")]
    found = await times(*asked)._targets()
    assert [(target.node, target.server_name) for target in found] == [("a", "a.test"), ("c", "c.test")]
    many = [peer(f"n{number}") for number in range(100)]
    assert len(await times(*many)._targets()) == MAX_PEERS


async def test_each_round_trip_is_handed_over_once() -> None:
    found = times()
    await found._keep({"a": [1.0], "b": [2.0]})
    await found._keep({"a": [3.0]})
    assert {sample.node: list(sample.network_ms) for sample in found.take()} == {"a": [1.0, 3.0], "b": [2.0]}
    assert found.take() == []


async def test_while_the_control_plane_is_away_the_latest_are_kept() -> None:
    found = times()
    for number in range(1000):
        await found._keep({"a": [float(number)], f"n{number}": [1.0]})
    samples = {sample.node: list(sample.network_ms) for sample in found.take()}
    assert len(samples) == 2 * MAX_PEERS
    assert samples["a"] == [float(number) for number in range(1000 - MAX_KEPT, 1000)]
