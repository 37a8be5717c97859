"""`nearmesh-agent`: which configuration its options make, which host it advertises, and what it says of mistakes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from nearmesh_agent import address, main
from nearmesh_agent.config import Listen, NodeConfig

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent ends its process when a thread of an engine hangs; here such threads may be those of other tests."""
    monkeypatch.setattr(main, "_leave_what_hangs", lambda: None)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[NodeConfig, str | None]]:
    """What the agent would serve with; nothing is served."""
    found: list[tuple[NodeConfig, str | None]] = []

    async def serve(config: NodeConfig, token: str | None, _stop: Any) -> None:
        found.append((config, token))

    monkeypatch.setattr(main, "_server", lambda: SimpleNamespace(serve=serve))
    monkeypatch.delenv(main.TOKEN_VARIABLE, raising=False)
    return found


def agent(*arguments: object) -> Result:
    return CliRunner().invoke(main.main, [str(argument) for argument in arguments])


def test_the_one_command(served: list[Any], tmp_path: Path) -> None:
    assert agent("--data", tmp_path, "--token", "secret").exit_code == 0
    assert served == [(NodeConfig(data=tmp_path), "secret")]


def test_options_are_keys_of_the_configuration(served: list[Any], tmp_path: Path) -> None:
    options = ("--listen-public", "10.0.0.5:9001", "--listen-metrics", "127.0.0.1:9002", "--usd-per-hour", "0.5")
    options += ("--spot", "--machine-type", "g2-standard-4")
    assert agent("--data", tmp_path, *options, "--advertise-host", "203.0.113.7").exit_code == 0
    (config, token) = served[0]
    assert config == NodeConfig(
        data=tmp_path,
        listen=Listen(public="10.0.0.5:9001", metrics="127.0.0.1:9002"),
        usd_per_hour=0.5,
        spot=True,
        machine_type="g2-standard-4",
        advertise_host="203.0.113.7",
    )
    assert token is None


def test_a_file_says_all_by_itself(served: list[Any], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from the file\n")
    (tmp_path / "node.toml").write_text('data = "data"\njoin_token_file = "token"\n')
    assert agent("--config", tmp_path / "node.toml").exit_code == 0
    (config, token) = served[0]
    assert config.data == tmp_path / "data" and token == "from the file"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "give --config node.toml, or --data DIR"),
        (("--config", "x", "--listen-mesh", "a:1"), 2, "--listen-mesh cannot go with --config"),
        (("--config", "no-such.toml"), 1, "no-such.toml: no such file"),
        (("--data", "d", "--listen-public", "8001"), 1, "'8001' is not HOST:PORT"),
        (("--data", "d", "--listen-mesh", "0.0.0.0:http"), 1, "'0.0.0.0:http' is not HOST:PORT"),
        (("--data", "d", "--usd-per-hour", "-1"), 2, "usd-per-hour"),
    ],
)
def test_mistakes(served: list[Any], arguments: tuple[str, ...], code: int, said: str) -> None:
    result = agent(*arguments)
    assert (result.exit_code, said in result.output) == (code, True), result.output
    assert not served


def test_without_onnx_runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in ("nearmesh_agent.server", "nearmesh_agent.engines.factory"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    result = agent("--data", tmp_path)
    assert result.exit_code == 1
    assert "pip install 'nearmesh-agent[cpu]'" in result.output


@pytest.mark.parametrize(
    ("advertise_host", "public", "expected"),
    [
        ("203.0.113.7", "0.0.0.0:8001", "203.0.113.7"),
        ("203.0.113.7", "10.0.0.5:8001", "203.0.113.7"),
        ("", "10.0.0.5:8001", "10.0.0.5"),
        ("", "0.0.0.0:8001", "toward cp.example"),
        ("", "[::]:8001", "toward cp.example"),
        ("", "localhost:8001", "localhost"),
    ],
)
def test_the_advertised_host(monkeypatch: pytest.MonkeyPatch, advertise_host: str, public: str, expected: str) -> None:
    monkeypatch.setattr(address, "own_address", lambda host: f"toward {host}")
    config = NodeConfig(data=Path(), advertise_host=advertise_host, listen=Listen(public=public))
    assert address.advertised_host(config, "cp.example:7400") == expected
