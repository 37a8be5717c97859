"""`nearmesh model push`, `pull` and `verify`: what they refuse before any registry is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_admin import Bench, local_mesh


@pytest.mark.parametrize("command", ["verify", "pull"])
def test_a_key_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.delenv("NEARMESH_MESH", raising=False)
    monkeypatch.setattr("nearmesh.registries.client.RegistryClient.manifest", lambda client, reference: b"{}")
    (tmp_path / "key.pem").write_text("no key")
    run = Bench(local_mesh(tmp_path))
    done = run("model", command, "oci://r/digits:1", "--key", str(tmp_path / "key.pem"))
    assert done.exit_code == 1
    assert "key.pem: not a public key in PEM; `nearmesh model key` prints that of a mesh" in done.stderr
