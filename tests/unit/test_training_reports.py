"""What nodes say of their part in federated rounds: bounded, and under their own key alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_controlplane.registry.training import MAX_DETAIL_CHARACTERS, RETURN_S, Training, checked
from nearmesh_controlplane.registry.wanted import wanted_state

from nearmesh.cli import records
from nearmesh.errors import InvalidInput
from nearmesh.ssh_keys import key_of, ssh_line
from nearmesh.tls import new_key
from nearmesh.v1 import admin_pb2, node_pb2
from tests.control_plane_state import State, state

KEY, ANOTHER = (ssh_line(new_key().public_key()) for _ in range(2))


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[State]:
    async with state(tmp_path) as found:
        await found.node("a")
        await found.node("b")
        yield found


@pytest.fixture
def training(mesh: State) -> Training:
    return Training(mesh.registry, mesh.changes, mesh.clock)


def report(key: str = KEY, models: tuple[str, ...] = ("digits",), **more: object) -> node_pb2.NodeStatus:
    said = node_pb2.TrainingStatus(models=models, public_key=key, **more)  # type: ignore[arg-type]
    return node_pb2.NodeStatus(training=said)


def test_a_key_is_the_same_line_whatever_remark_stands_behind_it() -> None:
    assert ssh_line(key_of(f"{KEY} somebody@somewhere\n")) == KEY


@pytest.mark.parametrize("line", ["", "ssh-ed25519 AAAA", "ecdsa-sha2-nistp256 AAAA", "x" * 600, KEY[:-20]])
def test_what_is_no_key_of_the_mesh_is_named(line: str) -> None:
    with pytest.raises(InvalidInput, match=r"OpenSSH public key|ECDSA P-256"):
        key_of(line)


def test_p8_a_node_names_no_key_but_its_own() -> None:
    assert checked(report(f"{KEY} remark").training, KEY).public_key == KEY
    for key in (ANOTHER, "", "nonsense"):
        with pytest.raises(InvalidInput):
            checked(report(key).training, KEY)


def test_what_a_node_says_is_bounded() -> None:
    said = report(models=("m", "m", "x" * 256), detail="y" * 9999, yielded_s=float("nan"), cpu_share=-1.0).training
    found = checked(said, KEY)
    assert (list(found.models), found.yielded_s, found.cpu_share) == (["m"], 0.0, 0.0)
    assert len(found.detail) == MAX_DETAIL_CHARACTERS


def test_one_that_is_away_for_a_moment_keeps_its_part(mesh: State, training: Training) -> None:
    training.heard("a", report(), KEY)
    mesh.registry.session_closed("a")
    assert training.node_of(KEY) == "a"


async def test_p8_a_removed_node_takes_part_no_more(mesh: State, training: Training) -> None:
    training.heard("a", report(), KEY)
    assert (training.node_of(KEY), training.node_of(ANOTHER)) == ("a", None)
    await mesh.registry.remove("a")
    assert (training.node_of(KEY), training.status("a")) == (None, None)


def test_an_operator_who_takes_leave_back_is_heard(training: Training) -> None:
    training.heard("a", report(), KEY)
    training.heard("a", node_pb2.NodeStatus(), KEY)
    assert (training.status("a"), training.node_of(KEY)) == (None, None)


def test_a_wrong_key_counts_as_no_training_and_is_logged_once(
    training: Training, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        training.heard("a", report(ANOTHER), KEY)
    assert training.status("a") is None
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == "node=a may not train: its SuperNode's key is not the key of its certificate"


def test_only_what_others_act_on_wakes_them(mesh: State, training: Training) -> None:
    training.heard("a", report(), KEY)
    before = mesh.changes.value
    training.heard("a", report(yielded_s=3.0), KEY)
    assert mesh.changes.value == before
    training.heard("a", report(running=True), KEY)
    assert mesh.changes.value == before + 1


def test_nobody_is_a_stranger_before_nodes_had_time_to_come_back(mesh: State, training: Training) -> None:
    assert not training.settled
    mesh.clock.now_s += RETURN_S + 0.1
    assert training.settled


async def test_a_node_is_told_of_the_superlink_while_a_run_asks_for_it(mesh: State) -> None:
    def told(node: str) -> str | None:
        found = wanted_state(
            node,
            mesh.registry,
            mesh.catalog,
            jwks_json="keys",
            registry_url="https://cp",
            training=lambda asked: "cp:7480" if asked == "a" else None,
        )
        return found.training.superlink if found.HasField("training") else None

    assert (told("a"), told("b")) == ("cp:7480", None)
    await mesh.registry.remove("a")
    assert told("a") is None


def test_what_programs_see_of_it() -> None:
    said = node_pb2.TrainingStatus(models=["digits"], public_key=KEY, running=True, yielded_s=1.5, cpu_share=0.5)
    assert records.node(admin_pb2.Node(training=said))["training"] == {
        "models": ["digits"],
        "running": True,
        "paused": "",
        "yielded_s": 1.5,
        "cpu_share": 0.5,
        "detail": "",
    }
    assert records.node(admin_pb2.Node())["training"] is None
