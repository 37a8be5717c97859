"""What a transfer asks whom for: near before far, shares within a site, and what failures change."""

from __future__ import annotations

import itertools

import pytest
from nearmesh_agent.store import planner as planners
from nearmesh_agent.store.pieces import FIXED_BYTES, STRETCH_BYTES, Pieces
from nearmesh_agent.store.planner import Job, Planner, Standing, Tier, owner
from nearmesh_agent.store.window import FIRST, MOST, Window

from nearmesh.chunks import Chunk
from nearmesh.oci import WEIGHT_TYPE, Descriptor

DIGEST = "sha256:" + "a" * 64
MIB = 2**20


def pieces(size_bytes: int = 64 * MIB) -> Pieces:
    return Pieces(Descriptor(WEIGHT_TYPE, DIGEST, size_bytes, "weights"))


def registry(slots: int = 4) -> Standing:
    return Standing("registry", Tier.REGISTRY, whole=True, slots=slots)


def near(name: str, *, whole: bool = False, slots: int = 4) -> Standing:
    return Standing(name, Tier.SITE, whole=whole, slots=slots)


def region(name: str) -> Standing:
    return Standing(name, Tier.REGION, whole=True, slots=4)


def planner(*sources: Standing, of: Pieces | None = None, me: str = "me") -> Planner:
    found = Planner(me, [of or pieces()])
    found.follow(sources)
    return found


def all_jobs(of: Planner, source: str, now_s: float = 0.0) -> list[Job]:
    """Everything that the source would be asked for, one after the other."""
    found = []
    while job := of.take(source, now_s):
        found.append(job)
        for number in range(job.first, job.end):
            of.arrived(job, number, now_s)
        of.ended(job)
    return found


@pytest.mark.parametrize("size", [0, 1, FIXED_BYTES, FIXED_BYTES + 1, 10 * MIB + 5])
def test_a_blob_is_cut_into_parts_that_cover_it(size: int) -> None:
    found = pieces(size)
    assert sum(chunk.size_bytes for chunk in found.chunks) == size
    assert [chunk.offset for chunk in found.chunks[1:]] == [chunk.end for chunk in found.chunks[:-1]]
    assert found.starts[0] == 0 and found.starts[-1] == len(found.chunks)


def test_stretches_follow_the_chunks_and_there_are_never_too_many() -> None:
    sizes = [300_000 + 1000 * n for n in range(100)]
    chunks, at = [], 0
    for size in sizes:
        chunks.append(Chunk(at, size, DIGEST))
        at += size
    found = Pieces(Descriptor(WEIGHT_TYPE, DIGEST, at), chunks)
    starts = found.starts
    for first, end in itertools.pairwise(starts[:-1]):
        assert chunks[end - 1].end - chunks[first].offset >= STRETCH_BYTES
    assert len(Pieces(Descriptor(WEIGHT_TYPE, DIGEST, 100_000 * MIB)).starts) <= 2002


def test_the_registry_gives_everything_once_when_nobody_else_is_there() -> None:
    found = planner(registry())
    jobs = all_jobs(found, "registry")
    assert found.complete and sum(job.size_bytes for job in jobs) == 64 * MIB
    assert not any(job.wait for job in jobs)
    assert max(job.size_bytes for job in jobs) <= planners.MOST_BYTES
    # Towards the end requests are smaller, so that nobody is the last for long.
    assert jobs[-1].size_bytes <= 2 * FIXED_BYTES


def test_a_source_is_asked_for_as_much_at_a_time_as_it_has_slots() -> None:
    found = planner(registry(slots=3))
    jobs = [found.take("registry", 0.0) for _ in range(4)]
    assert [job is not None for job in jobs] == [True, True, True, False]
    numbers = [number for job in jobs if job for number in range(job.first, job.end)]
    assert len(numbers) == len(set(numbers))


def test_a_node_of_the_site_that_has_it_all_spares_the_wan() -> None:
    found = planner(registry(), region("far"), near("n", whole=True))
    assert found.take("registry", 0.0) is None and found.take("far", 0.0) is None
    assert all_jobs(found, "n") and found.complete


def test_a_node_of_the_region_comes_before_the_registry() -> None:
    found = planner(registry(), region("far"))
    assert found.take("registry", 0.0) is None
    job = found.take("far", 0.0)
    assert job is not None
    source = found.ended(job)
    assert source is not None
    found.failed(source, 0.0)
    assert found.take("registry", 0.0) is not None
    # It is asked again when it may be back.
    later_s = 1.0
    assert found.take("far", later_s) is not None and found.take("registry", later_s) is None


def test_a_site_whose_nodes_are_all_too_busy_starves_for_a_while_and_then_uses_the_wan() -> None:
    found = planner(registry(), near("n", whole=True))
    job = found.take("n", 0.0)
    assert job is not None
    source = found.ended(job)
    assert source is not None
    found.busy(source, 0.0, 2.0)
    assert found.take("n", 1.0) is None and found.take("registry", 1.0) is None
    assert found.take("n", 2.0) is not None
    assert found.take("registry", planners.STARVED_S + 0.1) is not None


def test_three_nodes_of_a_site_read_each_stretch_from_far_away_once() -> None:
    names = ["a", "b", "c"]
    read: dict[str, set[int]] = {}
    for me in names:
        others = [near(name) for name in names if name != me]
        found = planner(registry(), *others, me=me)
        jobs = []
        while (job := found.take("registry", 0.0)) and len(jobs) < 4:
            jobs.append(job)
        mine = planner(registry(slots=1000), *others, me=me)
        read[me] = {n for job in iter(lambda p=mine: p.take("registry", 0.0), None) for n in range(job.first, job.end)}
        for other in others:
            waits = []
            while job := mine.take(other.name, 0.0):
                waits.append(job)
                source = mine.ended(job)
                assert job.wait and source is not None
                for number in range(job.first, job.end):
                    job.pieces.arrived(number)
    assert set.union(*read.values()) == set(range(64))
    assert sum(map(len, read.values())) == 64, "nobody reads what another one reads"
    assert min(map(len, read.values())) >= 8, "shares are about equal"


def test_what_a_node_already_has_is_taken_from_it_whoever_it_belongs_to() -> None:
    found = planner(registry(slots=1000), near("early", slots=1000))
    found.tell("early", {DIGEST: [(0, 32 * MIB)]})
    jobs = list(iter(lambda: found.take("early", 0.0), None))
    from_start = [job for job in jobs if job.offset < 32 * MIB]
    assert sum(job.size_bytes for job in from_start) == 32 * MIB and not any(job.wait for job in from_start)
    assert all(job.wait for job in jobs if job.offset >= 32 * MIB)


def test_the_share_of_a_node_that_fails_goes_to_those_who_are_left_and_comes_back() -> None:
    found = planner(registry(slots=1000), near("dies", slots=1000))
    job = found.take("dies", 0.0)
    assert job is not None and job.wait
    mine = list(iter(lambda: found.take("registry", 0.0), None))
    assert not set(range(job.first, job.end)) & {n for each in mine for n in range(each.first, each.end)}
    source = found.ended(job)
    assert source is not None
    found.lacks(source, 0.0)
    assert found.take("dies", 1.0) is None
    taken_over = list(iter(lambda: found.take("registry", 1.0), None))
    assert sum(each.size_bytes for each in (*mine, *taken_over)) == 64 * MIB
    for each in taken_over:
        found.ended(each)
    assert found.take("dies", planners.SLOW_S + 2) is not None


def test_who_lied_is_asked_for_nothing_more() -> None:
    found = planner(registry(), near("liar", whole=True))
    job = found.take("liar", 0.0)
    assert job is not None
    source = found.ended(job)
    assert source is not None
    found.lied(source)
    assert found.take("liar", 1e9) is None
    # Also when the control plane names it again.
    found.follow([registry(), near("liar", whole=True)])
    assert found.take("liar", 1e9) is None
    assert found.take("registry", 0.0) is not None


def test_what_breaks_off_at_the_same_time_is_one_failure_and_waits_grow() -> None:
    found = planner(registry(slots=3))
    jobs = [found.take("registry", 0.0) for _ in range(3)]
    for job in jobs:
        assert job is not None
        source = found.ended(job)
        assert source is not None
        found.failed(source, 0.0)
    assert source.failures == 1
    waits, now_s = [], 0.0
    for _ in range(4):
        now_s = source.away_until_s
        found.failed(source, now_s)
        waits.append(source.away_until_s - now_s)
    assert waits == sorted(waits) and waits[0] < waits[-1] <= planners.BACKOFF_S[1]
    job = found.take("registry", source.away_until_s)
    assert job is not None
    found.arrived(job, job.first, now_s)
    assert source.failures == 0


def test_nobody_waits_in_a_circle_however_differently_nodes_see_the_site() -> None:
    names = [f"n{number}" for number in range(6)]
    for stretch in range(50):
        for skip in range(1, 6):
            # Each node sees itself and some of the others.
            seen = {name: [name, *names[: len(names) - skip], names[-skip]] for name in names}
            waits_for = {name: owner(seen[name], DIGEST, stretch) for name in names}
            for start in names:
                at, steps = start, 0
                while waits_for[at] != at:
                    at, steps = waits_for[at], steps + 1
                    assert steps <= len(names)


def test_a_node_that_leaves_a_site_moves_only_its_own_share() -> None:
    names = ["a", "b", "c", "d"]
    for stretch in range(200):
        before = owner(names, DIGEST, stretch)
        after = owner(names[:-1], DIGEST, stretch)
        assert after == before or before == "d"


# The window.


@pytest.mark.parametrize(
    ("each_mib_s", "link_mib_s", "least", "most"),
    [(25, 120, 5, 8), (25, 1000, MOST, MOST), (100, 100, FIRST, FIRST), (2, 1000, MOST, MOST)],
)
def test_connections_are_added_while_that_is_faster(
    each_mib_s: float, link_mib_s: float, least: int, most: int
) -> None:
    window, received, now_s = Window(), 0.0, 0.0
    for _ in range(100):
        received += min(window.connections * each_mib_s, link_mib_s) * MIB * 0.1
        now_s += 0.1
        window.observe(int(received), now_s)
        if now_s > 9:
            break
    assert least <= window.connections <= most
