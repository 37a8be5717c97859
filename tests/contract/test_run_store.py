"""What databases keep of runs: SQLite for one control plane alone and PostgreSQL for several keep the same."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.runs import store
from nearmesh_controlplane.runs.folder import COUNTED, Judged, Progress, RoundRecord, SiteRecord
from nearmesh_controlplane.runs.run import Asked, Run
from nearmesh_controlplane.runs.runs import Runs

from nearmesh.errors import AlreadyExists, InvalidInput
from nearmesh.rpc import Identity

ME = Identity("ann", "data")


@pytest.fixture(params=["sqlite", "postgresql"])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        database = Database.open(tmp_path / "state.db")
    else:
        database = Database.at(request.getfixturevalue("database_server").new_database())
    yield database
    database.close()


def run(id: str = "r1", at_s: float = 1.0, key: str = "", words: str = "w", model: str = "m") -> Run:
    return Run(
        id=id,
        model=model,
        parent_version="1",
        parent_digest="d",
        asked=Asked(rounds=3, idempotency_key=key, fingerprint=words),
        actor="data/ann",
        created_at_s=at_s,
    )


def record(number: int) -> RoundRecord:
    site = SiteRecord(node="a", answer=COUNTED, examples=2**40, metrics={"loss": math.nan, "accuracy": 0.5})
    return RoundRecord(number=number, began_at_s=1764115200.125, ended_at_s=2.0, sites=[site], metrics={"loss": 1e-300})


async def test_a_run_comes_back_as_it_was(db: Database) -> None:
    whole = dataclasses.replace(run(), judged=(Judged(node="a", metrics={"loss": math.inf}),), state="trained")
    await db.run(store.insert, whole, b"\x00app")
    assert await db.run(store.read, "r1") == whole
    assert await db.run(store.app_of, "r1") == b"\x00app"
    assert await db.run(store.read, "r2") is None


async def test_one_key_is_one_run(db: Database) -> None:
    first = await db.run(store.insert, run("r1", key="k"), b"")
    assert (await db.run(store.insert, run("r2", key="k"), b"")) == first
    with pytest.raises(AlreadyExists, match="idempotency key 'k' is of run r1 of m"):
        await db.run(store.insert, run("r3", key="k", words="other"), b"")
    # Without a key there are as many as are asked for.
    for id in ("r4", "r5"):
        await db.run(store.insert, run(id), b"")
    assert [found.id for found in await db.run(store.newest, "", 10)] == ["r1", "r4", "r5"]


async def test_who_saw_an_older_one_changes_nothing(db: Database) -> None:
    first = await db.run(store.insert, run(), b"")
    after = await db.run(store.update, dataclasses.replace(first, state="training"))
    assert after is not None and after.revision == 1
    assert await db.run(store.update, dataclasses.replace(first, state="stopped")) is None
    assert await db.run(store.read, "r1") == after


async def test_a_round_counts_once_and_the_newest_parameters_are_kept(db: Database) -> None:
    await db.run(store.insert, run(), b"")
    for number in range(4):
        assert await db.run(store.add_round, "r1", record(number), b"%d" % number if number else None)
    assert not await db.run(store.add_round, "r1", dataclasses.replace(record(3), late=9), b"other")
    assert await db.run(store.arrays, "r1") == {2: b"2", 3: b"3"}
    found = await db.run(store.rounds, ["r1", "r2"])
    assert ([one.number for one in found["r1"]], found["r2"]) == ([0, 1, 2, 3], [])
    site = found["r1"][3].sites[0]
    assert (site.examples, math.isnan(site.metrics["loss"]), found["r1"][3].late) == (2**40, True, 0)
    assert (found["r1"][0].began_at_s, found["r1"][0].metrics) == (1764115200.125, {"loss": 1e-300})


async def test_what_goes_on_is_always_known_and_of_the_others_the_latest(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "KNOWN", 2)
    for number in range(5):
        found = await db.run(store.insert, run(f"r{number}", at_s=number, model=f"m{number % 2}"), b"")
        if number:
            await db.run(store.update, dataclasses.replace(found, state="served"))
    assert [found.id for found in await db.run(store.read_all)] == ["r0", "r3", "r4"]
    assert [found.id for found in await db.run(store.newest, "m1", 10)] == ["r3", "r1"]
    assert [found.id for found in await db.run(store.newest, "", 2)] == ["r4", "r3"]


async def test_parameters_go_with_the_runs_that_nobody_can_promote(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "RUNS_KEPT", 1)
    for number, state in enumerate(("trained", "served", "refused", "failed", "training")):
        found = await db.run(store.insert, run(f"r{number}", at_s=number), b"app")
        await db.run(store.add_round, found.id, record(1), b"arrays")
        await db.run(store.update, dataclasses.replace(found, state=state))
    assert [bool(await db.run(store.arrays, f"r{n}")) for n in range(5)] == [False, False, True, False, True]
    assert [bool(await db.run(store.app_of, f"r{n}")) for n in range(5)] == [False, False, False, False, True]
    assert len((await db.run(store.rounds, ["r1"]))["r1"]) == 1, "what happened is known all the same"


async def test_the_round_under_way_is_told_to_others_until_the_run_rests(db: Database) -> None:
    first = await db.run(store.insert, run(), b"")
    for phase in ("training", "evaluating"):
        await db.run(store.write_progress, "r1", Progress(number=2, phase=phase, began_at_s=3.5, missing=["a"]))
    found = await db.run(store.progress)
    assert found == {"r1": Progress(number=2, phase="evaluating", began_at_s=3.5, answered=[], missing=["a"])}
    await db.run(store.update, dataclasses.replace(first, state="trained"))
    assert await db.run(store.progress) == {}


async def test_two_memories_decide_by_what_is_written(db: Database) -> None:
    """As two control planes do over one database; what one of them saw last does not undo the other's word."""
    one, other = Runs(db, Audit(db)), Runs(db, Audit(db))
    begun = await one.start(run(key="k"), b"", ME)
    assert (await other.start(run("r2", key="k"), b"", ME)).id == begun.id
    await other.restore()
    assert [found.id for found in other.active()] == ["r1"]
    await one.stop("r1", ME)
    # It has not heard of that.
    assert other.active()[0].state == "waiting"
    with pytest.raises(InvalidInput, match="run r1 of m is stopped already"):
        await other.stop("r1", ME)
    assert other.active() == []
