"""A version on trial beside the standing one: how it comes, stands, goes, and what it may not do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nearmesh.errors import ConfigError, NotFound, Unreachable, WarmupFailed
from tests.steered_node import FAILED, LOADING, PULLING, READY, UNLOADING, Node, digest, steered, still, until


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    async with steered(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture
async def tried(node: Node) -> Node:
    """m-1 stands, m-2 is on trial."""
    node.want("m-1", trial="m-2", share=0.25)
    await until(lambda: node.states() == {"m-1": READY, "m-2": READY})
    return node


async def test_a_trial_is_loaded_beside_the_standing_version_and_after_it(node: Node) -> None:
    node.pull_waits[digest("m-1")], node.load_waits[digest("m-2")] = asyncio.Event(), asyncio.Event()
    node.want("m-1", trial="m-2", share=0.25)
    await until(lambda: node.states() == {"m-1": PULLING, "m-2": PULLING})
    await still(node, lambda: node.pulls)
    assert node.pulls == [digest("m-1")]
    assert "waits until the standing version serves" in node.detail("m-2")
    node.pull_waits[digest("m-1")].set()
    await until(lambda: node.states() == {"m-1": READY, "m-2": LOADING})
    node.load_waits[digest("m-2")].set()
    await until(lambda: node.states() == {"m-1": READY, "m-2": READY})
    assert node.answers() == "1" and node.table.get("m", "2").version == "2"
    assert [node.status(version).on_trial for version in ("m-1", "m-2")] == [False, True]
    assert [replica.on_trial for replica in node.loaded] == [False, True]


async def test_shares_change_without_loading_again(tried: Node) -> None:
    trial = tried.table.trial_beside(tried.table.get("m"))
    assert sum(trial.requests.next() for _ in range(8)) == 2
    tried.want("m-1", trial="m-2", share=0.5)
    assert sum(trial.requests.next() for _ in range(8)) == 4
    tried.want("m-1", trial="m-2", share=0.0)
    assert sum(trial.requests.next() for _ in range(8)) == 0
    await still(tried, tried.states, lambda: len(tried.loaded))


async def test_p4_a_trial_becomes_the_standing_version_at_once_and_without_another_load(tried: Node) -> None:
    old = tried.loaded[0]
    old.let_go.clear()
    tried.want("m-2")
    await until(lambda: tried.answers() == "2")
    assert tried.states() == {"m-1": UNLOADING, "m-2": READY} and len(tried.loaded) == 2
    assert not tried.status("m-2").on_trial and not tried.table.get("m").on_trial
    old.let_go.set()
    await until(lambda: tried.states() == {"m-2": READY})
    assert old.closed


async def test_a_trial_that_is_withdrawn_takes_nothing_more_and_ends_what_it_has(tried: Node) -> None:
    trial = tried.loaded[1]
    trial.let_go.clear()
    tried.want("m-1")
    # At once, not when it is closed.
    assert tried.table.trial_beside(tried.table.get("m")) is None
    with pytest.raises(NotFound, match="no version '2'"):
        tried.table.get("m", "2")
    assert tried.states() == {"m-1": READY, "m-2": UNLOADING} and not trial.closed
    trial.let_go.set()
    await until(lambda: tried.states() == {"m-1": READY})
    assert trial.closed


async def test_a_trial_that_is_withdrawn_while_it_is_loaded_never_comes(node: Node) -> None:
    node.load_waits[digest("m-2")] = asyncio.Event()
    node.want("m-1", trial="m-2")
    await until(lambda: node.states() == {"m-1": READY, "m-2": LOADING})
    node.want("m-1")
    node.load_waits[digest("m-2")].set()
    await until(lambda: node.states() == {"m-1": READY})
    await still(node, node.states, lambda: len(node.loaded))


async def test_a_trial_that_becomes_the_standing_version_while_it_is_loaded(node: Node) -> None:
    node.load_waits[digest("m-2")] = asyncio.Event()
    node.want("m-1", trial="m-2")
    await until(lambda: node.states() == {"m-1": READY, "m-2": LOADING})
    node.want("m-2")
    node.load_waits[digest("m-2")].set()
    await until(lambda: node.states() == {"m-2": READY})
    assert node.answers() == "2" and len(node.loaded) == 2 and not node.loaded[1].on_trial


async def test_one_trial_follows_another(tried: Node) -> None:
    tried.want("m-1", trial="m-3", share=1.0)
    await until(lambda: tried.states() == {"m-1": READY, "m-3": READY})
    assert tried.loaded[1].closed and tried.table.trial_beside(tried.table.get("m")).replica is tried.loaded[2]


async def test_the_two_versions_change_places(tried: Node) -> None:
    tried.want("m-2", trial="m-1", share=0.25)
    await until(lambda: tried.answers() == "2")
    await until(lambda: tried.status("m-1").on_trial)
    assert tried.states() == {"m-1": READY, "m-2": READY} and len(tried.loaded) == 2
    assert [replica.on_trial for replica in tried.loaded] == [True, False]


async def test_the_standing_version_stays_while_it_is_wanted_on_trial_by_its_successor(node: Node) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.load_waits[digest("m-2")] = asyncio.Event()
    node.want("m-2", trial="m-1", share=0.25)
    await until(lambda: node.states() == {"m-1": READY, "m-2": LOADING})
    assert node.answers() == "1" and not node.loaded[0].on_trial
    node.load_waits[digest("m-2")].set()
    await until(lambda: node.answers() == "2" and node.loaded[0].on_trial)
    assert node.states() == {"m-1": READY, "m-2": READY}


async def test_the_standing_version_may_change_under_a_trial(tried: Node) -> None:
    tried.want("m-3", trial="m-2", share=0.25)
    await until(lambda: tried.states() == {"m-2": READY, "m-3": READY})
    assert tried.answers() == "3" and len(tried.loaded) == 3
    assert tried.table.trial_beside(tried.table.get("m")).replica is tried.loaded[1]


async def test_without_a_standing_version_there_is_no_trial(tried: Node) -> None:
    tried.want(trial="m-2", share=0.25)
    await until(lambda: tried.states() == {"m-2": READY})
    assert tried.loaded[0].closed and tried.table.standing("m") is None
    tried.want()
    await until(lambda: tried.states() == {})
    assert tried.loaded[1].closed


async def test_p5_a_trial_that_proves_wrong_never_serves_and_the_standing_version_does_not_notice(node: Node) -> None:
    node.load_errors[digest("m-2")] = WarmupFailed("off by one")
    node.want("m-1", trial="m-2", share=1.0)
    await until(lambda: node.states() == {"m-1": READY, "m-2": FAILED})
    assert node.detail("m-2") == "WARMUP_FAILED: off by one" and node.status("m-2").on_trial
    assert node.table.trial_beside(node.table.get("m")) is None
    await still(node, node.states, lambda: len(node.pulls))


async def test_a_trial_that_does_not_fit_is_not_tried_again(node: Node) -> None:
    node.load_errors[digest("m-2")] = ConfigError("it needs about 30.0 MiB")
    node.want("m-1", trial="m-2", share=1.0)
    await until(lambda: node.states() == {"m-1": READY, "m-2": FAILED})
    assert "30.0 MiB" in node.detail("m-2")
    await still(node, node.states, lambda: len(node.pulls))
    assert not node.loaded[0].closed
    # Room is made for one that is to stand.
    del node.load_errors[digest("m-2")]
    node.want("m-2")
    await until(lambda: node.states() == {"m-2": READY})


async def test_a_trial_that_cannot_be_had_yet_is_tried_until_it_can(node: Node) -> None:
    node.pull_errors[digest("m-2")] = Unreachable("away")
    node.want("m-1", trial="m-2")
    await until(lambda: node.pulls.count(digest("m-2")) >= 3)
    del node.pull_errors[digest("m-2")]
    await until(lambda: node.states() == {"m-1": READY, "m-2": READY})


async def test_another_rollout_tries_a_version_again_that_failed_the_one_before(node: Node) -> None:
    node.load_errors[digest("m-2")] = WarmupFailed("off by one")
    node.want("m-1", trial="m-2", rollout="1")
    await until(lambda: node.states() == {"m-1": READY, "m-2": FAILED})
    del node.load_errors[digest("m-2")]
    node.want("m-1", trial="m-2", share=0.5, rollout="1")
    await still(node, node.states)
    assert node.states()["m-2"] == FAILED
    node.want("m-1", trial="m-2", rollout="2")
    await until(lambda: node.states() == {"m-1": READY, "m-2": READY})


async def test_a_trial_goes_on_after_an_orderly_restart(tried: Node, tmp_path: Path) -> None:
    await tried.reconciler.close()
    after = Node(tmp_path)
    after.reconciler.resume()
    await until(lambda: after.states() == {"m-1": READY, "m-2": READY})
    assert after.status("m-2").on_trial and after.answers() == "1"
    assert sum(after.table.trial_beside(after.table.get("m")).requests.next() for _ in range(8)) == 2
    await after.reconciler.close()


async def test_both_versions_stay_on_the_disk(tried: Node) -> None:
    await until(lambda: len(tried.kept) == 2)
    assert {digest("m-1"), digest("m-2")} <= tried.kept[-1]


async def test_what_a_trial_was_asked_and_how_it_agreed_is_reported(tried: Node) -> None:
    tried.loaded[1].tally.compared, tried.loaded[1].tally.agreed = 7, 5
    tried.loaded[1].idle_s = 3.5
    status = tried.status("m-2")
    assert (status.compared, status.agreed, status.idle_s, status.on_trial) == (7, 5, 3.5, True)


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_was_wanted_before_the_last_wish_is_what_serves_and_is_on_trial(node: Node, seed: int) -> None:
    chance = random.Random(seed)
    node.held = True
    for _ in range(30):
        standing, trial = chance.sample(["m-1", "m-2", "m-3"], 2)
        trial = trial if chance.random() < 0.6 else ""
        wish = [standing] if chance.random() < 0.9 else []
        node.want(*wish, trial=trial, share=0.5)
        for replica in node.loaded:
            if chance.random() < 0.3:
                replica.let_go.set()
        for _ in range(chance.randint(0, 12)):
            await asyncio.sleep(0)
    node.want(standing, trial=trial, share=0.5)
    node.held = False
    for replica in node.loaded:
        replica.let_go.set()
    await until(lambda: node.states() == dict.fromkeys(filter(None, (standing, trial)), READY))
    await until(lambda: node.table.standing("m") is not None and node.answers() == standing[-1])
    found = node.table.trial_beside(node.table.get("m"))
    assert (found.replica.version if found else "") == trial[-1:]
    assert [replica.on_trial for replica in node.table] == [replica.version != standing[-1] for replica in node.table]
    await still(node, node.states, node.answers)
    here = {id(replica) for replica in node.table}
    assert all(replica.closed for replica in node.loaded if id(replica) not in here)
