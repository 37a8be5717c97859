"""The catalog: versions that never change, deployments in their order, policies and who set them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nearmesh.errors import AlreadyExists, InvalidInput, NotFound
from nearmesh.package import RoutePolicy
from tests.control_plane_state import State, digest_of, manifest, state, stored


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[State]:
    async with state(tmp_path) as found:
        yield found


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    async with state(tmp_path) as before:
        for version in "12":
            await before.publish("m", version)
        await before.catalog.deploy("m", "1", (), "me")
        await before.catalog.deploy("m", "2", ("left",), "you")
        await before.catalog.set_policy("m", "nearest", 70.0, ("us-east1",))
        expected = before.catalog
        async with state(tmp_path) as after:
            assert after.catalog.versions("m") == expected.versions("m")
            assert after.catalog.deployments("m") == expected.deployments("m")
            assert after.catalog.policy("m") == RoutePolicy(
                objective="nearest", deadline_ms=70.0, regions=("us-east1",)
            )
            assert [(d.version, d.sites, d.actor) for d in after.catalog.deployments("m")] == [
                ("2", ("left",), "you"),
                ("1", (), "me"),
            ]


async def test_a_version_is_added_once(mesh: State) -> None:
    digest = await mesh.publish("m", "1")
    seen = mesh.changes.value
    assert await mesh.publish("m", "1") == digest
    assert len(mesh.catalog.versions("m")) == 1
    assert mesh.changes.value == seen


async def test_a_name_is_not_given_to_other_bytes_and_then_nothing_is_stored(mesh: State) -> None:
    await mesh.publish("m", "1")
    other = digest_of("other", "1")

    async def store() -> None:
        raise AssertionError("the name was not free")

    with pytest.raises(AlreadyExists, match="versions never change: raise `version`"):
        await mesh.catalog.add(manifest("m", "1"), other, RoutePolicy(), store)
    assert mesh.catalog.version("m", "1").digest == digest_of("m", "1")


async def test_of_many_at_once_one_is_added(mesh: State) -> None:
    """Each would find the name free if it did not wait for the others."""
    digests = [digest_of("candidate", str(number)) for number in range(8)]

    async def store() -> None:
        await asyncio.sleep(0)

    adding = [mesh.catalog.add(manifest("m", "1"), digest, RoutePolicy(), store) for digest in digests]
    results = await asyncio.gather(*adding, return_exceptions=True)
    assert [isinstance(result, AlreadyExists) for result in results].count(False) == 1
    assert len(mesh.catalog.versions("m")) == 1


async def test_a_version_that_could_not_be_stored_is_not_in_the_catalog(mesh: State) -> None:
    async def full() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await mesh.catalog.add(manifest("m", "1"), digest_of("m", "1"), RoutePolicy(), full)
    assert mesh.catalog.models() == []
    await mesh.publish("m", "1")


async def test_versions_are_listed_newest_first_and_found_by_name_and_digest(mesh: State) -> None:
    for version in ("1", "3", "2"):
        await mesh.publish("m", version)
    assert [version.version for version in mesh.catalog.versions("m")] == ["2", "3", "1"]
    assert mesh.catalog.version_of(digest_of("m", "3")) == "3"
    assert mesh.catalog.version_of(digest_of("m", "9")) == ""
    with pytest.raises(NotFound, match="no version '9' of 'm'; published are 2, 3, 1"):
        mesh.catalog.version("m", "9")
    with pytest.raises(NotFound, match="no model 'x'; published are m"):
        mesh.catalog.versions("x")


async def test_rollback_finds_the_version_before(mesh: State) -> None:
    for version in "123":
        await mesh.publish("m", version)
    with pytest.raises(InvalidInput, match="never been deployed"):
        await mesh.catalog.rollback("m", "me")
    await mesh.catalog.deploy("m", "1", (), "me")
    with pytest.raises(InvalidInput, match="in one version only"):
        await mesh.catalog.rollback("m", "me")
    await mesh.catalog.deploy("m", "2", (), "me")
    await mesh.catalog.deploy("m", "2", (), "me")
    assert (await mesh.catalog.rollback("m", "me")).version == "1"
    # Twice is there and back, as with a light switch.
    assert (await mesh.catalog.rollback("m", "me")).version == "2"
    with pytest.raises(NotFound):
        await mesh.catalog.rollback("x", "me")


async def test_a_rollback_gives_sites_only_what_they_had(mesh: State) -> None:
    for version in "123":
        await mesh.publish("m", version)
    await mesh.catalog.deploy("m", "2", ("a",), "me")
    await mesh.catalog.deploy("m", "3", ("b",), "me")
    with pytest.raises(InvalidInput, match=r"to b in one version only \(3\); to have another there, deploy it"):
        await mesh.catalog.rollback("m", "me")
    # Tried at one site and then at another: the second one had what was everywhere before, never the first trial.
    for version, sites in (("1", ()), ("2", ("a",)), ("3", ("b",))):
        await mesh.catalog.deploy("m", version, sites, "me")
    back = await mesh.catalog.rollback("m", "me")
    assert (back.version, back.sites) == ("1", ("b",))
    assert [mesh.catalog.deployed("m", site).version for site in "abc"] == ["2", "1", "1"]  # type: ignore[union-attr]
    # Part of the mesh had 2, and that is not what all of it had.
    await mesh.catalog.deploy("m", "3", (), "me")
    assert (await mesh.catalog.rollback("m", "me")).version == "1"


async def test_an_operators_policy_outlives_packages(mesh: State) -> None:
    await mesh.publish("m", "1", RoutePolicy(objective="nearest", deadline_ms=100.0))
    assert mesh.catalog.policy("m") == RoutePolicy(objective="nearest", deadline_ms=100.0)
    await mesh.publish("m", "2", RoutePolicy(objective="cheapest", deadline_ms=200.0))
    assert mesh.catalog.policy("m") == RoutePolicy(objective="cheapest", deadline_ms=200.0)
    assert await mesh.catalog.set_policy("m", "nearest", 0.0) == RoutePolicy(objective="nearest", deadline_ms=200.0)
    assert await mesh.catalog.set_policy("m", "", 50.0) == RoutePolicy(objective="nearest", deadline_ms=50.0)
    await mesh.publish("m", "3", RoutePolicy(objective="cheapest", deadline_ms=300.0))
    assert mesh.catalog.policy("m") == RoutePolicy(objective="nearest", deadline_ms=50.0)


async def test_regions_are_the_packages_until_an_operator_names_them(mesh: State) -> None:
    async def published(version: str, *regions: str) -> tuple[str, ...]:
        await mesh.publish("m", version, RoutePolicy(regions=regions))
        return mesh.catalog.policy("m").regions

    assert await published("1") == ()
    # Who tunes a deadline has said nothing of regions: the next package may still bind itself.
    await mesh.catalog.set_policy("m", "nearest", 70.0)
    assert await published("2", "europe-west1") == ("europe-west1",)
    assert mesh.catalog.policy("m") == RoutePolicy(objective="nearest", deadline_ms=70.0, regions=("europe-west1",))
    bound = await mesh.catalog.set_policy("m", "", 0.0, ("us-east1", "asia-east1", "us-east1"))
    assert bound == RoutePolicy(objective="nearest", deadline_ms=70.0, regions=("asia-east1", "us-east1"))
    assert await published("3", "europe-west1") == ("asia-east1", "us-east1")
    assert (await mesh.catalog.set_policy("m", "", 0.0, ())).regions == ()
    assert await published("4", "europe-west1") == (), "any region, by the operator's word"
    with pytest.raises(InvalidInput, match="region 'Mars!'"):
        await mesh.catalog.set_policy("m", "", 0.0, ("Mars!",))


async def test_regions_alone_leave_the_rest_to_packages(mesh: State) -> None:
    await mesh.publish("m", "1", RoutePolicy(objective="nearest"))
    await mesh.catalog.set_policy("m", "", 0.0, ("us-east1",))
    await mesh.publish("m", "2", RoutePolicy(objective="cheapest", deadline_ms=50.0))
    assert mesh.catalog.policy("m") == RoutePolicy(objective="cheapest", deadline_ms=50.0, regions=("us-east1",))


async def test_two_who_change_a_policy_at_once_are_both_heard(mesh: State) -> None:
    await mesh.publish("m", "1")
    await asyncio.gather(
        mesh.catalog.set_policy("m", "", 0.0, ("us-east1",)),
        mesh.catalog.set_policy("m", "nearest", 0.0),
        mesh.catalog.set_policy("m", "", 50.0),
    )
    assert mesh.catalog.policy("m") == RoutePolicy(objective="nearest", deadline_ms=50.0, regions=("us-east1",))


@pytest.mark.parametrize(("objective", "deadline_ms"), [("fastest", 0.0), ("", -1.0), ("", 1e7), ("", float("nan"))])
async def test_what_is_no_policy(mesh: State, objective: str, deadline_ms: float) -> None:
    await mesh.publish("m", "1")
    with pytest.raises(InvalidInput):
        await mesh.catalog.set_policy("m", objective, deadline_ms)
    assert mesh.catalog.policy("m") == RoutePolicy()
    with pytest.raises(NotFound):
        await mesh.catalog.set_policy("x", "nearest", 1.0)


async def test_every_change_wakes_who_routes(mesh: State) -> None:
    seen = mesh.changes.value
    await mesh.catalog.add(manifest("m", "1"), digest_of("m", "1"), RoutePolicy(), stored)
    await mesh.catalog.deploy("m", "1", (), "me")
    await mesh.catalog.set_policy("m", "nearest", 0.0)
    assert mesh.changes.value == seen + 3
