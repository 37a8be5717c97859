"""`nearmesh client bootstrap`: which token, which CA and which servers stand in the file."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest

from nearmesh.errors import Unreachable
from tests.fake_admin import Bench, local_mesh


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in ("NEARMESH_MESH", "NEARMESH_CONTROL_PLANE", "NEARMESH_CA", "NEARMESH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return Bench(local_mesh(tmp_path))


def token_of(role: str) -> str:
    body = base64.urlsafe_b64encode(json.dumps({"role": role, "sub": "me"}).encode()).decode().rstrip("=")
    return f"eyJh.{body}.signature"


def bootstrap_token(path: Path) -> str:
    return str(json.loads(path.read_text())["node"]["metadata"]["token"])


def test_a_bootstrap_never_holds_an_operators_token(run: Bench, tmp_path: Path) -> None:
    out = tmp_path / "b.json"
    (run.mesh / "operator.jwt").write_text(token_of("operator"))
    done = run("client", "bootstrap", "--region", "us-east1", "--out", str(out))
    assert (done.exit_code, done.stdout) == (0, f"{out}\n")
    assert bootstrap_token(out) == "fresh.client.token"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    (run.mesh / "client.jwt").write_text("eyJ.kept.x")
    run("client", "bootstrap", "--region", "us-east1", "--out", str(out))
    assert bootstrap_token(out) == "eyJ.kept.x"


def test_a_clients_own_token_goes_into_its_bootstrap(run: Bench, tmp_path: Path) -> None:
    out = tmp_path / "b.json"
    own = token_of("client")
    done = run("--token", own, "client", "bootstrap", "--region", "us-east1", "--site", "roof", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert bootstrap_token(out) == own
    assert json.loads(out.read_text())["node"]["locality"] == {"region": "us-east1", "zone": "roof"}


def test_a_bootstrap_names_the_nearest_nodes_after_the_control_plane(run: Bench, tmp_path: Path) -> None:
    out = tmp_path / "b.json"

    def servers() -> list[str]:
        assert run("client", "bootstrap", "--region", "us-east1", "--out", str(out)).exit_code == 0
        return [server["server_uri"] for server in json.loads(out.read_text())["xds_servers"]]

    assert servers() == ["127.0.0.1:7400", "10.0.0.8:8001", "10.0.0.9:1"]
    (run.mesh / "client.jwt").write_text("eyJ.kept.x")
    run.pretend(error=Unreachable("away"))
    assert servers() == ["127.0.0.1:7400"], "what is at hand is written all the same"


def test_the_ca_is_copied_and_no_other_one_replaced(run: Bench, tmp_path: Path) -> None:
    out = tmp_path / "ship" / "b.json"
    out.parent.mkdir()
    arguments = ("client", "bootstrap", "--region", "us-east1", "--out", str(out), "--with-ca")
    assert run(*arguments).exit_code == 0
    assert (out.parent / "ca.pem").read_bytes() == (run.mesh / "ca.pem").read_bytes()
    assert run(*arguments).exit_code == 0, "the same again is no conflict"
    (out.parent / "ca.pem").write_text("of another mesh")
    done = run(*arguments)
    assert done.exit_code == 1
    assert (out.parent / "ca.pem").read_text() == "of another mesh"


def test_a_ca_that_is_none_is_not_shipped(run: Bench, tmp_path: Path) -> None:
    (run.mesh / "ca.pem").write_text("nonsense")
    out = tmp_path / "ship" / "b.json"
    out.parent.mkdir()
    done = run("client", "bootstrap", "--region", "us-east1", "--out", str(out), "--with-ca")
    assert (done.exit_code, done.stderr) == (1, f"error: {run.mesh / 'ca.pem'}: not a certificate in PEM\n")
    assert not (out.parent / "ca.pem").exists()


def test_a_region_that_cannot_be(run: Bench, tmp_path: Path) -> None:
    done = run("client", "bootstrap", "--region", "Mars!", "--out", str(tmp_path / "b.json"))
    assert done.exit_code == 1
    assert "'Mars!'" in done.stderr
