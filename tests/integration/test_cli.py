"""The command line against a real control plane and a real node, each a process of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner, Result
from nearmesh_controlplane.registry.authority import Authority

from nearmesh.cli.main import main
from nearmesh.client.admin import AdminClient
from nearmesh.errors import DeadlineExceeded
from tests import hurried, tiny_models

pytest.importorskip("onnx", reason="packages are checked with onnx (extra build)")

BIN = Path(sys.executable).parent
START_WITHIN_S = 30
STOP_WITHIN_S = 15
# Between the phases of a rollout.
PLANE_TIMES = {
    "nearmesh_controlplane.rollouts.machine.WATCHED_S": 0.5,
    "nearmesh_controlplane.rollouts.machine.AFTER_CANARY_S": 0.3,
    "nearmesh_controlplane.rollouts.rollouts.LOOK_EVERY_S": 0.1,
}

MODEL_TOML = """
name = "adder"
version = "{version}"
description = "{description}"
licence = "Apache-2.0"
credit = "the project"
inputs = [
    {{ name = "left", dtype = "FP32", shape = [-1, 4] }},
    {{ name = "right", dtype = "FP32", shape = [-1, 4], optional = true }},
]
outputs = [{{ name = "total", dtype = "FP32", shape = [-1, 4] }}, {{ name = "less", dtype = "FP32", shape = [-1, 4] }}]
variants = [{{ name = "fp32", source = {{ path = "fp32.onnx" }} }}]
batching = {{ max_batch = 8 }}
warmup = [{{ file = "warmup.npz" }}]
"""


@dataclass(frozen=True)
class Mesh:
    """A control plane with one node, and what an operator holds."""

    folder: Path
    control_plane: str
    ca: Path
    tokens: dict[str, str]

    def run(self, *arguments: str, role: str = "operator") -> Result:
        """One command as an operator, or as somebody else."""
        where = ("--control-plane", self.control_plane, "--ca", str(self.ca), "--token", self.tokens[role])
        return CliRunner().invoke(main, [*where, *arguments])

    def json(self, *arguments: str) -> object:
        done = self.run(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def package(self, version: str, description: str = "Adds", *, right: bool = True) -> Path:
        """A package on disk; with `right=False` its warm-up expects what the model will not say."""
        folder = self.folder / f"adder-{version}-{description}"
        tiny_models.adder(folder)
        one = np.ones((1, 4), np.float32)
        expected = {"output_total": 2 * one if right else 3 * one, "output_less": 0 * one}
        tiny_models.write_warmup(folder, input_left=one, input_right=one, **expected)
        (folder / "model.toml").write_text(MODEL_TOML.format(version=version, description=description))
        return folder


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; held together so that all differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [found.getsockname()[1] for found in sockets]


@contextmanager
def process(log: Path, *command: str) -> Iterator[None]:
    """Runs a program beside the test, which ends it at once: an orderly way out waits for routes and late calls."""
    with log.open("wb") as output:
        running = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            yield
        finally:
            running.kill()
            running.wait()


def await_ready(address: str, ca: Path) -> None:
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(ca.read_bytes())) as channel:
        grpc.channel_ready_future(channel).result(START_WITHIN_S)


def await_live(mesh: Mesh) -> None:
    """Until the node's session is open: asked again and again, since nothing tells us."""
    until_s = time.monotonic() + START_WITHIN_S
    while not any(node["live"] for node in mesh.json("node", "list")):
        assert time.monotonic() < until_s, (mesh.folder / "agent.log").read_text()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A control plane with the node `node-a` at site `roof`, which comes and serves adder@1."""
    folder = tmp_path_factory.mktemp("mesh")
    public, internal, http, node_public, node_mesh, node_metrics = free_ports(6)
    config = folder / "mesh.toml"
    config.write_text(
        f'mesh = "cli-test"\ndata = "data"\n[listen]\npublic = "127.0.0.1:{public}"\n'
        f'mesh = "127.0.0.1:{internal}"\nhttp = "127.0.0.1:{http}"\n'
    )
    tokens = {role: first_token(config, role) for role in ("operator", "client")}
    found = Mesh(folder, f"127.0.0.1:{public}", folder / "data" / "authority" / "ca.pem", tokens)
    with process(
        folder / "control-plane.log", *hurried.command("nearmesh-controlplane", PLANE_TIMES), "--config", str(config)
    ):
        await_ready(found.control_plane, found.ca)
        joined = found.run("node", "token", "node-a", "--site", "roof", "--region", "europe-west1")
        node_toml = folder / "node.toml"
        node_toml.write_text(
            f'data = "node"\nthreads = 1\nusd_per_hour = 0.36\n[listen]\npublic = "127.0.0.1:{node_public}"\n'
            f'mesh = "127.0.0.1:{node_mesh}"\nmetrics = "127.0.0.1:{node_metrics}"\n'
        )
        agent = (str(BIN / "nearmesh-agent"), "--config", str(node_toml), "--token", joined.stdout.strip())
        with process(folder / "agent.log", *agent):
            await_live(found)
            assert found.run("model", "publish", str(found.package("1")), "--deploy").exit_code == 0
            yield found


def first_token(config: Path, role: str) -> str:
    command = [BIN / "nearmesh-controlplane", "--config", config, "token", "--subject", f"test-{role}", "--role", role]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=START_WITHIN_S).stdout.strip()


def failure(done: Result) -> str:
    """The one line of a command that failed."""
    assert done.exit_code == 1, done.output
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("error: ").strip()


def test_nodes(mesh: Mesh) -> None:
    done = mesh.run("node", "token", "node-b", "--site", "cellar", "--region", "us-east1")
    assert done.stdout.count(".") == 2, "the token alone, a JWT"
    (node,) = mesh.json("node", "list")
    assert (node["node"], node["site"], node["state"], node["usd_per_hour"]) == ("node-a", "roof", "live", 0.36)
    assert mesh.run("node", "price", "node-a", "0.72").exit_code == 0
    assert mesh.json("node", "list")[0]["usd_per_hour"] == 0.72
    assert "nope" in failure(mesh.run("node", "price", "nope", "1"))
    assert "Mars" in failure(mesh.run("node", "token", "x", "--site", "Mars", "--region", "us-east1"))


def test_prices_by_whose_word(mesh: Mesh) -> None:
    assert mesh.run("node", "price", "node-a", "0.5", "--for", "1h").exit_code == 0
    (node,) = mesh.json("price", "list")["nodes"]
    assert (node["node"], node["usd_per_hour"], node["source"], node["spot"]) == ("node-a", 0.5, "operator", False)
    assert 3000 < node["valid_until_s"] - time.time() <= 3600
    assert "'EUR' has no rate; those with one are USD" in failure(
        mesh.run("node", "price", "node-a", "1", "--currency", "EUR")
    )
    back = mesh.json("node", "price", "node-a", "--unset")
    assert (back["usd_per_hour"], back["price_source"]) == (0.36, "node")
    assert mesh.json("price", "transfer", "europe-west1", "*", "0.08")["usd_per_gb"] == 0.08
    assert "europe-west1 * 0.08000 operator" in " ".join(mesh.run("price", "list").stdout.split())
    assert mesh.run("price", "transfer", "europe-west1", "*", "--unset").exit_code == 0
    assert "no operator set a price" in failure(mesh.run("price", "transfer", "europe-west1", "*", "--unset"))
    assert mesh.json("price", "list")["transfers"] == []
    assert "no price feed" in mesh.run("price", "list").stdout


def test_where_data_may_go(mesh: Mesh) -> None:
    assert mesh.json("route", "set", "adder", "--regions", "europe-west1")["regions"] == ["europe-west1"]
    assert mesh.json("model", "show", "adder")["regions"] == ["europe-west1"]
    assert "only in europe-west1" in mesh.run("model", "show", "adder").stdout
    assert mesh.json("route", "set", "adder", "--any-region")["regions"] == []
    bound = mesh.json("route", "residency", "us-east1", "europe-west1")
    assert mesh.json("route", "residency") == [bound] == [{"client_region": "us-east1", "regions": ["europe-west1"]}]
    assert mesh.run("route", "residency", "us-east1", "--clear").exit_code == 0
    assert mesh.json("route", "residency") == []
    assert "no rule binds" in failure(mesh.run("route", "residency", "us-east1", "--clear"))
    assert "'Mars!'" in failure(mesh.run("route", "residency", "us-east1", "Mars!"))


def test_drain_and_cordon_and_back(mesh: Mesh) -> None:
    for word, mark in (("drain", "draining"), ("cordon", "cordoned")):
        assert mesh.run("node", word, "node-a").exit_code == 0
        assert mesh.json("node", "list")[0][mark] is True
        assert mesh.run("node", word, "node-a", "--undo").exit_code == 0
        assert mesh.json("node", "list")[0][mark] is False


def test_a_version_is_published_once_and_never_changes(mesh: Mesh) -> None:
    first = mesh.json("model", "publish", str(mesh.package("1")))
    (shown,) = [version for version in mesh.json("model", "show", "adder")["versions"] if version["version"] == "1"]
    assert first == shown
    assert shown["size_bytes"] > 100
    assert "raise `version`" in failure(mesh.run("model", "publish", str(mesh.package("1", "Other"))))


def test_a_package_that_is_wrong_stays_here(mesh: Mesh, tmp_path: Path) -> None:
    assert "model.toml" in failure(mesh.run("model", "publish", str(tmp_path)))


def test_a_large_file_goes_up_in_parts(mesh: Mesh) -> None:
    folder = mesh.package("1.5", "Large")
    (folder / "warmup.npz").unlink()
    one = np.ones((8, 4), np.float32)
    noise = np.random.default_rng(7).integers(0, 255, 3_000_000, np.uint8)
    np.savez(folder / "warmup.npz", **{"input.left": one, "output.total": one, "output.less": one})
    (folder / "fp32.onnx").write_bytes(padded((folder / "fp32.onnx").read_bytes(), noise.tobytes()))
    version = mesh.json("model", "publish", str(folder))
    assert version["size_bytes"] > 3_000_000
    assert mesh.json("model", "publish", str(folder)) == version


def padded(model: bytes, ballast: bytes) -> bytes:
    """The same graph with some megabytes of metadata."""
    import onnx

    proto = onnx.load_model_from_string(model)
    proto.metadata_props.add(key="ballast", value=ballast.hex())
    return proto.SerializeToString()


def test_a_rollout_is_waited_for_and_rolled_back(mesh: Mesh) -> None:
    publish = ("model", "publish", str(mesh.package("2")), "--deploy", "--site", "roof")
    assert mesh.json(*publish)["progress"] == {"serving": ["node-a"], "pending": {}, "failed": {}}
    back = mesh.run("model", "rollback", "adder")
    assert back.stdout == "adder@1 is wanted at roof; 1 of 1 live nodes serve it\n"
    assert mesh.run("model", "deploy", "adder@2", "--detach").exit_code == 0
    assert "a rollout of adder@2 is running" in failure(mesh.run("model", "deploy", "adder@1"))
    assert mesh.run("model", "rollout", "watch", "adder").exit_code == 0
    canary = ("--strategy", "canary", "--steps", "0,50", "--step-time", "1s")
    assert mesh.run("model", "deploy", "adder@2", *canary).exit_code == 0, "it is there already"
    assert mesh.run("model", "deploy", "adder@1", "--strategy", "all").exit_code == 0
    states = [(one["version"], one["strategy"], one["state"]) for one in mesh.json("model", "rollout", "list", "adder")]
    assert states[:2] == [("1", "all", "done"), ("2", "canary", "done")]
    shown = mesh.run("model", "show", "adder").stdout
    assert "operator/test-operator" in shown
    assert "ready" in shown


def test_a_version_that_fails_its_warmup_says_why_and_never_serves(mesh: Mesh) -> None:
    done = mesh.run("model", "publish", str(mesh.package("3", right=False)), "--deploy")
    assert done.exit_code == 1
    why = "node-a refuses it: WARMUP_FAILED: warmup.npz: output 'total' differs"
    assert done.stderr.splitlines()[-1].startswith(f"error: adder@3 was taken back by itself: {why}")
    until_s = time.monotonic() + START_WITHIN_S
    while (states := replica_states(mesh)) != {"1": "ready"}:
        # A version that served a moment ago is kept for those who ask for it by name.
        assert time.monotonic() < until_s, f"nobody wants the others any more: {states}"
        time.sleep(0.1)
    assert mesh.run("model", "deploy", "adder@1").exit_code == 0


def replica_states(mesh: Mesh) -> dict[str, str]:
    return {r["version"]: r["state"] for r in mesh.json("model", "show", "adder")["replicas"]}


def test_refusals_of_the_catalog(mesh: Mesh) -> None:
    assert "adder" in failure(mesh.run("model", "show", "nope"))
    assert "'9'" in failure(mesh.run("model", "deploy", "adder@9"))
    assert "roof" in failure(mesh.run("model", "deploy", "adder@1", "--site", "nowhere"))
    assert "nope" in failure(mesh.run("model", "rollback", "nope"))


def test_routes(mesh: Mesh) -> None:
    choices = mesh.json("route", "show", "adder")
    assert [(c["client_region"], c["node"]) for c in choices] == [("europe-west1", "node-a")] * 3
    explained = mesh.json("route", "explain", "--from", "us-east1", "--model", "adder")
    assert explained["candidates"][0]["why"] == "the only node that serves this model now"
    assert mesh.json("route", "set", "adder", "--objective", "nearest", "--deadline-ms", "123")["deadline_ms"] == 123
    assert mesh.json("model", "show", "adder")["objective"] == "nearest"
    assert mesh.json("status")["routes"][0]["objective"] == "nearest"
    assert mesh.run("status").exit_code == 0


def test_infer(mesh: Mesh, tmp_path: Path) -> None:
    np.save(tmp_path / "left.npy", np.array([1, 2, 3, 4]))
    inputs = ("--input", f"left={tmp_path / 'left.npy'}", "--input", "right=[10, 20, 30, 40]")
    output = ("--output", f"total={tmp_path / 'total.npy'}")
    found = mesh.json("infer", "adder", *inputs, *output, "--from", "europe-west1", "--deadline-ms", "5000")
    assert found["outputs"]["total"] == {"dtype": "FP32", "shape": [1, 4], "data": [[11.0, 22.0, 33.0, 44.0]]}
    np.testing.assert_array_equal(np.load(tmp_path / "total.npy"), [[11, 22, 33, 44]])
    assert (found["receipt"]["node"], found["receipt"]["site"], found["version"]) == ("node-a", "roof", "1")
    assert found["receipt"]["total_ms"] > 0
    assert found["route"]["candidates"][0]["node"] == "node-a"
    shown = mesh.run("infer", "adder", *inputs, "--from", "europe-west1", "--objective", "cheapest")
    assert "[[11. 22. 33. 44.]]" in shown.stdout
    assert "predicted p95" in shown.stdout
    as_client = mesh.run("infer", "adder", *inputs, "--from", "europe-west1", role="client")
    assert as_client.exit_code == 0, as_client.output


def test_infer_refusals(mesh: Mesh) -> None:
    where = ("--from", "europe-west1")
    assert "did you mean 'left'" in failure(mesh.run("infer", "adder", "--input", "lift=1", *where))
    assert "'nope'" in failure(mesh.run("infer", "nope", "--input", "x=1", *where))
    assert "'left'" in failure(mesh.run("infer", "adder", "--input", "left=[1, 2]", *where))
    done = mesh.run("infer", "adder", "--input", "left=[1, 2, 3, 4]", "--output", "t=t.npy", *where)
    assert "no output 't'" in failure(done)
    assert mesh.run("infer", "adder", "--input", "left=[1]").exit_code == 2, "nobody said from where"


def test_tokens_and_what_they_allow(mesh: Mesh) -> None:
    done = mesh.run("token", "issue", "--subject", "app", "--role", "client", "--days", "1")
    assert done.exit_code == 0
    mesh.tokens["app"] = done.stdout.strip()
    assert mesh.run("model", "list", role="app").exit_code == 0
    for arguments in (
        ("node", "list"),
        ("node", "price", "node-a", "1"),
        ("price", "list"),
        ("price", "transfer", "a", "b", "1"),
        ("route", "residency"),
        ("route", "residency", "a", "b"),
        ("model", "deploy", "adder@1"),
        ("model", "publish", str(mesh.package("1"))),
        ("route", "set", "adder", "--deadline-ms", "1"),
        ("audit",),
    ):
        assert "needs operator" in failure(mesh.run(*arguments, role="app"))
    mesh.tokens["forged"] = done.stdout.strip()[:-8] + "AAAAAAAA"
    assert failure(mesh.run("model", "list", role="forged"))


def test_bootstrap_holds_a_clients_token(mesh: Mesh) -> None:
    out = mesh.folder / "ship" / "bootstrap.json"
    out.parent.mkdir()
    done = mesh.run("client", "bootstrap", "--region", "europe-west1", "--out", str(out), "--with-ca")
    assert done.exit_code == 0, done.output
    content = json.loads(out.read_text())
    assert content["xds_servers"][0]["server_uri"] == mesh.control_plane
    assert (out.parent / "ca.pem").read_bytes() == mesh.ca.read_bytes()
    mesh.tokens["bootstrap"] = content["node"]["metadata"]["token"]
    assert mesh.run("model", "list", role="bootstrap").exit_code == 0
    assert "needs operator" in failure(mesh.run("node", "list", role="bootstrap"))


def test_audit_names_who_did_what(mesh: Mesh) -> None:
    assert mesh.run("node", "price", "node-a", "0.5").exit_code == 0
    entry = mesh.json("audit", "--limit", "1")[0]
    assert (entry["actor"], entry["action"], entry["subject"]) == ("operator/test-operator", "price", "node-a")


def test_a_control_plane_that_is_not_there(mesh: Mesh) -> None:
    (port,) = free_ports(1)
    away = Mesh(mesh.folder, f"127.0.0.1:{port}", mesh.ca, mesh.tokens)
    assert f"127.0.0.1:{port} cannot be reached" in failure(away.run("node", "list"))


def test_another_meshs_ca_is_one_line(mesh: Mesh, tmp_path: Path) -> None:
    """In a process of its own, since gRPC's core writes past Python's stderr."""
    other = tmp_path / "ca.pem"
    other.write_bytes(Authority.open("other", tmp_path / "authority").ca_pem)
    where = ["--control-plane", mesh.control_plane, "--ca", other, "--token", mesh.tokens["operator"]]
    command = [BIN / "nearmesh", *where, "node", "list"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_WITHIN_S, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: the control plane at {mesh.control_plane} cannot be reached: ")
    assert done.stderr.count("\n") == 1


async def test_a_control_plane_that_says_nothing_is_named(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearmesh.client.connection.CALL_LIMIT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with AdminClient(address, mesh.ca.read_bytes(), mesh.tokens["operator"]) as admin:
            with pytest.raises(DeadlineExceeded, match=f"the control plane at {address} did not answer within 0.2 s"):
                await admin.nodes()


def test_ctrl_c_ends_a_wait_quietly(mesh: Mesh) -> None:
    """The control plane is there and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        command = [BIN / "nearmesh", "--control-plane", address, "--ca", mesh.ca, "--token", mesh.tokens["operator"]]
        running = subprocess.Popen([*command, "node", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            connection, _ = silent.accept()  # it is waiting for an answer now
            with connection:
                running.send_signal(signal.SIGINT)
                out, err = running.communicate(timeout=STOP_WITHIN_S)
        finally:
            running.kill()
            running.wait()
    assert (running.returncode, out, err) == (130, b"", b"")
