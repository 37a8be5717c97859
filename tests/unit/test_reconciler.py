"""Working towards the wanted state: in one step, back when it is wrong, and through changes of mind."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_agent.session import outgoing

from nearmesh.errors import DigestMismatch, NotFound, NotReady, Unreachable, WarmupFailed
from nearmesh.routing.times import Times
from tests.steered_node import FAILED, LOADING, PULLING, READY, UNLOADED, UNLOADING, Node, digest, steered, still, until


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    async with steered(tmp_path, monkeypatch) as found:
        yield found


async def test_a_wanted_version_is_pulled_loaded_and_serves(node: Node) -> None:
    node.pull_waits[digest("m-1")], node.load_waits[digest("m-1")] = asyncio.Event(), asyncio.Event()
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": PULLING})
    with pytest.raises(NotReady, match="being loaded"):
        node.table.get("m")
    node.pull_waits[digest("m-1")].set()
    await until(lambda: node.states() == {"m-1": LOADING})
    node.load_waits[digest("m-1")].set()
    await until(lambda: node.states() == {"m-1": READY})
    assert node.answers() == "1"
    (status,) = node.reconciler.statuses()
    assert (status.variant, status.service_ms_p95, status.inferences_per_second) == ("fp32", 2, 3)


async def test_the_old_version_answers_until_the_new_one_takes_over_and_is_then_closed(node: Node) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.load_waits[digest("m-2")] = asyncio.Event()
    old = node.loaded[0]
    old.let_go.clear()
    node.want("m-2")
    await until(lambda: node.states() == {"m-1": READY, "m-2": LOADING})
    assert node.answers() == "1"
    node.load_waits[digest("m-2")].set()
    await until(lambda: node.states() == {"m-1": UNLOADING, "m-2": READY})
    assert (node.answers(), old.closed) == ("2", False)
    old.let_go.set()
    await until(lambda: node.states() == {"m-2": READY})
    assert old.closed


async def test_p5_a_version_that_proves_wrong_never_serves_and_is_not_tried_again(node: Node) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.load_errors[digest("m-2")] = WarmupFailed("off by one")
    node.want("m-2")
    await until(lambda: node.states() == {"m-1": READY, "m-2": FAILED})
    assert node.detail("m-2") == "WARMUP_FAILED: off by one"
    assert node.answers() == "1"
    # Neither time nor another message makes it right.
    node.want("m-2", removed=("other",))
    await still(node, node.states, node.answers, lambda: len(node.pulls))
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    assert node.pulls.count(digest("m-1")) == 1


@pytest.mark.parametrize(
    "error",
    [DigestMismatch("rotten"), NotFound("not yet"), Unreachable("away"), OSError(28, "No space left on device")],
)
async def test_what_may_come_right_is_tried_until_it_does(node: Node, error: Exception) -> None:
    node.pull_errors[digest("m-1")] = error
    node.want("m-1")
    await until(lambda: len(node.pulls) >= 3)
    await until(lambda: node.states() == {"m-1": FAILED} or bool(node.pulls.clear()))
    assert node.detail("m-1").partition(":")[0] in ("DIGEST_MISMATCH", "NOT_FOUND", "UNREACHABLE", "STORAGE")
    del node.pull_errors[digest("m-1")]
    await until(lambda: node.states() == {"m-1": READY})


async def test_what_is_no_longer_wanted_goes(node: Node) -> None:
    node.want("m-1", "n-3")
    await until(lambda: node.states() == {"m-1": READY, "n-3": READY})
    node.want("n-3")
    await until(lambda: node.states() == {"n-3": READY})
    assert node.loaded[0].closed
    with pytest.raises(NotFound):
        node.table.get("m")


async def test_a_model_that_failed_and_is_no_longer_wanted_is_unknown_again(node: Node) -> None:
    node.load_errors[digest("m-1")] = WarmupFailed("off by one")
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": FAILED})
    with pytest.raises(NotReady):
        node.table.get("m")
    node.want()
    await until(lambda: node.states() == {})
    with pytest.raises(NotFound):
        node.table.get("m")


async def test_a_change_of_mind_while_the_new_version_is_on_its_way(node: Node) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.pull_waits[digest("m-2")] = asyncio.Event()
    node.want("m-2")
    await until(lambda: node.states() == {"m-1": READY, "m-2": PULLING})
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.pull_waits[digest("m-2")].set()
    await still(node, node.states, node.answers)
    assert node.answers() == "1"


async def test_a_change_of_mind_while_the_old_version_is_on_its_way_out(node: Node) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.loaded[0].let_go.clear()
    node.want("m-2")
    await until(lambda: node.states().get("m-2") == READY)
    node.want("m-1")
    await until(lambda: node.states().get("m-1") == READY)
    await until(lambda: node.answers() == "1")
    node.loaded[0].let_go.set()
    await until(lambda: node.states() == {"m-1": READY})
    await still(node, node.states, node.answers)
    assert all(replica.closed for replica in node.loaded[:-1])


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_was_wanted_before_the_last_wish_is_what_serves(node: Node, seed: int) -> None:
    chance = random.Random(seed)
    node.held = True
    for _ in range(30):
        wish = [
            f"{model}-{chance.randint(start, start + 2)}"
            for model, start in (("m", 1), ("n", 4))
            if chance.random() < 0.8
        ]
        node.want(*wish)
        for replica in node.loaded:
            if chance.random() < 0.3:
                replica.let_go.set()
        for _ in range(chance.randint(0, 8)):
            await asyncio.sleep(0)
    node.held = False
    for replica in node.loaded:
        replica.let_go.set()
    await until(lambda: node.states() == dict.fromkeys(wish, READY))
    assert {version for version in wish if node.answers(version[:-2]) == version[-1]} == set(wish)
    await still(node, node.states)
    serving = {id(node.table.get(version[:-2])) for version in wish}
    assert [replica.closed for replica in node.loaded if id(replica) not in serving] == [True] * (
        len(node.loaded) - len(serving)
    )


async def test_a_hanging_engine_shows_in_the_report(node: Node) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.loaded[0].ready = False
    assert node.states() == {"m-1": FAILED}
    assert node.detail("m-1") == "an engine call hangs"
    # It recovers by itself, without another load.
    node.loaded[0].ready = True
    assert node.states() == {"m-1": READY}


async def test_a_bug_while_loading_is_a_failure_with_a_reason(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.load_errors[digest("m-2")] = ZeroDivisionError("oops")
    node.want("m-2")
    await until(lambda: node.states() == {"m-1": READY, "m-2": FAILED})
    assert node.detail("m-2") == "internal error; the node's log has the cause"
    assert "ZeroDivisionError: oops" in caplog.text
    assert node.answers() == "1"


async def test_p4_an_old_version_stays_for_its_sequences(node: Node) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    old = node.loaded[0]
    old.hung_up.clear()
    node.want("m-2")
    await until(lambda: node.states() == {"m-1": UNLOADING, "m-2": READY})
    await still(node, node.states, lambda: old.closed)
    old.hung_up.set()
    await until(lambda: node.states() == {"m-2": READY})
    assert old.closed


async def test_a_leaving_node_closes_what_waits_for_sequences(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.loaded[0].hung_up.clear()
    node.want("m-2")
    await until(lambda: node.states() == {"m-1": UNLOADING, "m-2": READY})
    async with asyncio.timeout(5):
        await node.reconciler.close()
    assert all(replica.closed for replica in node.loaded)


async def test_a_report_says_whether_a_version_is_in_memory_and_what_loading_it_takes(node: Node) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    (status,) = node.reconciler.statuses()
    assert (status.cold, status.load_ms, status.waiting) == (False, 250, 4)
    node.loaded[0].active = False
    (status,) = node.reconciler.statuses()
    assert (status.cold, status.state) == (True, READY)
    node.loaded[0].ready, node.loaded[0].unloaded = False, True
    (status,) = node.reconciler.statuses()
    assert (status.state, status.detail) == (UNLOADED, "unloaded by an operator")


async def test_a_report_says_how_long_requests_take_and_how_many_there_were(node: Node) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    tally = node.loaded[0].tally
    for _ in range(2):
        tally.streamed(1.0, now_ms=0)
        tally.moved(100, 20)
    # What the caller got wrong is not the node's fault.
    for outcome in ("OVERLOADED", "CANCELLED", "INVALID_INPUT"):
        tally.failed(outcome, 1.0)
    (status,) = node.reconciler.statuses()
    assert (status.service_ms_p50, status.service_ms_p95) == pytest.approx((1, 2))
    assert Times.of(status.service_ms_quantiles) == Times.spread(1, 2)
    assert Times.of(status.queue_ms_quantiles) == Times.certain(0)
    assert (status.answered, status.failed) == (2, 1)
    assert (status.bytes_in, status.bytes_out) == (200, 40)


async def test_p4_whoever_names_the_old_version_finds_it_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with steered(tmp_path, monkeypatch, drain_s=0.5) as node:
        node.want("m-1")
        await until(lambda: node.states() == {"m-1": READY})
        assert node.table.get("m", "1").version == "1"
        node.want("m-2")
        await until(lambda: node.states() == {"m-1": UNLOADING, "m-2": READY})
        swapped_s = time.monotonic()
        assert (node.answers(), node.table.get("m", "1").version) == ("2", "1")
        assert digest("m-1") in node.reconciler.needed()
        await until(lambda: node.states() == {"m-2": READY})
        # All of the time, since it was named of late.
        assert time.monotonic() - swapped_s >= 0.4
        assert node.loaded[0].closed
        with pytest.raises(NotFound, match="no version '1'"):
            node.table.get("m", "1")


async def test_an_old_version_that_nobody_names_goes_sooner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with steered(tmp_path, monkeypatch, drain_s=100.0) as node:
        monkeypatch.setattr(outgoing, "QUIET_SHARE", 1e-3)
        node.want("m-1")
        await until(lambda: node.states() == {"m-1": READY})
        node.want("m-2")
        await until(lambda: node.states() == {"m-2": READY})
        assert node.loaded[0].closed


async def test_a_change_of_mind_finds_the_draining_version_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with steered(tmp_path, monkeypatch, drain_s=100.0) as node:
        node.want("m-1")
        await until(lambda: node.states() == {"m-1": READY})
        node.want("m-2")
        await until(lambda: node.states() == {"m-1": UNLOADING, "m-2": READY})
        node.want("m-1")
        await until(lambda: node.states() == {"m-1": READY, "m-2": UNLOADING})
        assert (node.answers(), len(node.loaded)) == ("1", 2)
        # What is not wanted at all goes at once.
        node.want()
        await until(lambda: node.states() == {})
        assert all(replica.closed for replica in node.loaded)
