"""The control plane's own certificate: a full disk at its renewal delays it and ends nothing."""

from __future__ import annotations

import errno
import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from nearmesh_controlplane.registry import authority, server_certificate
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.registry.server_certificate import ServerCertificate

from nearmesh.tls import Credentials


@pytest.fixture
def due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerCertificate:
    """One whose time is over; the next lives as long as usual."""
    with monkeypatch.context() as short:
        short.setattr(authority, "SERVER_LIFETIME", timedelta(0))
        return ServerCertificate(Authority.open("mesh", tmp_path), tmp_path / "server", "localhost")


class Listener:
    """Takes certificates over, unless it is told to fail."""

    def __init__(self) -> None:
        self.taken = 0
        self.error: OSError | None = None

    def take_over(self) -> None:
        if self.error:
            raise self.error
        self.taken += 1


def test_a_full_disk_is_said_and_tried_again(
    due: ServerCertificate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old, listener, tried = due.current, Listener(), 0

    def full(*_: object) -> None:
        nonlocal tried
        tried += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Credentials, "write", full)
        for _ in range(3):
            due.keep_young(listener.take_over)
        assert (due.current, listener.taken) == (old, 0), "what is on the disk is what is shown"
        assert tried == 1, "not again at every tick"
        assert "was not renewed: [Errno 28] No space left" in caplog.text
        monkeypatch.setattr(server_certificate, "RENEW_AGAIN_S", 0.0)
        due._not_before = 0.0
        due.keep_young(listener.take_over)
        assert tried == 2
    due.keep_young(listener.take_over)
    assert due.current is not old and listener.taken == 1
    assert Credentials.read(due.folder) == due.current
    due.keep_young(listener.take_over)
    assert listener.taken == 1, "it is young now"


def test_a_listener_that_does_not_take_it_over_is_asked_again(
    due: ServerCertificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_certificate, "RENEW_AGAIN_S", 0.0)
    old, listener = due.current, Listener()
    listener.error = ssl.SSLError("key values mismatch")
    due.keep_young(listener.take_over)
    assert due.current is old
    listener.error = None
    due.keep_young(listener.take_over)
    assert due.current is not old and listener.taken == 1
