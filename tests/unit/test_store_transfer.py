"""Versions on their way to a node: from other nodes and the registry, through cuts, lies, deaths and restarts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_agent.config import StoreConfig
from nearmesh_agent.store import planner as planners
from nearmesh_agent.store import transfer as transfers
from nearmesh_agent.store.metrics import StoreMetrics
from prometheus_client import CollectorRegistry

from nearmesh.errors import DigestMismatch, PackageError, StorageFull, Unreachable
from tests.fake_registry import FakeReader, FakeRegistry
from tests.store_site import CHUNK_BYTES, Model, Site, site

MIB = 2**20
SIZE = 12 * MIB


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planners, "BACKOFF_S", (0.001, 0.01))
    monkeypatch.setattr(transfers, "LOOK_EVERY_S", 0.02)


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path, Model.of(SIZE), "a", "b", "c") as found:
        yield found


async def test_three_nodes_of_a_site_read_a_version_from_far_away_about_once(tmp_path: Path) -> None:
    async with site(tmp_path, Model.of(3 * SIZE), "a", "b", "c") as found:
        await asyncio.gather(*(found.pull(node) for node in found.nodes.values()))
        assert found.sent_bytes(found.model.blob) <= 1.2 * 3 * SIZE
        # Each did its part.
        for node in found.nodes.values():
            assert any(digest == found.model.blob for digest, _, _ in node.registry.reads)


async def test_who_comes_later_takes_everything_from_the_site(three: Site) -> None:
    first, second, third = three.nodes.values()
    await three.pull(first)
    first.whole = True
    for node in (second, third):
        node.registry.reads.clear()
        await three.pull(node)
        assert node.registry.reads == [], "small files come from the site as well"
        node.whole = True


async def test_who_joins_in_the_middle_takes_what_is_there(tmp_path: Path) -> None:
    async with site(tmp_path, Model.of(SIZE), "early", "late") as found:
        early, late = found.nodes.values()
        half, go_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def stop_half_way(digest: str, offset: int, size: int) -> None:
            if digest == found.model.blob and early.registry.sent_bytes > SIZE // 2:
                loop.call_soon_threadsafe(half.set)
                assert go_on.wait(30)

        early.registry.before = stop_half_way
        first = asyncio.create_task(found.pull(early))
        await half.wait()
        second = asyncio.create_task(found.pull(late))
        while late.store.progress(found.model.digest)[1] < SIZE // 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        go_on.set()
        await asyncio.gather(first, second)
        assert found.sent_bytes(found.model.blob) <= 1.5 * SIZE


async def test_the_share_of_a_node_that_dies_is_taken_over(three: Site) -> None:
    a, b, c = three.nodes.values()

    def die(digest: str, offset: int, size: int) -> None:
        if digest == three.model.blob:
            c.dead = True
            raise Unreachable("it is dead")

    c.registry.before = die
    dead = asyncio.create_task(three.pull(c))
    await asyncio.gather(three.pull(a), three.pull(b))
    dead.cancel()
    await asyncio.gather(dead, return_exceptions=True)


async def test_the_share_of_a_node_that_is_too_slow_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "WAIT_S", 0.2)
    async with site(tmp_path, Model.of(SIZE), "quick", "slow") as found:
        quick, slow = found.nodes.values()
        # It is said to pull, and has not even begun.
        slow.pulling = True
        await found.pull(quick)
        assert found.sent_bytes(found.model.blob) == SIZE


async def test_p5_a_node_that_lies_costs_a_chunk_and_is_left_out(tmp_path: Path) -> None:
    async with site(tmp_path, Model.of(SIZE), "honest", "liar", "me") as found:
        honest, liar, me = found.nodes.values()
        for node in (honest, liar):
            await found.pull(node)
            node.whole = True
        liar.lies = True
        liar.asked.clear()
        await found.pull(me)
        # What was under way when the first lie came out, and no more.
        assert 0 < len(liar.asked) <= 2 * transfers.WHOLE_SLOTS
        assert me.registry.reads == []


async def test_p5_a_lie_about_a_file_without_an_index_is_found_out_and_the_registry_asked(tmp_path: Path) -> None:
    async with site(tmp_path, Model.of(SIZE, indexed=False), "liar", "me") as found:
        liar, me = found.nodes.values()
        await found.pull(liar)
        liar.whole, liar.lies = True, True
        await found.pull(me)
        assert sum(size for digest, _, size in me.registry.reads if digest == found.model.blob) == SIZE


async def test_nodes_of_the_region_spare_the_registry(three: Site) -> None:
    first, second, _ = three.nodes.values()
    await three.pull(first)
    first.whole, three.same_site = True, False
    await three.pull(second)
    assert second.registry.reads == []


async def test_a_node_that_is_busy_is_asked_again(three: Site) -> None:
    first, second, _ = three.nodes.values()
    await three.pull(first)
    first.whole = True
    busy = [True] * 5
    first.servicer._busy = lambda: bool(busy and busy.pop())
    await three.pull(second)
    assert second.registry.reads == [] and not busy


async def test_a_registry_that_goes_away_is_no_matter_while_a_node_gives_everything(three: Site) -> None:
    first, second, _ = three.nodes.values()
    await three.pull(first)
    first.whole = True

    def away(digest: str, offset: int, size: int) -> None:
        raise Unreachable("away")

    second.registry.before = away
    await three.pull(second)


class Cutting(FakeRegistry):
    """Breaks every connection off now and then, somewhere in the middle of a chunk."""

    cuts = 0

    def open(self, digest: str, offset: int, size: int, wait_s: float) -> FakeReader:
        found = super().open(digest, offset, size, wait_s)
        if size > CHUNK_BYTES and self.cuts < 10:
            self.cuts += 1
            return FakeReader(self, self.blobs[digest][offset : offset + size], broken_at=CHUNK_BYTES + 50_000)
        return found  # type: ignore[return-value]


async def test_a_registry_that_cuts_ten_times_costs_a_chunk_each_time(tmp_path: Path) -> None:
    model = Model.of(SIZE)
    async with site(tmp_path, model) as found:
        assert model.index
        registry = Cutting(model.manifest, model.files, model.index)
        node = found.add("me", registry)
        await found.pull(node)
        assert registry.cuts == 10
        small = len(model.index) + 100
        assert registry.sent_bytes <= SIZE + small + 10 * CHUNK_BYTES


async def test_what_was_here_before_a_restart_is_not_fetched_again(tmp_path: Path) -> None:
    model = Model.of(SIZE)
    async with site(tmp_path, model) as found:
        node = found.add("me")
        fetched = 0

        def stop(digest: str, offset: int, size: int) -> None:
            nonlocal fetched
            if digest == model.blob and node.registry.sent_bytes > SIZE // 2:
                raise Unreachable("away for good")

        node.registry.before = stop
        with pytest.raises(Unreachable):
            await found.pull(node)
        first_bytes = node.registry.sent_bytes
        assert first_bytes > SIZE // 2 and node.store.find(model.digest) is None
        node.store.close()
        again = found.add("me")
        await found.pull(again)
        assert first_bytes + again.registry.sent_bytes <= SIZE + 4 * CHUNK_BYTES + 2 * len(model.index or b"")


async def test_known_chunks_come_from_this_disk(tmp_path: Path) -> None:
    first = Model.of(SIZE)
    changed = bytearray(first.weights)
    changed[5 * MIB : 5 * MIB + 300_000] = bytes(300_000)
    second = Model(bytes(changed), version="2")
    async with site(tmp_path, first) as found:
        node = found.add("me")
        await found.pull(node)
        node.registry = second.registry()
        await found.pull(node, second)
        read = sum(size for digest, _, size in node.registry.reads if digest == second.blob)
        assert 300_000 <= read <= 300_000 + 2 * CHUNK_BYTES


async def test_p5_a_chunk_of_an_old_version_that_rotted_is_fetched(tmp_path: Path) -> None:
    first = Model.of(SIZE)
    second = Model(first.weights[: 6 * MIB] + bytes(MIB) + first.weights[7 * MIB :], version="2")
    async with site(tmp_path, first) as found:
        node = found.add("me")
        folder = await found.pull(node)
        with (folder / "weights.onnx").open("r+b") as file:
            file.seek(3 * MIB)
            file.write(b"rotten")
        node.registry = second.registry()
        await found.pull(node, second)


async def test_an_index_that_does_not_fit_its_file_is_refused(tmp_path: Path) -> None:
    model = Model.of(2 * MIB)
    assert model.index
    other = Model.of(3 * MIB, seed=2)
    # Its chunks are said to be of the first one's file.
    forged = (other.index or b"").replace(other.blob.encode(), model.blob.encode())
    model.index = forged
    from tests.fake_registry import manifest_of

    model.manifest = manifest_of(model.files, "1", forged).to_bytes()
    async with site(tmp_path, model) as found:
        with pytest.raises(PackageError, match="the file has"):
            await found.pull(found.add("me"))


async def test_p5_an_index_whose_chunks_are_another_files_loads_nothing(tmp_path: Path) -> None:
    """Same size, other bytes: the registry's chunks do not fit the index."""
    model, other = Model.of(2 * MIB), Model.of(2 * MIB, seed=2)
    forged = (other.index or b"").replace(other.blob.encode(), model.blob.encode())
    from tests.fake_registry import manifest_of

    model.index, model.manifest = forged, manifest_of(model.files, "1", forged).to_bytes()
    async with site(tmp_path, model) as found:
        node = found.add("me")
        with pytest.raises(DigestMismatch):
            await found.pull(node)
        assert node.store.find(model.digest) is None


async def test_a_version_that_does_not_fit_says_so_before_it_is_fetched(tmp_path: Path) -> None:
    async with site(tmp_path, Model.of(SIZE)) as found:
        node = found.add("me", config=StoreConfig(disk_budget_mib=4))
        with pytest.raises(StorageFull, match=r"m@1 needs 12 MiB .* disk_budget_mib = 4"):
            await found.pull(node)
        assert found.sent_bytes(found.model.blob) == 0


async def test_what_nobody_wants_makes_room_and_what_is_needed_stays(tmp_path: Path) -> None:
    models = [Model.of(4 * MIB, seed=seed, version=str(seed)) for seed in (1, 2, 3)]
    async with site(tmp_path, models[0]) as found:
        node = found.add("me", config=StoreConfig(disk_budget_mib=9))
        for model in models[:2]:
            node.registry = model.registry()
            await found.pull(node, model)
        node.registry = models[2].registry()
        node.store._needed = lambda: [models[1].digest]
        await found.pull(node, models[2])
        assert [node.store.find(model.digest) is not None for model in models] == [False, True, True]
        node.store._needed = lambda: [model.digest for model in models]
        node.registry = models[0].registry()
        with pytest.raises(StorageFull, match="kept for a rollback"):
            await found.pull(node, models[0])


async def test_room_that_one_version_was_promised_is_not_given_to_another(tmp_path: Path) -> None:
    one, other = (Model.of(4 * MIB, seed=seed, version=str(seed)) for seed in (1, 2))
    async with site(tmp_path, one) as found:
        store = found.add("me", config=StoreConfig(disk_budget_mib=6)).store
        asked, go_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()
        slow = one.registry()

        def wait(digest: str, offset: int, size: int) -> None:
            loop.call_soon_threadsafe(asked.set)
            assert go_on.wait(10)

        # Its small files are being fetched: the large one does not lie here yet.
        slow.before = wait
        first = asyncio.create_task(store.pull("m", one.digest, slow))
        await asked.wait()
        with pytest.raises(StorageFull, match="m@2 needs 4 MiB"):
            await store.pull("m", other.digest, other.registry())
        go_on.set()
        await first


async def test_a_limit_on_bandwidth_is_kept(tmp_path: Path) -> None:
    async with site(tmp_path, Model.of(4 * MIB)) as found:
        # 16 MiB/s.
        node = found.add("me", config=StoreConfig(bandwidth_mbit_s=16 * MIB * 8 / 1e6))
        began_s = asyncio.get_running_loop().time()
        await found.pull(node)
        assert asyncio.get_running_loop().time() - began_s > 0.1


async def test_two_versions_with_one_large_file_fetch_it_once(tmp_path: Path) -> None:
    first = Model.of(SIZE)
    second = Model(first.weights, version="2")
    async with site(tmp_path, first) as found:
        node = found.add("me")
        node.registry.manifests[second.digest] = second.manifest
        await asyncio.gather(found.pull(node), found.pull(node, second))
        assert found.sent_bytes(first.blob) == SIZE


async def test_prometheus_is_told_where_versions_came_from_and_where_they_went(tmp_path: Path) -> None:
    first, registry = Model.of(SIZE), CollectorRegistry()
    second = Model(first.weights[: 10 * MIB] + bytes(2 * MIB), version="2")
    metrics = StoreMetrics(registry)

    def pulled(source: str) -> float:
        return registry.get_sample_value("nearmesh_pulled_bytes_total", {"source": source}) or 0.0

    async with site(tmp_path, first) as found:
        giver = found.add("giver")
        giver.servicer._given = metrics.given
        me = found.add("me")
        me.store._brought = metrics.brought
        await found.pull(giver)
        giver.whole = True
        assert (pulled("node"), registry.get_sample_value("nearmesh_given_bytes_total")) == (0, 0)
        await found.pull(me)
        assert pulled("node") > SIZE and pulled("registry") == 0
        assert registry.get_sample_value("nearmesh_given_bytes_total") == pulled("node")
        giver.whole = giver.pulling = False
        me.registry = second.registry()
        await found.pull(me, second)
        assert pulled("disk") == 10 * MIB
        assert 2 * MIB <= pulled("registry") < 3 * MIB
