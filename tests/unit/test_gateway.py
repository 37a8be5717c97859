"""A gateway's configuration, its files, and its measuring of round trips, without Envoy and without sockets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from nearmesh_controlplane.registry.authority import Authority

from nearmesh.client.bootstrap import grpc_bootstrap, read_bootstrap, write_bootstrap
from nearmesh.config import parse
from nearmesh.errors import ConfigError, InvalidInput
from nearmesh.gateway.bootstrap import (
    BOOTSTRAP_FILE,
    CONFIGURES_FILE,
    GatewayIdentity,
    envoy_bootstrap,
    write_configures,
    write_secrets,
)
from nearmesh.gateway.config import GatewayConfig
from nearmesh.gateway.envoy import envoy_command
from nearmesh.gateway.metadata import GatewayMetadata
from nearmesh.gateway.server import EnvoyStart
from nearmesh.membership import Membership
from nearmesh.probe import Probe, ServerLiveEcho, Target
from nearmesh.snapshot import SnapshotKeeper, sealed
from nearmesh.v1 import route_pb2 as pb
from tests.snapshots import EUROPE, NOW_S, snapshot

METADATA = GatewayMetadata(host="127.0.0.1", port=8001, plaintext=True, certificate_sds="/c.json", ca_sds="/ca.json")


def config(**values: Any) -> GatewayConfig:
    return parse(GatewayConfig, {"data": "gw", **values}, where="gateway.toml", base=Path("/etc"))


@pytest.mark.parametrize("listen", ["127.0.0.1:8001", "[::1]:0"])
def test_plain_text_is_for_loopback(listen: str) -> None:
    assert config(listen=listen, plaintext=True).plaintext


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"listen": "0.0.0.0:8001", "plaintext": True}, "plaintext needs a loopback address"),
        ({"listen": "localhost:8001"}, "'localhost:8001' is not IP:port"),
        ({"listen": "127.0.0.1:99999"}, "is not IP:port"),
        ({"admin_port": 70000}, "admin_port 70000"),
        ({"envoy_threads": -1}, "envoy_threads -1"),
        ({"envoy_log_level": "loud"}, "'loud'"),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**values)


def test_the_command_line_follows_the_configuration() -> None:
    command = envoy_command(Path("/envoy"), Path("/b.json"), config(envoy_threads=2, envoy_log_level="info"))
    assert command[0] == "/envoy"
    assert "--disable-hot-restart" in command
    assert command[-2:] == ["--concurrency", "2"]
    assert "--concurrency" not in envoy_command(Path("/envoy"), Path("/b.json"), config())


def test_metadata_survives_the_way_to_the_control_plane() -> None:
    assert GatewayMetadata.parse(METADATA.to_struct()) == METADATA


@pytest.mark.parametrize(
    ("change", "words"), [({"port": "0"}, "port '0'"), ({"port": 8001}, "'port' must"), ({"host": ""}, "'host'")]
)
def test_bad_metadata_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        GatewayMetadata.parse(METADATA.to_struct() | change)


def identity(*control_plane: str, name: str = "localhost") -> GatewayIdentity:
    return GatewayIdentity(
        id="gw",
        mesh="test",
        region="here",
        site="s",
        control_plane=control_plane,
        control_plane_names=[name],
        configures_sds="/cp.json",
    )


def test_the_bootstrap_names_the_control_planes_in_order_and_nothing_else() -> None:
    made = envoy_bootstrap(identity("one.example:7401", "10.0.0.1:8003"), METADATA)
    (cluster,) = made["static_resources"]["clusters"]
    places = cluster["load_assignment"]["endpoints"]
    assert [place["priority"] for place in places] == [0, 1]
    assert made["node"]["metadata"] == METADATA.to_struct()
    assert made["node"]["locality"] == {"region": "here", "zone": "s"}
    assert "admin" not in made
    assert (
        envoy_bootstrap(identity("a:1"), METADATA, 9901)["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    )


@pytest.mark.parametrize(("name", "kind", "sni"), [("cp.example", "DNS", "cp.example"), ("10.0.0.1", "IP_ADDRESS", "")])
def test_the_control_planes_name_is_checked(tmp_path: Path, name: str, kind: str, sni: str) -> None:
    (cluster,) = envoy_bootstrap(identity("a:1", name=name), METADATA)["static_resources"]["clusters"]
    tls = cluster["transport_socket"]["typed_config"]
    secret = tls["common_tls_context"]["validation_context_sds_secret_config"]
    assert secret["sds_config"]["path_config_source"]["path"] == "/cp.json"
    assert tls["sni"] == sni
    path = write_configures(tmp_path, tmp_path / "credentials", "test", [name, name], ["n"])
    (found,) = json.loads(path.read_text())["resources"]
    assert found["name"] == secret["name"]
    context = found["validation_context"]
    assert context["trusted_ca"] == {"filename": str(tmp_path / "credentials" / "ca.pem")}
    assert context["match_typed_subject_alt_names"] == [
        {"san_type": kind, "matcher": {"exact": name}},
        {"san_type": "URI", "matcher": {"exact": "spiffe://test/node/n"}},
    ]


def membership(control_plane_mesh: str = "[::1]:7401") -> Membership:
    return Membership(
        mesh="mesh",
        kind="gateway",
        id="gw",
        site="s",
        region=EUROPE,
        control_plane="[::1]:7400",
        control_plane_mesh=control_plane_mesh,
        jwks_json="{}",
    )


def accepted(folder: Path) -> list[str]:
    """Who may configure Envoy."""
    (secret,) = json.loads((folder / CONFIGURES_FILE).read_text())["resources"]
    return [name["matcher"]["exact"] for name in secret["validation_context"]["match_typed_subject_alt_names"]]


def test_a_control_plane_on_ipv6_is_found_and_named_without_brackets(tmp_path: Path) -> None:
    EnvoyStart(GatewayConfig(data=tmp_path), membership(), SnapshotKeeper(b"", None), tmp_path / "calls.sock")
    cluster, calls = json.loads((tmp_path / BOOTSTRAP_FILE).read_text())["static_resources"]["clusters"]
    (place,) = cluster["load_assignment"]["endpoints"]
    address = place["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
    assert address == {"address": "::1", "port_value": 7401}
    (own,) = calls["load_assignment"]["endpoints"]
    assert own["lb_endpoints"][0]["endpoint"]["address"] == {"pipe": {"path": str(tmp_path / "calls.sock")}}
    assert accepted(tmp_path) == ["::1"]


def test_p8_a_removed_node_configures_no_envoy_not_even_one_that_has_read_its_address(tmp_path: Path) -> None:
    authority = Authority.open("mesh", tmp_path / "authority")
    keeper = SnapshotKeeper(authority.ca_pem, None, mesh="mesh", clock=lambda: NOW_S)
    keeper.take(sealed(snapshot(), authority.key))
    start = EnvoyStart(GatewayConfig(data=tmp_path), membership("cp:1"), keeper, tmp_path / "calls.sock")
    assert accepted(tmp_path) == ["cp", "spiffe://mesh/node/eu", "spiffe://mesh/node/us"]
    # One that is merely gone keeps its certificate's worth, one that was removed does not.
    tables = [pb.SnapshotTable(region=EUROPE, nearest=[])]
    keeper.take(sealed(snapshot(generation=6, tables=tables, removed_nodes=["us"]), authority.key))
    start.renew()
    assert accepted(tmp_path) == ["cp", "spiffe://mesh/node/eu"]


def test_secrets_are_found_by_path_and_watched(tmp_path: Path) -> None:
    certificate, ca = write_secrets(tmp_path, tmp_path / "credentials")
    pair = json.loads(certificate.read_text())["resources"][0]["tls_certificate"]
    assert pair["private_key"]["filename"] == str(tmp_path / "credentials" / "key.pem")
    assert pair["watched_directory"]["path"] == str(tmp_path / "credentials")
    assert json.loads(ca.read_text())["resources"][0]["name"] == "ca"


def test_a_client_bootstrap_holds_all_that_the_sdk_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca, path = tmp_path / "ca.pem", tmp_path / "bootstrap.json"
    ca.write_bytes(b"pem")
    write_bootstrap(path, grpc_bootstrap("cp.example:7400", ca, "TOKEN", "here", "s"))
    assert path.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("GRPC_XDS_BOOTSTRAP", str(path))
    found = read_bootstrap()
    assert (found.control_plane, found.token, found.region, found.site) == ("cp.example:7400", "TOKEN", "here", "s")
    assert found.ca_pem == b"pem"


def test_a_missing_or_foreign_bootstrap_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRPC_XDS_BOOTSTRAP", raising=False)
    with pytest.raises(ConfigError, match="client bootstrap"):
        read_bootstrap()
    with pytest.raises(ConfigError, match="no such file"):
        read_bootstrap(tmp_path / "none.json")
    foreign = tmp_path / "foreign.json"
    foreign.write_text('{"node": {}}')
    with pytest.raises(ConfigError, match="not a client bootstrap"):
        read_bootstrap(foreign)


class FakeEcho:
    """Takes as long as it is told to, on the test's own clock."""

    def __init__(self, world: World, target: Target) -> None:
        self._world, self._target = world, target
        self.closed = False

    async def call(self) -> bool:
        self._world.now += self._world.takes_s[self._target.node]
        return self._target.node not in self._world.dead

    async def close(self) -> None:
        self.closed = True


class World:
    """Everything that a probe sees."""

    def __init__(self) -> None:
        self.now = 0.0
        self.takes_s = {"a": 0.010, "b": 0.080}
        self.dead: set[str] = set()
        self.targets = [Target(name, f"{name}:1", f"{name}.test") for name in "ab"]
        self.echoes: list[FakeEcho] = []
        self.reports: list[Mapping[str, Sequence[float]]] = []

    def probe(self) -> Probe:
        return Probe(targets=self.list, connect=self.connect, report=self.report, clock=lambda: self.now)

    async def list(self) -> Sequence[Target]:
        return list(self.targets)

    def connect(self, target: Target) -> FakeEcho:
        self.echoes.append(FakeEcho(self, target))
        return self.echoes[-1]

    async def report(self, samples: Mapping[str, Sequence[float]]) -> None:
        self.reports.append(samples)


async def test_the_first_call_on_a_connection_is_no_sample() -> None:
    world = World()
    probe = world.probe()
    await probe.round()
    assert world.reports == []
    await probe.round()
    assert world.reports == [{"a": [pytest.approx(10)], "b": [pytest.approx(80)]}]
    assert len(world.echoes) == 2, "connections stay open"


async def test_a_node_that_does_not_answer_gives_no_sample_nor_does_its_first_answer_after() -> None:
    world = World()
    probe = world.probe()
    await probe.round()
    world.dead.add("a")
    await probe.round()
    world.dead.clear()
    await probe.round()
    await probe.round()
    assert [sorted(report) for report in world.reports] == [["b"], ["b"], ["a", "b"]]


async def test_connections_follow_the_targets_and_end_with_the_probe() -> None:
    world = World()
    probe = world.probe()
    await probe.round()
    world.targets = [Target("a", "a:2", "a.test"), world.targets[1]]
    await probe.round()
    assert [echo.closed for echo in world.echoes] == [True, False, False]
    assert world.reports == [{"b": [pytest.approx(80)]}], "a moved: its first call pays for a handshake again"
    await probe.close()
    assert all(echo.closed for echo in world.echoes)


async def test_a_connection_that_a_partition_left_behind_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}

    def channel(address: str, credentials: Any, options: list[tuple[str, Any]]) -> Any:
        made.update(options)
        return grpc.aio.insecure_channel(address)

    monkeypatch.setattr(grpc.aio, "secure_channel", channel)
    credentials: Any = None
    await ServerLiveEcho(Target("n", "127.0.0.1:1", "n.mesh"), credentials).close()
    assert made["grpc.ssl_target_name_override"] == "n.mesh"
    # A ping unanswered for so long ends the connection, and the next call opens another one.
    assert made["grpc.keepalive_time_ms"] + made["grpc.http2.ping_timeout_ms"] <= 5000
