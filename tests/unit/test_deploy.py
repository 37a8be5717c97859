"""The examples in deploy/ are read by the code that reads them in earnest, and show every key there is."""

from __future__ import annotations

import configparser
import dataclasses
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from nearmesh_agent.config import ModelConfig, NodeConfig
from nearmesh_controlplane.config import EndpointOverride, MeshConfig

from nearmesh import config
from nearmesh.gateway.config import GatewayConfig
from tests.commands import check_command

DEPLOY = Path(__file__).parents[2] / "deploy"
EXAMPLES: dict[str, type[Any]] = {"mesh.toml": MeshConfig, "node.toml": NodeConfig, "gateway.toml": GatewayConfig}
IMAGES = DEPLOY / "images"
DOCKERFILES = sorted(path.name for path in IMAGES.glob("*.Dockerfile"))
UNITS = sorted(path.name for path in (DEPLOY / "systemd").iterdir())

# A key that shows its default: "#key = ...", or the head of such a table.
_DEFAULT = re.compile(r"^#(?=\[\[?\w|\w+ = )", flags=re.MULTILINE)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_a_configuration(name: str) -> None:
    config.load(EXAMPLES[name], DEPLOY / name)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_defaults_that_it_shows_are_the_defaults(name: str) -> None:
    text = (DEPLOY / name).read_text()
    plain = config.parse(EXAMPLES[name], tomllib.loads(text), where=name, base=DEPLOY)
    shown = config.parse(EXAMPLES[name], tomllib.loads(_DEFAULT.sub("", text)), where=name, base=DEPLOY)
    if isinstance(shown, MeshConfig):
        (override,) = shown.endpoint_override
        assert override == EndpointOverride(client_region="us-east1", node="node-1", address="203.0.113.20:8001")
        assert shown.currencies == {"EUR": 1.08}
        shown = dataclasses.replace(shown, endpoint_override=(), currencies={})
    if isinstance(shown, NodeConfig):
        assert shown.models == {"NAME": ModelConfig()}
        (data,) = shown.training.data.values()
        assert (data.format, data.held_back, data.largest_mib) == ("csv", 0.25, 1024)
        assert shown.vectors.namespaces.keys() == {"name"}
        shown = dataclasses.replace(
            shown,
            models={},
            training=dataclasses.replace(shown.training, data={}),
            vectors=dataclasses.replace(shown.vectors, namespaces={}),
        )
    assert shown == plain


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_shows_every_key_with_a_comment(name: str) -> None:
    lines = (DEPLOY / name).read_text().splitlines()
    text = tomllib.loads(_DEFAULT.sub("", "\n".join(lines)))
    assert text.keys() == {field.name for field in dataclasses.fields(EXAMPLES[name])}
    for before, line in itertools.pairwise(lines):
        if re.match(r"#?\w+ = ", line):
            assert before.startswith("#"), f"{name}: {line} has no comment"


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_starts_one_of_our_programs(name: str) -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment]  # systemd's keys have capitals
    unit.read(DEPLOY / "systemd" / name)
    service = unit["Service"]
    program, _, arguments = service["ExecStart"].partition(" ")
    check_command(f"{Path(program).name} {arguments}")
    (example,) = [part for part in arguments.split() if part.endswith(".toml")]
    found = tomllib.loads((DEPLOY / Path(example).name).read_text())
    assert found["data"] == f"/var/lib/{service['StateDirectory']}", "the folder that the unit may write to"
    assert service["Restart"] == "always" and service["NoNewPrivileges"] == "yes"


def test_the_join_tokens_lie_where_each_service_looks() -> None:
    page, unit = (DEPLOY / "README.md").read_text(), (DEPLOY / "systemd" / "nearmesh-gateway.service").read_text()
    node = tomllib.loads((DEPLOY / "node.toml").read_text())
    assert f"/etc/nearmesh/{node['join_token_file']}" in page
    assert "--token-file /etc/nearmesh/gateway.token" in unit and "/etc/nearmesh/gateway.token" in page


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing_in_an_image(name: str) -> None:
    command = [Path(sys.executable).with_name("hadolint"), "--no-color", IMAGES / name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_an_image_is_made_of_what_its_context_has() -> None:
    ignored = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = _copied("agent.Dockerfile")
    assert copied and all((DEPLOY.parent / path).exists() for path in copied)
    assert all(any(Path(path).is_relative_to(one) for one in let_in) for path in copied)


def test_weights_are_in_a_layer_of_their_own_where_the_agent_looks() -> None:
    lines = (IMAGES / "agent.Dockerfile").read_text().splitlines()
    (weights,) = [line.split()[-1] for line in lines if line.startswith("COPY --link --from=weights")]
    node = config.load(NodeConfig, IMAGES / "node.toml")
    assert [str(path) for path in node.store.baked] == [weights]
    assert set(_copied("weights.Dockerfile")) == {"oci-layout", "index.json", "blobs"}


def _copied(dockerfile: str) -> list[str]:
    """What it takes from its context."""
    lines = (IMAGES / dockerfile).read_text().splitlines()
    words = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from=" not in line]
    return [word for line in words for word in line if not word.startswith("--")]
