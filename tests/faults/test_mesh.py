"""The promises, on a whole mesh of real processes: what users see while parts of it are killed or change."""

from __future__ import annotations

import pytest

from nearmesh.devmesh.mesh import LocalMesh
from nearmesh.devmesh.plan import MODELS, REGIONS, site_of
from nearmesh.devmesh.tour import tour
from nearmesh.devmesh.wan.control import ControlClient
from tests.faults import departures, islands, scenarios
from tests.faults.loads import WAYS

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]


async def test_the_nearest_site_answers_when_asked_for(mesh: LocalMesh) -> None:
    rows = await tour(mesh.plan.folder, objective="nearest")
    assert len(rows) == len(REGIONS) * 3 * len(MODELS)
    assert [row for row in rows if not row.correct or row.site != site_of(row.region)] == []


async def test_the_wan_carries_the_traffic(mesh: LocalMesh) -> None:
    links = (await ControlClient(mesh.plan.wan_control).send("stats"))["links"]
    carried = {name for name, link in links.items() if link["bytes_up"] > 0 and link["bytes_down"] > 0}
    # Gateways measure the way to every node; the tour took the public ways to the nearest.
    assert {name for name in links if name.endswith(":mesh")} <= carried
    assert {f"{region}:{region}:public" for region in REGIONS} <= carried


# Every model from every region by every way, and every fault in a scenario of its own, is the soak's. The live run
# has nodes killed, frozen, drained and told to leave while a small request is asked of them; here the same is met by a
# large one, which gRPC's own retries have to keep, and by a stateful model.
async def test_a_cheaper_price_moves_traffic_within_two_seconds(mesh: LocalMesh) -> None:
    await scenarios.price_moves_traffic(mesh, "europe-west1", "file-type", WAYS)


@pytest.mark.parametrize(("model", "ways"), [("text-detector", ("xds",)), ("voice-activity", WAYS)])
async def test_p1_a_killed_node_costs_no_error(mesh: LocalMesh, model: str, ways: tuple[str, ...]) -> None:
    await scenarios.killed_node(mesh, "europe-west1", model, ways)


async def test_p2_p3_inference_goes_on_without_the_control_plane_and_it_forgets_nothing(mesh: LocalMesh) -> None:
    await scenarios.killed_control_plane(mesh, "europe-west1", seconds=8.0)


async def test_p2_who_starts_without_the_control_plane_finds_every_model_from_everywhere(mesh: LocalMesh) -> None:
    await islands.started_without_control_plane(mesh)


async def test_a_sequence_ends_with_sequence_lost_when_its_node_is_killed(mesh: LocalMesh) -> None:
    await scenarios.lost_sequences(mesh, "europe-west1")


async def test_p1_a_node_that_leaves_costs_no_error(mesh: LocalMesh) -> None:
    await departures.departed_node(mesh, "sigterm", "europe-west1", "file-type")


async def test_a_sequence_is_told_to_begin_anew_before_its_node_goes(mesh: LocalMesh) -> None:
    await departures.departed_sequences(mesh, "notice", "europe-west1")
