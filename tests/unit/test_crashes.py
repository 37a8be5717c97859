"""What an unclean end of the process means for the versions that were at something."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_agent.session import crashes
from nearmesh_agent.session.crashes import LOADING, MANY, ON_TRIAL, ONE, SEVERAL, Crashes

from nearmesh.v1 import node_pb2 as pb
from tests.steered_node import FAILED, READY, Node, digest, steered, still, until
from tests.steered_node import LOADING as STATE_LOADING


def wish(version: str, rollout: str = "") -> pb.WantedVersion:
    return pb.WantedVersion(model=version[:-2], version=version[-1], digest=digest(version), rollout=rollout)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "crashes.json"


def test_nothing_is_held_against_what_ended_in_order(path: Path) -> None:
    notes = Crashes(path)
    notes.begin(wish("m-1"), LOADING, ONE)
    notes.over(digest("m-1"))
    notes.begin(wish("m-2"), ON_TRIAL, ONE)
    notes.end()
    after = Crashes(path)
    assert not after.against(wish("m-1")) and not after.against(wish("m-2"))


def test_an_unclean_end_is_held_against_what_was_at_it(path: Path) -> None:
    notes = Crashes(path)
    notes.begin(wish("m-1"), LOADING, SEVERAL)
    notes.over(digest("m-1"))
    notes.begin(wish("m-2"), ON_TRIAL, ONE)
    after = Crashes(path)
    assert not after.against(wish("m-1"))
    assert after.against(wish("m-2")).startswith("the process ended while this version was on trial; it is tried again")
    # It was at it once; the restarts since then are not its doing.
    assert Crashes(path).against(wish("m-2")) == after.against(wish("m-2"))


def test_several_ends_in_a_row_are_too_many(path: Path) -> None:
    for _ in range(SEVERAL):
        notes = Crashes(path)
        assert not notes.against(wish("m-1"))
        notes.begin(wish("m-1"), LOADING, SEVERAL)
    assert f"was loading, {SEVERAL} times in a row" in Crashes(path).against(wish("m-1"))


def test_what_has_proven_itself_begins_anew(path: Path) -> None:
    for _ in range(SEVERAL - 1):
        Crashes(path).begin(wish("m-1"), LOADING, SEVERAL)
    notes = Crashes(path)
    notes.prove(digest("m-1"))
    assert notes.proven(digest("m-1")) and Crashes(path).proven(digest("m-1"))
    notes.begin(wish("m-1"), LOADING, SEVERAL)
    assert not Crashes(path).against(wish("m-1"))


@pytest.mark.parametrize(
    ("versions", "forgiven"),
    [
        ([wish("m-2", "1")], False),
        ([wish("m-2")], False),
        ([wish("m-2", "2")], True),
        ([wish("m-1", "1")], True),
        ([], True),
    ],
)
def test_asked_for_anew_it_gets_another_chance(path: Path, versions: list[pb.WantedVersion], forgiven: bool) -> None:
    Crashes(path).begin(wish("m-2", "1"), ON_TRIAL, ONE)
    notes = Crashes(path)
    notes.asked(versions, [])
    assert bool(notes.against(wish("m-2"))) is not forgiven
    assert bool(Crashes(path).against(wish("m-2"))) is not forgiven


@pytest.mark.parametrize("content", [b"\xff", b"[]", b'{"cases": {"a": {}}, "proven": []}', b"{}", b'{"cases": 1}'])
def test_a_damaged_note_is_no_reason_not_to_start(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert not Crashes(path).against(wish("m-1"))


def test_a_full_disk_is_no_reason_not_to_load(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(crashes, "write_private", full)
    Crashes(path).begin(wish("m-1"), LOADING, ONE)
    assert "crashes.json cannot be written" in caplog.text


# With the reconciler: an unclean end is one after which nobody closed it.


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    async with steered(tmp_path, monkeypatch) as found:
        yield found


async def resumed(folder: Path) -> Node:
    after = Node(folder)
    after.reconciler.resume()
    return after


async def test_a_trial_that_ended_the_process_is_not_tried_again_and_the_standing_version_serves(
    node: Node, tmp_path: Path
) -> None:
    node.want("m-1", trial="m-2", share=0.5, rollout="1")
    await until(lambda: node.states() == {"m-1": READY, "m-2": READY})
    after = await resumed(tmp_path)
    await until(lambda: after.states() == {"m-1": READY, "m-2": FAILED})
    assert after.answers() == "1" and after.pulls == [digest("m-1")]
    assert after.detail("m-2").startswith("the process ended while this version was on trial")
    # The control plane has not heard of it yet, and says the same.
    after.want("m-1", trial="m-2", share=0.5, rollout="1")
    await still(after, after.states, lambda: len(after.pulls))
    after.want("m-1", trial="m-2", share=0.5, rollout="2")
    await until(lambda: after.states() == {"m-1": READY, "m-2": READY})
    await after.reconciler.close()


async def test_a_trial_that_ended_the_process_when_it_was_loaded(node: Node, tmp_path: Path) -> None:
    node.load_waits[digest("m-2")] = asyncio.Event()
    node.want("m-1", trial="m-2", share=0.5)
    await until(lambda: node.states() == {"m-1": READY, "m-2": STATE_LOADING})
    after = await resumed(tmp_path)
    await until(lambda: after.states() == {"m-1": READY, "m-2": FAILED})
    assert "was loading" in after.detail("m-2")
    # Withdrawn and asked for again, it gets another chance.
    after.want("m-1")
    await until(lambda: after.states() == {"m-1": READY})
    after.want("m-1", trial="m-2", share=0.5)
    await until(lambda: after.states() == {"m-1": READY, "m-2": READY})
    await after.reconciler.close()


async def test_a_successor_that_ended_the_process_when_it_was_loaded_leaves_the_one_before_in_place(
    node: Node, tmp_path: Path
) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.load_waits[digest("m-2")] = asyncio.Event()
    node.want("m-2")
    await until(lambda: node.states() == {"m-1": READY, "m-2": STATE_LOADING})
    after = await resumed(tmp_path)
    await until(lambda: after.states() == {"m-1": READY, "m-2": FAILED})
    assert after.answers() == "1" and after.pulls == [digest("m-1")]
    await still(after, after.states)
    await after.reconciler.close()


async def test_a_version_that_is_new_and_ends_the_process_again_and_again_gives_way_to_the_one_before(
    node: Node, tmp_path: Path
) -> None:
    for version in ("m-1", "m-2"):
        node.want(version)
        await until(lambda version=version: node.states() == {version: READY})
    for _ in range(SEVERAL - 1):
        again = await resumed(tmp_path)
        await until(lambda again=again: again.states() == {"m-2": READY})
    after = await resumed(tmp_path)
    await until(lambda: after.states() == {"m-1": READY, "m-2": FAILED})
    assert after.answers() == "1"
    assert f"was new here, {SEVERAL} times in a row" in after.detail("m-2")
    # It stays so over an orderly restart.
    await after.reconciler.close()
    later = await resumed(tmp_path)
    await until(lambda: later.states() == {"m-1": READY, "m-2": FAILED})
    await later.reconciler.close()


async def test_a_version_that_has_served_for_a_while_is_not_new(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crashes, "NEW_FOR_S", 0.0)
    for version in ("m-1", "m-2"):
        node.want(version)
        await until(lambda version=version: node.states() == {version: READY})
    await until(lambda: Crashes(tmp_path / "crashes.json").proven(digest("m-2")))
    for _ in range(SEVERAL + 1):
        again = await resumed(tmp_path)
        await until(lambda again=again: again.states() == {"m-2": READY})


async def test_what_is_all_that_there_is_is_tried_more_often(node: Node, tmp_path: Path) -> None:
    node.load_waits[digest("m-1")] = asyncio.Event()
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": STATE_LOADING})
    for _ in range(MANY - 1):
        again = Node(tmp_path)
        again.load_waits[digest("m-1")] = asyncio.Event()
        again.reconciler.resume()
        await until(lambda again=again: again.states() == {"m-1": STATE_LOADING})
    after = await resumed(tmp_path)
    await until(lambda: after.states() == {"m-1": FAILED})
    # A kill now and then is no such row.
    after.want()
    after.want("m-1")
    await until(lambda: after.states() == {"m-1": READY})
    for _ in range(MANY + 1):
        again = await resumed(tmp_path)
        await until(lambda again=again: again.states() == {"m-1": READY})
    await after.reconciler.close()


async def test_an_orderly_end_holds_nothing_against_a_trial_however_it_goes_on(node: Node, tmp_path: Path) -> None:
    node.want("m-1", trial="m-2", share=0.5)
    await until(lambda: node.states() == {"m-1": READY, "m-2": READY})
    # Told to stop; then somebody loses patience.
    node.reconciler.ending()
    after = await resumed(tmp_path)
    await until(lambda: after.states() == {"m-1": READY, "m-2": READY})
    await after.reconciler.close()
