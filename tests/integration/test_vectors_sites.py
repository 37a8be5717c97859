"""Sites with vectors, as real processes: queries travel, rows are replicated, and both go on when they are cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nearmesh.client.vectors import Reach
from nearmesh.errors import NotReady, Unreachable
from tests.faults.vectors_apart import DIMENSION, Place, Two, apart, passage, two_sites
from tests.integration.mesh_processes import until

pytest.importorskip("milvus_lite", reason="the extra `vectors` is not installed")

ANY = np.ones(DIMENSION, np.float32)


async def test_two_sites_that_were_apart_come_to_have_the_same_and_a_query_travels(tmp_path: Path) -> None:
    async with two_sites(tmp_path) as two:
        await _travels(two)
        figures = await apart(two, seconds=3.0, seed=1)
        assert figures["deletes"] > 10
        assert figures["converged_s"] < 30
        await _stays_in_its_region(two)
        await _goes_on_without_the_control_plane(two)


async def _travels(two: Two) -> None:
    """Each site has a collection of that name which is its own; the vectors stay there."""
    for place in (two.left, two.right):
        await place.client.create("own", dimension=DIMENSION)
        await place.client.collection("own").upsert([passage("1", f"at {place.site}")])
    own = two.left.client.collection("own")

    async def both() -> bool:
        found = await own.search(ANY, reach=Reach(scope="mesh"))
        return {(hit.site, hit.row.text) for hit in found.hits} == {("left", "at left"), ("right", "at right")}

    await until(both, what=f"both sites answer:\n{two.left.node.child.last_words(15)}")
    there = await own.search(ANY, reach=Reach(scope="site", name="right"))
    assert [hit.node for hit in there.hits] == ["right"]
    assert [hit.site for hit in (await own.search(ANY)).hits] == ["left"]
    await two.cut()
    found = await own.search(ANY, reach=Reach(scope="mesh", within_ms=2000))
    assert [hit.site for hit in found.hits] == ["left"]
    assert {one.site: one.missing for one in found.contributions} == {"left": "", "right": "unreachable"}
    await two.heal()


async def _stays_in_its_region(two: Two) -> None:
    """P9: while a rule binds the clients of the left site's region to it, neither queries nor rows leave it."""
    region = two.left.node.region
    async with two.plane.operator() as operator:
        await operator.set_residency(region, [region])

        async def barred() -> bool:
            found = await two.left.docs.search(ANY, reach=Reach(scope="mesh"))
            return {one.site: one.missing for one in found.contributions} == {"left": "", "right": "residency"}

        await until(barred, what="queries stay")
        await two.left.docs.upsert([passage("bound", "to the left")])
        # The other way, nothing is ruled.
        await two.right.docs.upsert([passage("free", "from the right")])
        await until(lambda: _fetched(two.left, "free"), what="rows come from the right")
        assert not await _fetched(two.right, "bound")
        await operator.set_residency(region, [])
        await until(lambda: _fetched(two.right, "bound"), what="rows go to the right again")


async def _fetched(place: Place, name: str) -> bool:
    return bool(await place.docs.fetch([name]))


async def _goes_on_without_the_control_plane(two: Two) -> None:
    """P2: who keeps vectors is remembered, over a restart too."""
    await two.plane.kill()
    await two.right.node.kill()
    await two.left.docs.delete(["row-0"])
    await two.left.docs.upsert([passage("late", "without the control plane")])
    await two.right.node.child.start()

    async def heard() -> bool:
        try:
            return {row.id for row in await two.right.docs.fetch(["row-0", "late"])} == {"late"}
        except (NotReady, Unreachable):
            return False

    await until(heard, within_s=40, what=f"the other site hears:\n{two.right.node.child.last_words(20)}")
