"""Keys and certificates of a machine: on disk in one step, and renewed in time."""

from __future__ import annotations

import ipaddress
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from nearmesh_controlplane.registry.authority import Authority

from nearmesh.errors import ConfigError, JoinRefused
from nearmesh.ids import MachineId
from nearmesh.tls import (
    BACKDATE,
    Credentials,
    addresses_in,
    certificate_request,
    ip_of,
    key_from_pem,
    key_to_pem,
    machine_in,
    new_key,
    write_private,
)

WHO = MachineId("mesh", "node", "n1")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.open("mesh", tmp_path_factory.mktemp("authority"))


def credentials(authority: Authority, lifetime: timedelta) -> Credentials:
    key = new_key()
    return Credentials(key_to_pem(key), authority.sign(certificate_request(key, WHO), WHO, lifetime), authority.ca_pem)


def certified(authority: Authority, asked: str, *allowed: str) -> list[str]:
    """The IPs in the certificate that comes of asking for one."""
    request = certificate_request(new_key(), WHO, ip_of(asked))
    signed = authority.sign(request, WHO, timedelta(hours=1), lambda address: str(address) in allowed)
    certificate = x509.load_pem_x509_certificate(signed)
    assert machine_in(certificate) == WHO
    return [str(address) for address in addresses_in(certificate)]


def test_a_certificate_holds_for_an_address_that_may_be_asked_for(authority: Authority) -> None:
    assert certified(authority, "10.0.0.7", "10.0.0.7") == ["10.0.0.7"]
    assert certified(authority, "[2001:db8::7]", "2001:db8::7") == ["2001:db8::7"]
    assert certified(authority, "a-name", "10.0.0.7") == []
    with pytest.raises(JoinRefused, match=r"the request is for 10\.0\.0\.8"):
        certified(authority, "10.0.0.8", "10.0.0.7")


def test_nobody_gets_two_addresses(authority: Authority) -> None:
    names = [x509.UniformResourceIdentifier(WHO.spiffe), x509.DNSName(WHO.dns)]
    names += [x509.IPAddress(ipaddress.ip_address(f"10.0.0.{i}")) for i in (1, 2)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(new_key(), hashes.SHA256())
    with pytest.raises(JoinRefused, match=r"10\.0\.0"):
        authority.sign(request.public_bytes(serialization.Encoding.PEM), WHO, timedelta(hours=1), lambda _: True)


@pytest.mark.parametrize("seconds", [2, 6, 60, 3600, 24 * 3600])
def test_a_certificate_is_renewed_when_two_thirds_of_its_life_are_over(authority: Authority, seconds: int) -> None:
    """Its life began when it was signed, not when its backdated validity did: a short one would be due at once."""
    found = credentials(authority, timedelta(seconds=seconds))
    signed = found.certificate.not_valid_before_utc + BACKDATE
    assert found.renew_in_s(signed) == pytest.approx(seconds * 2 / 3)
    assert found.renew_in_s(signed + timedelta(seconds=seconds / 2)) == pytest.approx(seconds / 6)
    assert found.renew_in_s(signed + timedelta(seconds=seconds)) == 0
    assert found.left_s(signed + timedelta(seconds=seconds / 2)) == pytest.approx(seconds / 2)
    assert found.left_s(signed + timedelta(seconds=seconds + 1)) == 0


def test_a_certificate_that_ended_before_now_is_due(authority: Authority) -> None:
    assert credentials(authority, timedelta(seconds=-60)).renew_in_s() == 0


def test_a_certificate_says_whose_it_is_and_holds_on_both_ends(authority: Authority) -> None:
    certificate = credentials(authority, timedelta(hours=1)).certificate
    assert machine_in(certificate) == WHO
    assert machine_in(authority.certificate) is None
    assert certificate.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=4)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {u.dotted_string for u in usage} == {"1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"}
    certificate.verify_directly_issued_by(authority.certificate)


def test_what_was_written_is_read(authority: Authority, tmp_path: Path) -> None:
    assert Credentials.read(tmp_path / "none") is None
    found = credentials(authority, timedelta(hours=1))
    found.write(tmp_path)
    assert Credentials.read(tmp_path) == found
    assert stat.S_IMODE((tmp_path / Credentials.KEY).stat().st_mode) == 0o600
    (tmp_path / Credentials.CERTIFICATE).unlink()
    assert Credentials.read(tmp_path) is None


def test_a_private_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "secret"
    write_private(path, b"one")
    held = path.open("rb")
    write_private(path, b"two")
    # Who has the old file open still reads all of it.
    assert (held.read(), path.read_bytes()) == (b"one", b"two")
    held.close()
    assert [entry.name for entry in path.parent.iterdir()] == ["secret"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keys() -> None:
    key = new_key()
    assert key_to_pem(key_from_pem(key_to_pem(key))) == key_to_pem(key)
    with pytest.raises(ConfigError, match="not a private key"):
        key_from_pem(b"nonsense")
    other = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ConfigError, match="not an EC key"):
        key_from_pem(other)


def test_an_authority_is_the_same_when_it_is_opened_again(tmp_path: Path) -> None:
    first, again = (Authority.open("mesh", tmp_path) for _ in range(2))
    assert (first.ca_pem, first.jwks_json, first.model_key_pem) == (again.ca_pem, again.jwks_json, again.model_key_pem)
    for name in ("ca-key.pem", "token-key.pem", "model-key.pem"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_the_control_planes_own_certificate_names_its_hosts(authority: Authority) -> None:
    found = authority.server_credentials(["mesh.example.org", "192.0.2.7"])
    names = found.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["mesh.example.org", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "127.0.0.1", "::1"]
    assert machine_in(found.certificate) is None


def test_another_keys_certificate_goes_before_the_new_key_comes(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again = (credentials(authority, timedelta(hours=1)) for _ in range(2))
    first.write(tmp_path)
    renewed = Credentials(first.key_pem, again.certificate_pem, first.ca_pem)

    def crash(path: Path, data: bytes, *, mode: int = 0o600) -> None:
        if path.name == Credentials.CERTIFICATE:
            raise OSError(28, "No space left on device")
        write_private(path, data, mode=mode)

    monkeypatch.setattr("nearmesh.tls.write_private", crash)
    with pytest.raises(OSError, match="No space"):
        renewed.write(tmp_path)
    assert Credentials.read(tmp_path) == first
    with pytest.raises(OSError, match="No space"):
        again.write(tmp_path)
    assert Credentials.read(tmp_path) is None
