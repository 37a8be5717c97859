"""How a client is told where its mesh is, what it puts into a request, and what it makes of an answer or an error."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

import nearmesh.client
from nearmesh import errors
from nearmesh.client import picker, receipt
from nearmesh.client.bootstrap import grpc_bootstrap
from nearmesh.client.channels import Channels, call_error, raise_if_cancelled
from nearmesh.client.client import default_deadline_s, make_request
from nearmesh.client.control import ControlPlanes
from nearmesh.client.receipt import Attempt
from nearmesh.client.settings import ConnectSettings, Token, from_arguments, from_bootstrap, state_folder
from nearmesh.client.transport import NotSent
from nearmesh.tensors import decode_response
from tests.client_routes import endpoint, route

PEM = b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"


def write_bootstrap(folder: Path, token: str = "secret") -> Path:
    (folder / "ca.pem").write_bytes(PEM)
    path = folder / "bootstrap.json"
    path.write_text(json.dumps(grpc_bootstrap("cp:7400", folder / "ca.pem", token, "europe-west1", "site")))
    return path


def test_a_bootstrap_file_says_it_all(tmp_path: Path) -> None:
    found = from_bootstrap(write_bootstrap(tmp_path))
    assert (found.control_plane, found.ca_pem, found.region, found.site) == ("cp:7400", PEM, "europe-west1", "site")
    assert Token(found).metadata(0.0) == (("authorization", "Bearer secret"),)


def test_a_bootstrap_file_names_nodes_too_and_where_a_snapshot_is_kept_is_told_apart_by_mesh_and_region(
    tmp_path: Path,
) -> None:
    path = write_bootstrap(tmp_path)
    assert from_bootstrap(path).snapshot_path is None
    content = json.loads(path.read_text())
    content["xds_servers"].append(content["xds_servers"][0] | {"server_uri": "10.0.0.1:8001"})
    path.write_text(json.dumps(content))
    found = from_bootstrap(path, tmp_path / "state")
    assert found.fallbacks == {"10.0.0.1:8001": ""}
    (tmp_path / "ca.pem").write_bytes(PEM + b"another")
    other = from_bootstrap(path, tmp_path / "state")
    assert found.snapshot_path and other.snapshot_path
    assert found.snapshot_path.name == "europe-west1.pb"
    assert found.snapshot_path.parent.parent == tmp_path / "state"
    assert found.snapshot_path != other.snapshot_path


@pytest.mark.parametrize(
    ("named", "folder"), [("/var/state", "/var/state/nearmesh"), ("", "~/.local/state/nearmesh"), ("here", None)]
)
def test_the_state_folder_is_the_systems(monkeypatch: pytest.MonkeyPatch, named: str, folder: str | None) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", named)
    assert state_folder() == Path(folder or "~/.local/state/nearmesh").expanduser()


def test_a_user_without_a_home_keeps_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert state_folder() is None
    assert (
        nearmesh.client.connect(
            control_plane="cp:7400", ca=PEM, token="t", region="europe-west1"
        ).settings.snapshot_path
        is None
    )


def test_a_new_token_in_the_file_is_used_and_a_broken_file_is_not(tmp_path: Path) -> None:
    path = write_bootstrap(tmp_path)
    token = Token(from_bootstrap(path))
    token.metadata(0.0)
    write_bootstrap(tmp_path, "fresh")
    os.utime(path, ns=(1, 1))
    assert token.metadata(0.5)[0][1] == "Bearer secret"
    assert token.metadata(1.5)[0][1] == "Bearer fresh"
    path.write_text("{")
    assert token.metadata(3.0)[0][1] == "Bearer fresh"
    path.unlink()
    assert token.metadata(5.0)[0][1] == "Bearer fresh"


def test_a_token_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    found = from_arguments(control_plane="cp:1", ca=PEM, token=tmp_path / "token", region="r")
    assert Token(found).metadata(0.0)[0][1] == "Bearer abc"
    missing = from_arguments(control_plane="cp:1", ca=PEM, token=tmp_path / "nowhere", region="r")
    with pytest.raises(errors.ConfigError, match="nowhere: the token cannot be read"):
        Token(missing).metadata(0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"region": ""}, "its own region"),
        ({"control_plane": ""}, "address"),
        ({"ca_pem": b"hello"}, "not a certificate"),
        ({"token": ""}, "needs a bearer token"),
    ],
)
def test_incomplete_settings_are_refused(change: dict[str, object], message: str) -> None:
    whole: dict[str, object] = {"control_plane": "cp:1", "ca_pem": PEM, "region": "r", "token": "t"}
    with pytest.raises(errors.ConfigError, match=message):
        ConnectSettings(**(whole | change))  # type: ignore[arg-type]


def test_connect_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="all of control_plane, ca, token and region"):
        nearmesh.client.connect(control_plane="cp:1", region="r")
    with pytest.raises(errors.ConfigError, match=r"gone\.pem: the CA cannot be read"):
        nearmesh.client.connect(control_plane="cp:1", region="r", token="t", ca=tmp_path / "gone.pem")
    with pytest.raises(errors.ConfigError, match="no such file"):
        nearmesh.client.connect(tmp_path / "gone.json")


def test_a_request_carries_arrays_parameters_and_the_wish_for_a_receipt() -> None:
    request = make_request(
        "m", {"x": np.ones((2, 3), np.float32)}, ["y"], version="7", parameters={"a": 1, "b": True, "c": 0.5, "d": "e"}
    )
    assert (request.model_version, request.outputs[0].name) == ("7", "y")
    assert (request.inputs[0].datatype, list(request.inputs[0].shape)) == ("FP32", [2, 3])
    found = {name: p.WhichOneof("parameter_choice") for name, p in request.parameters.items()}
    assert found == {
        "a": "int64_param",
        "b": "bool_param",
        "c": "double_param",
        "d": "string_param",
        "nearmesh_receipt": "bool_param",
    }


def test_a_parameter_of_another_kind_is_refused() -> None:
    with pytest.raises(errors.InvalidInput, match="parameter 'a' is None"):
        make_request("m", {}, None, parameters={"a": None})  # type: ignore[dict-item]


@pytest.mark.parametrize(("policy_ms", "expected_s"), [(300.0, 10.0), (5000.0, 50.0)])
def test_the_callers_patience_is_generous(policy_ms: float, expected_s: float) -> None:
    assert default_deadline_s(route(deadline_ms=policy_ms)) == expected_s


def test_the_answer_joins_what_the_node_says_with_why_it_was_chosen() -> None:
    response = service_pb2.ModelInferResponse(model_name="m", model_version="1")
    response.outputs.add(name="y", datatype="FP32", shape=[2])
    response.raw_output_contents.append(np.array([1, 2], np.float32).tobytes())
    says = {receipt.SITE: "s", receipt.NODE: "a", receipt.REGION: "r", receipt.DIGEST: "sha256:1", receipt.VARIANT: "v"}
    says[receipt.RUN] = "r7"
    for name, text in says.items():
        response.parameters[name].string_param = text
    for name, ms in {receipt.QUEUE_MS: 1.0, receipt.COMPUTE_MS: 5.0, receipt.SERVICE_MS: 7.0}.items():
        response.parameters[name].double_param = ms
    found_route = route(endpoint("a", usd=2.5, share=0.4), endpoint("b", 50))
    choice = picker.order(found_route, measured={})[0]
    attempts = (Attempt("b", "UNREACHABLE: reset", 3.0), Attempt("a", "", 30.0))
    found = receipt.answer(
        response,
        decode_response(response),
        choice,
        found_route,
        forecast=choice.forecast,
        attempt_ms=30.0,
        total_ms=40.0,
        attempts=attempts,
        hedged=True,
    )
    assert found["y"].tolist() == [1, 2] and list(found) == ["y"] and len(found) == 1
    assert found.receipt == receipt.Receipt(
        site="s",
        node="a",
        region="r",
        digest="sha256:1",
        variant="v",
        queue_ms=1.0,
        compute_ms=5.0,
        network_ms=23.0,
        total_ms=40.0,
        usd_per_1000=2.5,
        why="placed here: share 0.4 of this region",
        predicted_network_ms=10.0,
        predicted_total_ms=30.0,
        prediction=receipt.Prediction(
            network_ms_p50=10.0,
            network_ms_p95=10.0,
            network_ms_p99=10.0,
            service_ms_p50=pytest.approx(10.0),
            service_ms_p95=pytest.approx(20.0),
            service_ms_p99=pytest.approx(26.65, abs=0.01),
            total_ms_p50=pytest.approx(20.0),
            total_ms_p95=pytest.approx(30.0),
            total_ms_p99=pytest.approx(36.65, abs=0.01),
            p_in_time=pytest.approx(1.0),
        ),
        share=0.4,
        hedged=True,
        attempts=attempts,
        run="r7",
    )
    assert "after b: UNREACHABLE: reset" in str(found.receipt)


def test_a_node_that_gives_no_receipt_is_known_by_its_route() -> None:
    found_route = route(endpoint("a"))
    choice = picker.order(found_route, measured={})[0]
    bare = service_pb2.ModelInferResponse()
    found = receipt.answer(
        bare, {}, choice, found_route, forecast=choice.forecast, attempt_ms=30.0, total_ms=30.0, attempts=()
    )
    assert (found.receipt.node, found.receipt.site, found.receipt.digest) == ("a", "a-site", "sha256:0")
    assert receipt.network_ms(bare, 30.0) is None


@pytest.mark.parametrize(
    ("code", "details", "reason", "expected"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses; last error: refused", "", NotSent),
        ("UNAVAILABLE", "Socket closed", "", errors.Unreachable),
        ("UNAVAILABLE", "failed to connect, says the node", "DRAINING", errors.Draining),
        ("CANCELLED", "RST_STREAM", "", errors.Unreachable),
        ("UNKNOWN", "Stream removed", "", errors.Unreachable),
        ("RESOURCE_EXHAUSTED", "message larger than max", "", errors.TooLarge),
        ("RESOURCE_EXHAUSTED", "queue full", "OVERLOADED", errors.Overloaded),
        ("INTERNAL", "Internal error from Core", "", errors.Unreachable),
        ("INTERNAL", "a bug", "", errors.MeshError),
        ("DEADLINE_EXCEEDED", "late", "", errors.DeadlineExceeded),
    ],
)
def test_a_status_means_what_its_sender_could_mean(
    code: str, details: str, reason: str, expected: type[errors.MeshError]
) -> None:
    trailing = grpc.aio.Metadata(*([("nearmesh-reason", reason)] if reason else []))
    error = grpc.aio.AioRpcError(grpc.StatusCode[code], grpc.aio.Metadata(), trailing, details)
    assert isinstance(call_error(error), expected)


async def test_a_cancelled_task_ends_even_when_grpc_reports_a_status_instead() -> None:
    error = grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, grpc.aio.Metadata(), grpc.aio.Metadata(), "cancelled")

    async def called() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise_if_cancelled(error)

    raise_if_cancelled(error)  # the node's doing: this task was not cancelled
    task = asyncio.create_task(called())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_p1_a_connection_that_is_closed_under_a_call_is_the_nodes_failure_and_no_cancellation() -> None:
    ended = asyncio.Event()

    async def method(request: Any, timeout: float, metadata: Any) -> Any:
        await ended.wait()
        raise asyncio.CancelledError

    channels = Channels(PEM, Token(from_arguments(control_plane="cp:1", ca=PEM, token="t", region="r")))
    node: Any = SimpleNamespace(warm=True)

    async def called() -> None:
        await channels._call(node, method, None, 1.0)

    cancelled, left = asyncio.create_task(called()), asyncio.create_task(called())
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    ended.set()
    with pytest.raises(errors.Unreachable, match="left every route"):
        await left
    await channels.close()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(called())


def test_a_hedge_that_won_says_whom_it_overtook() -> None:
    found_route = route(endpoint("a"), endpoint("b", 50))
    choice = picker.order(found_route, measured={})[1]
    for error, why in (
        (receipt.OVERTAKEN, "hedged: a took longer than 95 % of its calls do; farther"),
        ("x", "farther"),
    ):
        found = receipt.answer(
            service_pb2.ModelInferResponse(),
            {},
            choice,
            found_route,
            forecast=choice.forecast,
            attempt_ms=30.0,
            total_ms=30.0,
            attempts=(Attempt("a", error, 60.0), Attempt("b", "", 30.0)),
            hedged=True,
        )
        assert found.receipt.why.startswith(why)
        assert "after a: " in str(found.receipt)


def test_a_hedge_that_lost_is_no_failure() -> None:
    found_route = route(endpoint("a"))
    choice = picker.order(found_route, measured={})[0]
    attempts = (Attempt("b", receipt.BESIDE, 6.0), Attempt("a", "", 40.0))
    found = receipt.answer(
        service_pb2.ModelInferResponse(),
        {},
        choice,
        found_route,
        forecast=choice.forecast,
        attempt_ms=40.0,
        total_ms=40.0,
        attempts=attempts,
        hedged=True,
    )
    assert found.receipt.why == choice.why and "after" not in str(found.receipt)


@pytest.mark.parametrize("connect", [nearmesh.client.connect, nearmesh.client.connect_sync])
def test_a_client_in_no_region_is_in_the_one_near_it(connect: Callable[..., Any]) -> None:
    where = {"control_plane": "cp:1", "ca": PEM, "token": "t", "state": False}

    def region(**place: Any) -> str:
        made = connect(**where, **place)
        return str(getattr(made, "_mesh", made).settings.region)

    assert region(latitude=51.75, longitude=-1.26) == "europe-west2"
    assert region(latitude=51.75, longitude=-1.26, region="us-east1") == "us-east1"
    with pytest.raises(errors.InvalidInput, match="latitude 91"):
        region(latitude=91, longitude=0.0)
    with pytest.raises(errors.ConfigError):
        region(latitude=51.75)


def test_a_bootstrap_of_several_control_planes_tells_them_from_nodes(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(PEM)
    path = tmp_path / "bootstrap.json"
    made = grpc_bootstrap("a:1,b:1", tmp_path / "ca.pem", "token", "europe-west1", fallbacks={"n:8001": "n"})
    assert [server["server_uri"] for server in made["xds_servers"]] == ["a:1", "b:1", "n:8001"]
    path.write_text(json.dumps(made))
    found = from_bootstrap(path)
    assert (found.control_plane, found.fallbacks) == ("a:1,b:1", {"n:8001": "n"})


async def test_of_several_control_planes_the_next_is_asked_when_one_does_not_answer() -> None:
    settings = from_arguments(control_plane="a:1,b:1", ca=PEM, token="t", region="europe-west1")
    planes = ControlPlanes(settings)
    assert planes.address == "a:1"
    assert planes.failed("a:1", errors.NotFound("no model")), "one that answers is there, whatever it says"
    assert planes.address == "a:1"
    assert not planes.failed("a:1", errors.Unreachable("gone"))
    assert not planes.failed("a:1", errors.Unreachable("gone")), (
        "who else failed there does not turn away from the next one"
    )
    assert planes.address == "b:1"
    assert planes.failed("b:1"), "all were asked in vain"
    planes.answered()
    assert planes.addresses == ("a:1", "b:1")
    await planes.close()
