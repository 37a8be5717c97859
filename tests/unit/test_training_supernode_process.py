"""A SuperNode takes leave for the one before it, which was killed."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from nearmesh_agent.training import supernode_process
from nearmesh_agent.training.supernode_process import take_leave_for_the_one_before

pytest.importorskip("flwr", reason="federated rounds need the extra `rounds`")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a SuperLink heard, which knows node 7 alone."""
    from flwr.supernode.fleet_http_client import FleetHttpClient

    heard: list[str] = []

    def activate(_client: Any, _request: Any) -> Any:
        heard.append("activate")
        return SimpleNamespace(node_id=7)

    def deactivate(_client: Any, request: Any) -> None:
        heard.append(f"deactivate {request.node_id}")
        if request.node_id != 7:
            raise httpx.HTTPStatusError("404", request=httpx.Request("POST", "/"), response=httpx.Response(404))

    monkeypatch.setattr(FleetHttpClient, "ActivateNode", activate)
    monkeypatch.setattr(FleetHttpClient, "DeactivateNode", deactivate)
    return heard


def test_a_superexec_that_cannot_be_started_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Enough(BaseException): ...

    outcomes = iter([OSError(11, "Resource temporarily unavailable"), None, Enough()])

    def run(*_: object, **__: object) -> None:
        if outcome := next(outcomes):
            raise outcome

    monkeypatch.setattr(supernode_process.subprocess, "run", run)
    monkeypatch.setattr(supernode_process, "AGAIN_S", 0)
    ready = threading.Event()
    ready.set()
    with pytest.raises(Enough):
        supernode_process._keep_superexec(["superexec"], ready)
    assert "the SuperExec cannot be started: [Errno 11]" in capsys.readouterr().err


def test_a_nursery_that_cannot_be_started_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Enough(BaseException): ...

    def popen(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    def sleep(_: float) -> None:
        raise Enough

    monkeypatch.setattr(supernode_process.subprocess, "Popen", popen)
    monkeypatch.setattr(supernode_process.time, "sleep", sleep)
    ready, before = threading.Event(), len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(Enough):
        supernode_process._keep_nursery(["nursery"], ready)
    assert ready.is_set() and len(list(Path("/proc/self/fd").iterdir())) == before
    assert "the nursery cannot be started: [Errno 12]" in capsys.readouterr().err


def begin(kept: Path) -> None:
    from flwr.supernode.fleet_http_client import FleetHttpClient

    take_leave_for_the_one_before(kept)
    client = FleetHttpClient.__new__(FleetHttpClient)
    client.ActivateNode(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "heard"),
    [
        (None, ["activate"]),
        ("7", ["deactivate 7", "activate"]),
        # Of a SuperLink whose database is gone; and a file that was cut off.
        ("8", ["deactivate 8", "activate"]),
        ("", ["activate"]),
    ],
)
def test_whoever_was_there_before_is_not_any_more(
    tmp_path: Path, said: list[str], before: str | None, heard: list[str]
) -> None:
    kept = tmp_path / "node-id"
    if before is not None:
        kept.write_text(before)
    begin(kept)
    assert (said, kept.read_text()) == (heard, "7")
