"""A machine's membership on its disk, and the rhythm in which its certificate is renewed."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nearmesh_controlplane.registry.authority import Authority

from nearmesh import membership
from nearmesh.errors import ConfigError, InvalidInput, JoinRefused, Unreachable
from nearmesh.ids import MachineId
from nearmesh.membership import RENEW_AT_LEAST_S, RENEW_RETRY_S, Membership, Renewal, join, member
from nearmesh.tls import Credentials, addresses_in, certificate_request, key_from_pem, key_to_pem, new_key
from nearmesh.tokens import JoinTicket

KNOWN = Membership(
    mesh="mesh",
    kind="node",
    id="n1",
    site="site",
    region="region",
    control_plane="cp:7400",
    control_plane_mesh="cp:7401",
    jwks_json="{}",
)


def certified(folder: Path, lifetime_s: float) -> Authority:
    """Puts a certificate that lives that long from now into `folder`."""
    authority, key, who = Authority.open("mesh", folder / "authority"), new_key(), MachineId("mesh", "node", "n1")
    signed = authority.sign(certificate_request(key, who), who, timedelta(seconds=lifetime_s))
    Credentials(key_to_pem(key), signed, authority.ca_pem).write(folder)
    return authority


def test_a_membership_is_kept(tmp_path: Path) -> None:
    assert Membership.read(tmp_path) is None
    KNOWN.write(tmp_path)
    assert Membership.read(tmp_path) == KNOWN
    assert KNOWN.machine == MachineId("mesh", "node", "n1")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"mesh": "m"}', '{"unknown": 1}'])
def test_a_damaged_membership_says_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / membership.MEMBERSHIP_FILE).write_text(text)
    with pytest.raises(ConfigError, match="remove the folder and join again"):
        Membership.read(tmp_path)


async def test_a_member_needs_no_token_and_everyone_else_does(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give a join token"):
        await member(tmp_path, "node", None)
    KNOWN.write(tmp_path)
    # Killed between the two steps of joining: there is no certificate yet.
    with pytest.raises(ConfigError, match="give a join token"):
        await member(tmp_path, "node", None)
    certified(tmp_path, 60)
    assert await member(tmp_path, "node", None) == KNOWN
    assert await member(tmp_path, "node", "nonsense") == KNOWN


async def test_a_token_for_another_kind_of_machine_is_not_even_sent(tmp_path: Path) -> None:
    authority = Authority.open("mesh", tmp_path)
    ticket = JoinTicket(
        id="1",
        mesh="mesh",
        kind="gateway",
        name="n",
        site="s",
        region="r",
        control_plane="nowhere.invalid:1",
        control_plane_mesh="nowhere.invalid:2",
        ca_pem=authority.ca_pem,
    )
    issuer = authority.issuer
    with pytest.raises(InvalidInput, match="lets a gateway join, not a node"):
        await join(issuer.join(ticket, now_s=time.time(), lifetime_s=60), "node", tmp_path / "node")
    with pytest.raises(InvalidInput, match="bearer token, not a join token"):
        await join(issuer.access("me", "operator", now_s=time.time(), lifetime_s=60), "node", tmp_path / "node")
    assert not (tmp_path / "node").exists()
    assert dataclasses.replace(ticket, kind="node").name == "n"


class Naps:
    """Stands in for asyncio.sleep: takes no time, and ends the task after so many."""

    def __init__(self, count: int) -> None:
        self.seconds: list[float] = []
        self._count = count

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if len(self.seconds) == self._count:
            raise asyncio.CancelledError


async def waits(renewal: Renewal, monkeypatch: pytest.MonkeyPatch, count: int) -> list[float]:
    naps = Naps(count)
    monkeypatch.setattr(membership.asyncio, "sleep", naps)
    with pytest.raises(asyncio.CancelledError):
        await renewal.run()
    return naps.seconds


@pytest.mark.parametrize(("lifetime_s", "due_s"), [(6, 4), (3600, 2400), (24 * 3600, 16 * 3600)])
async def test_a_certificate_is_renewed_at_two_thirds_of_its_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lifetime_s: float, due_s: float
) -> None:
    certified(tmp_path, lifetime_s)
    (first,) = await waits(Renewal(KNOWN, tmp_path), monkeypatch, 1)
    # Certificates count whole seconds.
    assert due_s - 2 < first <= due_s


@pytest.mark.parametrize("granted", [["10.0.0.7"], []])
async def test_a_certificate_that_does_not_hold_for_the_machines_address_is_renewed_soon_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granted: list[str]
) -> None:
    authority, who = certified(tmp_path, 24 * 3600), KNOWN.machine
    renewal = Renewal(KNOWN, tmp_path, "10.0.0.7")

    async def renew(request: Any, timeout: float) -> Any:
        # A control plane of before knows of no addresses.
        csr = request.csr_pem if granted else certificate_request(key_from_pem(renewal.current.key_pem), who)
        signed = authority.sign(csr, who, timedelta(days=1), lambda _: True)
        return SimpleNamespace(certificate_pem=signed, ca_pem=authority.ca_pem, control_planes=())

    monkeypatch.setattr(membership.node_pb2_grpc, "NodeServiceStub", lambda channel: SimpleNamespace(Renew=renew))
    soon, later = await waits(renewal, monkeypatch, 2)
    assert soon == RENEW_AT_LEAST_S and later > 15 * 3600
    assert [str(ip) for ip in addresses_in(renewal.current.certificate)] == granted


async def test_an_address_that_is_refused_does_not_keep_the_certificate_from_being_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    certified(tmp_path, 24 * 3600)
    renewal = Renewal(KNOWN, tmp_path, "10.0.0.7")

    async def refuse() -> None:
        raise JoinRefused("not that one")

    monkeypatch.setattr(renewal, "_renew", refuse)
    soon, later = await waits(renewal, monkeypatch, 2)
    assert soon == RENEW_AT_LEAST_S and later > 15 * 3600
    assert "will not hold for the address 10.0.0.7: not that one" in caplog.text


@pytest.mark.parametrize("lifetime_s", [0.0, 1.0, -200.0])
async def test_a_wrong_clock_makes_no_flood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lifetime_s: float) -> None:
    certified(tmp_path, lifetime_s)
    renewal, renewed = Renewal(KNOWN, tmp_path), 0

    async def renew() -> None:
        nonlocal renewed
        renewed += 1

    monkeypatch.setattr(renewal, "_renew", renew)
    seconds = await waits(renewal, monkeypatch, 10)
    assert renewed == 9
    assert min(seconds) >= RENEW_AT_LEAST_S


@pytest.mark.parametrize(("lifetime_s", "retry_s"), [(8, 2.0), (24 * 3600, RENEW_RETRY_S), (-60, RENEW_RETRY_S)])
async def test_a_renewal_that_failed_is_tried_again_while_there_is_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lifetime_s: float, retry_s: float
) -> None:
    certified(tmp_path, lifetime_s)
    renewal = Renewal(KNOWN, tmp_path)

    async def away() -> None:
        raise Unreachable("away")

    monkeypatch.setattr(renewal, "_renew", away)
    seconds = await waits(renewal, monkeypatch, 20)
    assert all(0 < wait <= 1.5 * retry_s for wait in seconds[1::2])
    assert max(seconds[1::2]) > retry_s / 3


def test_no_certificate_no_renewal(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="join again"):
        Renewal(KNOWN, tmp_path)


async def test_an_ended_certificate_is_an_error_in_the_log_until_there_is_a_new_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    KNOWN.write(tmp_path)
    certified(tmp_path, -60)
    assert await member(tmp_path, "node", None) == KNOWN
    assert "give a new join token" in caplog.text

    again = dataclasses.replace(KNOWN, site="another site")

    async def joined(token: str, kind: str, folder: Path) -> Membership:
        assert (token, kind, folder) == ("fresh", "node", tmp_path)
        return again

    monkeypatch.setattr(membership, "join", joined)
    assert await member(tmp_path, "node", "fresh") == again


def full_disk(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    raise OSError(28, "No space left on device")


async def test_a_full_disk_is_a_renewal_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    authority, who = certified(tmp_path, 60), KNOWN.machine
    renewal = Renewal(KNOWN, tmp_path)
    shown = renewal.current

    async def renew(request: Any, timeout: float) -> Any:
        signed = authority.sign(request.csr_pem, who, timedelta(seconds=60))
        return SimpleNamespace(certificate_pem=signed, ca_pem=authority.ca_pem, control_planes=[])

    monkeypatch.setattr(membership.node_pb2_grpc, "NodeServiceStub", lambda channel: SimpleNamespace(Renew=renew))
    with monkeypatch.context() as patched:
        patched.setattr("nearmesh.tls.write_private", full_disk)
        await waits(renewal, patched, 4)
    assert "No space left on device" in caplog.text
    # What is shown is what the next start will show.
    assert renewal.current is shown
    await waits(renewal, monkeypatch, 2)
    assert renewal.current != shown and Credentials.read(tmp_path) == renewal.current
