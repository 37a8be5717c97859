"""What makes a snapshot believable, what a keeper does with one, and the routes that are read from it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from nearmesh_controlplane.registry.authority import Authority

from nearmesh.errors import NotFound, NotReady, SnapshotExpired, SnapshotRefused
from nearmesh.routing import OBJECTIVES
from nearmesh.snapshot import MAX_SNAPSHOT_BYTES, SnapshotKeeper, SnapshotRoutes, opened, sealed
from nearmesh.snapshot.keeper import SNAPSHOT_FILE
from nearmesh.snapshot.seal import LEEWAY_S
from nearmesh.v1 import route_pb2 as pb
from tests.snapshots import AMERICA, EUROPE, NOW_S, snapshot


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.open("mesh", tmp_path_factory.mktemp("authority"))


@pytest.fixture
def signed(authority: Authority) -> pb.SignedSnapshot:
    return sealed(snapshot(), authority.key)


class Clock:
    def __init__(self, now_s: float = NOW_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def keeper(authority: Authority, path: Path | None = None, now_s: float = NOW_S, region: str = "") -> SnapshotKeeper:
    return SnapshotKeeper(authority.ca_pem, path, mesh="mesh", region=region, clock=Clock(now_s))


# Signing and checking


def test_what_was_signed_is_what_is_opened(authority: Authority, signed: pb.SignedSnapshot) -> None:
    assert opened(signed, authority.ca_pem, mesh="mesh", now_s=NOW_S) == snapshot()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("part", ["snapshot", "signature"])
@pytest.mark.parametrize("at", [0, 20, -1])
def test_a_changed_bit_anywhere_is_refused(authority: Authority, signed: pb.SignedSnapshot, part: str, at: int) -> None:
    data = getattr(signed, part)
    setattr(signed, part, flipped(data, at % len(data)))
    with pytest.raises(SnapshotRefused, match="not signed by this mesh"):
        opened(signed, authority.ca_pem, mesh="mesh", now_s=NOW_S)


def test_another_meshs_signature_and_another_meshs_name_are_refused(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority.open("mesh", tmp_path)
    with pytest.raises(SnapshotRefused, match="not signed"):
        opened(sealed(snapshot(), stranger.key), authority.ca_pem, mesh="mesh", now_s=NOW_S)
    with pytest.raises(SnapshotRefused, match="of mesh 'other', not 'mesh'"):
        opened(sealed(snapshot(mesh="other"), authority.key), authority.ca_pem, mesh="mesh", now_s=NOW_S)


def test_what_the_same_key_signed_for_something_else_is_no_snapshot(authority: Authority) -> None:
    body = snapshot().SerializeToString(deterministic=True)
    bare = pb.SignedSnapshot(snapshot=body, signature=authority.key.sign(body, ec.ECDSA(hashes.SHA256())))
    with pytest.raises(SnapshotRefused, match="not signed"):
        opened(bare, authority.ca_pem, mesh="mesh", now_s=NOW_S)


def test_without_a_ca_nothing_is_believed(signed: pb.SignedSnapshot) -> None:
    with pytest.raises(SnapshotRefused, match="CA cannot be read"):
        opened(signed, b"-----BEGIN CERTIFICATE-----", now_s=NOW_S)


@pytest.mark.parametrize(
    ("now_s", "error"),
    [
        (NOW_S - LEEWAY_S - 1, "in the future"),
        (NOW_S - LEEWAY_S + 1, None),
        (NOW_S + 3600 + LEEWAY_S - 1, None),
        (NOW_S + 3600 + LEEWAY_S + 1, "expired"),
        (NOW_S + 3600 + 7200, r"expired 2\.0 h ago"),
    ],
)
def test_its_time(authority: Authority, signed: pb.SignedSnapshot, now_s: float, error: str | None) -> None:
    if error is None:
        assert opened(signed, authority.ca_pem, now_s=now_s)
        return
    with pytest.raises(SnapshotRefused, match=error):
        opened(signed, authority.ca_pem, now_s=now_s)


def test_one_that_is_too_large_is_refused_unread(authority: Authority) -> None:
    with pytest.raises(SnapshotRefused, match="at most"):
        opened(pb.SignedSnapshot(snapshot=bytes(MAX_SNAPSHOT_BYTES + 1)), authority.ca_pem, now_s=NOW_S)


@pytest.mark.parametrize(
    "table",
    [
        pb.SnapshotTable(region=EUROPE, nearest=[2]),
        pb.SnapshotTable(region=EUROPE, addresses=[pb.SnapshotAddress(node=2)]),
        pb.SnapshotTable(region=EUROPE, routes=[pb.SnapshotRoute(model=1)]),
        pb.SnapshotTable(region=EUROPE, routes=[pb.SnapshotRoute(choices=[pb.SnapshotChoice(node=2)])]),
    ],
)
def test_an_index_that_leads_nowhere_is_refused(authority: Authority, table: pb.SnapshotTable) -> None:
    with pytest.raises(SnapshotRefused, match="does not have"):
        opened(sealed(snapshot(tables=[table]), authority.key), authority.ca_pem, now_s=NOW_S)


# Keeping


def test_a_keeper_without_any_says_so(authority: Authority) -> None:
    with pytest.raises(NotReady, match="no snapshot"):
        keeper(authority).table(EUROPE, "public")


def test_what_was_saved_is_there_at_the_next_start(
    authority: Authority, signed: pb.SignedSnapshot, tmp_path: Path
) -> None:
    first = keeper(authority, tmp_path / SNAPSHOT_FILE)
    assert first.take(signed)
    assert not first.take(signed), "the same again is no news"
    first.save()
    assert (tmp_path / SNAPSHOT_FILE).stat().st_mode & 0o077 == 0
    assert keeper(authority, tmp_path / SNAPSHOT_FILE).routes().generation == 5


def test_an_older_one_never_replaces_a_newer_one_not_even_after_a_restart(
    authority: Authority, signed: pb.SignedSnapshot, tmp_path: Path
) -> None:
    first = keeper(authority, tmp_path / SNAPSHOT_FILE)
    first.take(signed)
    first.save()
    older = sealed(snapshot(generation=4), authority.key)
    # Its time is over meanwhile, and it still counts.
    late_s = NOW_S + 3600 + LEEWAY_S + 1
    for held in (first, keeper(authority, tmp_path / SNAPSHOT_FILE, late_s)):
        late = snapshot(generation=4, issued_at_s=late_s, expires_at_s=late_s + 60)
        for offered in (older, sealed(late, authority.key)):
            with pytest.raises(SnapshotRefused):
                held.take(offered)
        assert held.known
        assert held.known.generation == 5
    newer = snapshot(generation=6, issued_at_s=late_s, expires_at_s=late_s + 60)
    assert held.take(sealed(newer, authority.key))
    assert held.routes().generation == 6


def test_p8_a_process_with_an_older_one_does_not_write_over_the_newer_one_of_another(
    authority: Authority, tmp_path: Path
) -> None:
    path = tmp_path / SNAPSHOT_FILE
    one, other = keeper(authority, path), keeper(authority, path)
    one.take(sealed(snapshot(generation=6), authority.key))
    other.take(sealed(snapshot(generation=5), authority.key))
    for each in (one, other, one):
        each.save()
        assert keeper(authority, path).routes().generation == 6
    other.take(sealed(snapshot(generation=7), authority.key))
    other.save()
    assert keeper(authority, path).routes().generation == 7


def part(authority: Authority, region: str, generation: int = 5) -> pb.SignedSnapshot:
    """As clients of a region are sent it."""
    tables = [table for table in snapshot().tables if table.region == region]
    return sealed(snapshot(generation=generation, tables=tables, only_region=region), authority.key)


def test_who_answers_for_all_regions_takes_no_part_however_new(
    authority: Authority, signed: pb.SignedSnapshot, tmp_path: Path
) -> None:
    """A node would answer the other regions' clients by the routes of a neighbour, which may be bound otherwise."""
    path = tmp_path / SNAPSHOT_FILE
    machine = keeper(authority, path)
    machine.take(signed)
    for generation in (5, 6):
        with pytest.raises(SnapshotRefused, match="only what 'europe-west1' needs; here it takes all of it"):
            machine.take(part(authority, EUROPE, generation))
    assert len(machine.routes()) == 2
    path.write_bytes(part(authority, EUROPE).SerializeToString())
    assert keeper(authority, path).known is None


def test_a_client_takes_its_own_regions_part_and_no_others(authority: Authority) -> None:
    client = keeper(authority, region=EUROPE)
    assert client.take(part(authority, EUROPE))
    with pytest.raises(SnapshotRefused, match="only what 'us-east1' needs; here it takes that of 'europe-west1'"):
        client.take(part(authority, AMERICA, 6))
    assert client.take(part(authority, EUROPE, 6))


def test_a_part_does_not_replace_the_whole_of_the_same_moment(
    authority: Authority, signed: pb.SignedSnapshot, tmp_path: Path
) -> None:
    path = tmp_path / SNAPSHOT_FILE
    client, beside = keeper(authority, path, region=EUROPE), keeper(authority, path, region=EUROPE)
    assert client.take(part(authority, EUROPE))
    assert client.take(signed)
    assert not client.take(part(authority, EUROPE))
    assert len(client.routes()) == 2
    client.save()
    # Another process of the same user has the part.
    beside.take(part(authority, EUROPE))
    beside.save()
    assert len(keeper(authority, path, region=EUROPE).routes()) == 2
    assert client.take(part(authority, EUROPE, 6))


def test_an_expired_one_is_known_and_routes_nothing(
    authority: Authority, signed: pb.SignedSnapshot, tmp_path: Path
) -> None:
    first = keeper(authority, tmp_path / SNAPSHOT_FILE)
    first.take(signed)
    first.save()
    again = keeper(authority, tmp_path / SNAPSHOT_FILE, NOW_S + 24 * 3600)
    assert again.known
    with pytest.raises(SnapshotExpired, match=r"expired 23\.0 h ago; only a control plane"):
        again.routes()


@pytest.mark.parametrize("damage", [b"", b"\x00garbage", b"half", None])
def test_a_damaged_or_forged_file_counts_as_none_and_is_logged(
    authority: Authority,
    signed: pb.SignedSnapshot,
    tmp_path: Path,
    damage: bytes | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = signed.SerializeToString()
    content = {b"half": whole[: len(whole) // 2], None: flipped(whole, 40)}.get(damage, damage)
    assert content is not None
    (tmp_path / SNAPSHOT_FILE).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found = keeper(authority, tmp_path / SNAPSHOT_FILE)
    assert found.known is None
    assert "counts as none" in caplog.text
    assert found.take(signed)


def test_a_folder_that_cannot_be_written_costs_the_file_alone(
    authority: Authority, signed: pb.SignedSnapshot, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    found = keeper(authority, tmp_path / "file" / SNAPSHOT_FILE)
    found.take(signed)
    found.save()
    assert found.routes()
    assert "was not kept" in caplog.text


async def test_who_waits_is_woken_by_a_new_one_and_not_by_a_refused_one(
    authority: Authority, signed: pb.SignedSnapshot
) -> None:
    found = keeper(authority)
    seen = await found.changed(0)
    waiting = asyncio.create_task(found.changed(seen))
    with pytest.raises(SnapshotRefused):
        found.take(pb.SignedSnapshot(snapshot=b"x", signature=b"y"))
    await asyncio.sleep(0)
    assert not waiting.done()
    found.take(signed)
    assert await waiting > seen


# Routes


@pytest.mark.parametrize(
    ("region", "order"),
    [(EUROPE, ["eu", "us"]), (AMERICA, ["us", "eu"]), ("europe-west3", ["eu", "us"]), ("us-west1", ["us", "eu"])],
)
def test_each_region_has_its_own_order_or_the_nearest_regions(region: str, order: list[str]) -> None:
    routes = SnapshotRoutes(snapshot())
    for objective in OBJECTIVES:
        assert [c.node for c in routes.route("m", region, objective).candidates] == order
        table = routes.table(region, "public")
        assert [e.node for e in table.models["m"].by_objective[objective]] == order
    assert [e.node for e in table.nearest] == order


def test_the_address_is_the_regions_own_where_it_has_one() -> None:
    routes = SnapshotRoutes(snapshot())
    found = {
        (region, listener): {e.node: e.address for e in routes.table(region, listener).nearest}["eu"]
        for region in (EUROPE, AMERICA)
        for listener in ("public", "mesh")
    }
    assert found == {
        (EUROPE, "public"): "10.0.0.12:8001",
        (EUROPE, "mesh"): "10.0.0.12:8003",
        (AMERICA, "public"): "10.0.0.9:1",
        (AMERICA, "mesh"): "10.0.0.9:3",
    }
    assert {c.node: c.address for c in routes.route("m", AMERICA).candidates}["eu"] == "10.0.0.9:1"


def test_a_route_says_what_was_predicted_by_whom_and_until_when() -> None:
    route = SnapshotRoutes(snapshot()).route("m", "us-west1")
    assert (route.model, route.version, route.region, route.objective) == ("m", "1", "us-west1", "nearest")
    assert (route.generation, route.expires_at_s, route.deadline_ms) == (5, NOW_S + 3600, 300)
    first = route.candidates[0]
    assert (first.server_name, first.share, first.ready, first.in_time) == ("us.mesh", 1.0, True, True)
    assert (first.network_ms_p50, first.service_ms_p95, first.why) == (10.0, 5.0, "nearest")
    assert first.total_ms_p95 == pytest.approx(15.0, abs=0.1)
    assert len(first.network_ms_quantiles) == 7


def test_an_unknown_model_is_named_with_those_that_are_known() -> None:
    with pytest.raises(NotFound, match="no model 'x'; the mesh has m"):
        SnapshotRoutes(snapshot()).route("x", EUROPE)


def test_a_mesh_without_nodes_has_empty_tables() -> None:
    empty = SnapshotRoutes(snapshot(nodes=[], tables=[]))
    table = empty.table(EUROPE, "public")
    assert table.nearest == ()
    assert table.models["m"].by_objective["nearest"] == ()
    with pytest.raises(NotFound, match="no routes"):
        empty.route("m", EUROPE)


def test_equal_snapshots_give_equal_tables() -> None:
    def tables(**more: Any) -> list[Any]:
        routes = SnapshotRoutes(snapshot(**more))
        return [routes.table(EUROPE, "public"), routes.table(AMERICA, "mesh")]

    assert tables() == tables(generation=9, expires_at_s=NOW_S + 9)
