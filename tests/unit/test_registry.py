"""The node registry: what is durable, and who counts as alive."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_controlplane.registry.nodes import RETURN_S
from nearmesh_controlplane.registry.reports import MAX_DETAIL_CHARACTERS, MAX_REPLICAS

from nearmesh.errors import InvalidInput, NotFound
from nearmesh.v1 import node_pb2
from tests.control_plane_state import LEASE_S, State, digest_of, replica, state


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[State]:
    async with state(tmp_path) as found:
        yield found


async def test_a_lease_runs_from_the_end_of_the_session(mesh: State) -> None:
    await mesh.join("n")
    assert mesh.registry.presence("n") == "gone"
    mesh.registry.session_opened("n")
    mesh.clock.now_s += 100 * LEASE_S
    assert mesh.registry.presence("n") == "live"
    mesh.registry.session_closed("n")
    mesh.clock.now_s += LEASE_S - 0.01
    assert mesh.registry.presence("n") == "suspect"
    mesh.clock.now_s += 0.01
    assert mesh.registry.presence("n") == "gone"
    mesh.registry.session_opened("n")
    assert mesh.registry.presence("n") == "live"


async def test_a_new_session_may_open_before_the_old_one_is_known_to_be_dead(mesh: State) -> None:
    await mesh.join("n")
    mesh.registry.session_opened("n")
    mesh.registry.session_opened("n")
    mesh.registry.session_closed("n")
    assert mesh.registry.presence("n") == "live"
    mesh.registry.session_closed("n")
    assert mesh.registry.presence("n") == "suspect"


async def test_a_change_of_presence_wakes_those_who_route_and_nothing_else_does(mesh: State) -> None:
    await mesh.node("n")
    seen = mesh.changes.value
    mesh.registry.expire()
    assert mesh.changes.value == seen
    mesh.registry.session_closed("n")
    assert mesh.changes.value == seen + 1
    mesh.clock.now_s += LEASE_S
    mesh.registry.expire()
    assert mesh.changes.value == seen + 2


async def test_a_restart_keeps_the_facts_and_gives_everyone_a_lease(tmp_path: Path) -> None:
    async with state(tmp_path) as before:
        await before.node("n", usd=1.0, hardware="h")
        await before.node("silent")
        await before.registry.set_price("n", 2.0)
        await before.registry.drain("n", undo=False)
        await before.registry.cordon("n", undo=False)
        await before.reports("n", replica())
        expected = before.registry.get("n")
    async with state(tmp_path) as after:
        assert after.registry.get("n") == expected
        assert (expected.usd_per_hour, expected.own_usd_per_hour, expected.draining) == (2.0, 1.0, True)
        assert list(after.registry.replicas("n").values()) == [replica()]
        # It served when it was last heard of, so it is tried, though last; the other one had nothing to lose.
        assert (after.registry.presence("n"), after.registry.presence("silent")) == ("suspect", "gone")
        assert after.registry.last_seen_s("n") == 0
        after.clock.now_s += LEASE_S
        assert after.registry.presence("n") == "gone"


async def test_after_a_restart_routes_wait_for_all_who_served_before(tmp_path: Path) -> None:
    async with state(tmp_path) as before:
        for name in ("back", "lost", "breaks"):
            await before.node(name)
            await before.reports(name, replica())
    async with state(tmp_path) as after:
        for name in ("back", "breaks"):
            after.registry.session_opened(name)
        after.registry.session_closed("breaks")
        standing = {node.id: after.registry.standing(node.id) for node in after.registry.all()}
        assert standing == {"back": "live", "lost": "live", "breaks": "suspect"}
        assert after.registry.presence("lost") == "suspect", "people are told what is"
        seen = after.changes.value
        after.clock.now_s += RETURN_S
        after.registry.expire()
        assert after.registry.standing("lost") == "suspect" and after.changes.value > seen


async def test_a_price_is_the_operators_else_the_nodes(mesh: State) -> None:
    await mesh.node("n", usd=1.5)
    assert mesh.registry.get("n").usd_per_hour == 1.5
    await mesh.registry.set_price("n", 0.0)
    assert mesh.registry.get("n").usd_per_hour == 0.0
    await mesh.registry.hello("n", node_pb2.NodeHello(usd_per_hour=9.0))
    assert (mesh.registry.get("n").usd_per_hour, mesh.registry.get("n").own_usd_per_hour) == (0.0, 9.0)


@pytest.mark.parametrize("price", [-0.01, math.nan, math.inf, 1e6])
async def test_what_is_no_price(mesh: State, price: float) -> None:
    await mesh.node("n", usd=1.5)
    with pytest.raises(InvalidInput, match="is not between 0 and 1,000,000"):
        await mesh.registry.set_price("n", price)
    assert mesh.registry.get("n").usd_per_hour == 1.5


@pytest.mark.parametrize(("given", "kept"), [(-1.0, 0.0), (0.0, 0.0), (math.nan, 0.0), (2.0, 2.0)])
async def test_a_node_that_names_no_price_is_free(mesh: State, given: float, kept: float) -> None:
    await mesh.node("n", usd=given)
    assert mesh.registry.get("n").own_usd_per_hour == kept


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, 1e6, 1e300])
async def test_a_price_that_cannot_be_one_counts_as_not_said(
    mesh: State, caplog: pytest.LogCaptureFixture, nonsense: float
) -> None:
    """A slip makes no node free, and keeps none away."""
    await mesh.node("n", usd=1.5)
    await mesh.registry.hello("n", node_pb2.NodeHello(usd_per_hour=nonsense, hardware="other"))
    found = mesh.registry.get("n")
    assert (found.own_usd_per_hour, found.hardware) == (1.5, "other")
    assert "node=n says that it costs" in caplog.text and "1.5 counts, as before" in caplog.text


async def test_who_leaves_is_out_until_it_comes_back(mesh: State) -> None:
    await mesh.node("n")
    await mesh.reports("n", draining=True)
    assert mesh.registry.leaving("n")
    mesh.registry.session_closed("n")
    assert mesh.registry.leaving("n")
    mesh.registry.session_opened("n")
    assert not mesh.registry.leaving("n")
    await mesh.registry.drain("n", undo=False)
    await mesh.reports("n", draining=False)
    assert mesh.registry.leaving("n")
    await mesh.registry.drain("n", undo=True)
    assert not mesh.registry.leaving("n")


async def test_reports_are_written_only_when_a_restart_must_know(mesh: State, monkeypatch: pytest.MonkeyPatch) -> None:
    await mesh.node("n")
    writes = 0
    run = mesh.db.run

    async def counted(*args: object) -> object:
        nonlocal writes
        writes += 1
        return await run(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(mesh.db, "run", counted)
    for service_ms in (1.0, 2.0, 3.0):
        await mesh.reports("n", replica(service_ms=service_ms))
    assert writes == 1
    # What was measured is seen all the same.
    assert mesh.registry.replicas("n")[digest_of("m", "1")].service_ms_p50 == 3.0
    await mesh.reports("n", replica(state=node_pb2.REPLICA_STATE_FAILED, detail="why"))
    on_trial = replica()
    on_trial.on_trial = True
    await mesh.reports("n", on_trial)
    await mesh.reports("n", replica())
    await mesh.reports("n")
    assert writes == 5
    assert mesh.registry.replicas("n") == {}


async def test_gateways_and_removed_nodes_serve_nobody(mesh: State) -> None:
    await mesh.node("b")
    await mesh.node("a")
    await mesh.join("door", kind="gateway")
    await mesh.registry.remove("b")
    assert [node.id for node in mesh.registry.all()] == ["a", "b", "door"]
    assert [node.id for node in mesh.registry.serving_nodes()] == ["a"]
    assert mesh.registry.removed_ids() == {"b"}


async def test_a_gateway_is_there_while_it_is_heard(mesh: State) -> None:
    door = await mesh.join("door", kind="gateway")
    assert not mesh.registry.live(door)
    mesh.registry.heard("door")
    assert mesh.registry.live(door)
    mesh.clock.now_s += LEASE_S
    assert not mesh.registry.live(door)


async def test_an_unknown_node_is_named_with_those_that_are_known(mesh: State) -> None:
    with pytest.raises(NotFound, match="no node 'x'; the mesh has none yet"):
        mesh.registry.get("x")
    await mesh.join("a")
    for change in (mesh.registry.drain("x", undo=False), mesh.registry.remove("x"), mesh.registry.set_price("x", 1)):
        with pytest.raises(NotFound, match="the mesh has a"):
            await change
    assert mesh.registry.presence("x") == "gone"


async def test_changing_nothing_wakes_nobody(mesh: State) -> None:
    await mesh.node("n")
    await mesh.registry.drain("n", undo=False)
    seen = mesh.changes.value
    await mesh.registry.drain("n", undo=False)
    assert mesh.changes.value == seen


async def test_a_notice_is_shown_with_the_time_that_is_left(mesh: State) -> None:
    await mesh.node("n")
    assert mesh.registry.notice("n") == ("", 0.0)
    status = node_pb2.NodeStatus(draining=True, notice="spot", notice_s=25.0, in_flight=3, sequences=2, drained=True)
    await mesh.registry.status("n", status)
    mesh.clock.now_s += 10
    assert mesh.registry.notice("n") == ("spot", 15.0)
    assert mesh.registry.under_way("n") == (3, 2, True)
    mesh.clock.now_s += 100
    assert mesh.registry.notice("n") == ("spot", 0.0)
    # Gone, and back again.
    mesh.registry.session_closed("n")
    assert mesh.registry.notice("n") == ("", 0.0)
    mesh.registry.session_opened("n")
    assert (mesh.registry.notice("n"), mesh.registry.under_way("n")) == (("", 0.0), (0, 0, False))
    assert (mesh.registry.notice("x"), mesh.registry.under_way("x")) == (("", 0.0), (0, 0, False))


@pytest.mark.parametrize("notice_s", [math.nan, math.inf, -1.0, 1e9])
async def test_what_a_node_says_of_its_notice_is_bounded(mesh: State, notice_s: float) -> None:
    await mesh.node("n")
    await mesh.registry.status("n", node_pb2.NodeStatus(notice="x" * 10_000, notice_s=notice_s))
    reason, left_s = mesh.registry.notice("n")
    assert (len(reason), left_s) == (200, 0.0)


async def test_since_when_a_replica_is_ready(mesh: State) -> None:
    digest = digest_of("m", "1")
    await mesh.node("n")
    assert mesh.registry.ready_since("n").get(digest) is None
    await mesh.reports("n", replica(state=node_pb2.REPLICA_STATE_LOADING))
    assert mesh.registry.ready_since("n").get(digest) is None
    began_s = mesh.clock.now_s = 2000.0
    await mesh.reports("n", replica())
    mesh.clock.now_s += 50
    await mesh.reports("n", replica(), replica("m", "2"))
    assert mesh.registry.ready_since("n").get(digest) == began_s
    assert mesh.registry.ready_since("n").get(digest_of("m", "2")) == began_s + 50
    # A session that broke and opened again, with the replica ready all the while.
    mesh.registry.session_closed("n")
    mesh.registry.session_opened("n")
    await mesh.reports("n", replica())
    assert mesh.registry.ready_since("n").get(digest) == began_s
    # A process that was started again.
    await mesh.reports("n", replica(state=node_pb2.REPLICA_STATE_PULLING))
    assert mesh.registry.ready_since("n").get(digest) is None
    mesh.clock.now_s += 5
    await mesh.reports("n", replica())
    assert mesh.registry.ready_since("n").get(digest) == began_s + 55
    assert mesh.registry.ready_since("x").get(digest) is None


async def test_who_was_ready_before_the_control_plane_started_is_no_newcomer(tmp_path: Path) -> None:
    ready, loading = digest_of("m", "1"), digest_of("m", "2")
    async with state(tmp_path) as before:
        await before.node("n")
        await before.reports("n", replica(), replica("m", "2", state=node_pb2.REPLICA_STATE_LOADING))
    async with state(tmp_path) as after:
        assert after.registry.ready_since("n").get(ready) == -math.inf
        assert after.registry.ready_since("n").get(loading) is None
        after.registry.session_opened("n")
        await after.reports("n", replica(), replica("m", "2"))
        assert after.registry.ready_since("n").get(ready) == -math.inf
        assert after.registry.ready_since("n").get(loading) == after.clock.now_s


async def test_what_a_node_says_of_its_replicas_is_bounded(mesh: State) -> None:
    await mesh.node("n")
    await mesh.reports("n", replica(detail="x" * 10_000))
    assert [len(said.detail) for said in mesh.registry.replicas("n").values()] == [MAX_DETAIL_CHARACTERS]
    with pytest.raises(InvalidInput, match="1001 replicas; at most 1000"):
        await mesh.reports("n", *[replica(version=str(number)) for number in range(MAX_REPLICAS + 1)])
    assert len(mesh.registry.replicas("n")) == 1
    with pytest.raises(InvalidInput, match=r"'vvvvvvvvvvvvvvvvvvvv'\.\.\. has 256 characters; at most 255"):
        await mesh.reports("n", replica(variant="v" * 256))
    with pytest.raises(InvalidInput, match="256 characters"):
        await mesh.registry.hello("n", node_pb2.NodeHello(hardware="h" * 256))
    assert mesh.registry.get("n").hardware == ""


async def test_a_report_that_says_nothing_new_leaves_everything_as_it_was(mesh: State) -> None:
    """The same object: what others worked out from it holds."""
    await mesh.node("n")
    await mesh.reports("n", replica(), replica("m", "2"))
    before = mesh.registry.replicas("n")
    await mesh.reports("n", replica(), replica("m", "2"))
    assert mesh.registry.replicas("n") is before
    await mesh.reports("n", replica(), replica("m", "2", service_ms=7.0))
    assert mesh.registry.replicas("n") is not before and len(mesh.registry.replicas("n")) == 2
    await mesh.reports("n", replica())
    assert len(mesh.registry.replicas("n")) == 1


async def test_a_node_that_is_idle_says_the_same_for_as_long(mesh: State) -> None:
    """The same object, with the time as it is now."""
    await mesh.node("n")
    said = replica()
    for idle_s in (1.0, 2.0, 3.5):
        said.idle_s = idle_s
        again = node_pb2.ReplicaStatus()
        again.CopyFrom(said)
        await mesh.reports("n", again)
        if idle_s == 1.0:
            before = mesh.registry.replicas("n")
        assert mesh.registry.replicas("n") is before
        assert mesh.registry.replicas("n")[said.digest].idle_s == idle_s


@pytest.mark.parametrize("idle_s", [math.nan, math.inf, -1.0])
async def test_a_time_that_cannot_be_counts_as_just_now(mesh: State, idle_s: float) -> None:
    await mesh.node("n")
    said = replica()
    said.idle_s = idle_s
    await mesh.reports("n", said)
    assert mesh.registry.replicas("n")[said.digest].idle_s == 0
