"""Keys, certificate requests and TLS credentials of a machine; the certificate authority itself is the control
plane's."""

from __future__ import annotations

import ipaddress
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nearmesh.errors import ConfigError
from nearmesh.ids import MachineId

# A certificate begins this long before it is signed, since machines' clocks may be behind the control plane's.
BACKDATE = timedelta(minutes=5)


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def ip_of(host: str) -> Address | None:
    """The IP that `host` is, or None for a name."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def new_key() -> ec.EllipticCurvePrivateKey:
    """ECDSA P-256, the one kind that every part of the mesh accepts (Flower takes no other)."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS8, unencrypted: the file's mode guards it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_from_pem(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The key in `pem`. Raises ConfigError unless it is an EC key."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except ValueError as error:
        raise ConfigError(f"not a private key in PEM: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the private key is not an EC key")
    return key


def certificate_request(key: ec.EllipticCurvePrivateKey, who: MachineId, address: Address | None = None) -> bytes:
    """A CSR in PEM that asks for `who`'s SPIFFE URI and DNS name, and for the IP that clients reach it at."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(who.spiffe), x509.DNSName(who.dns)]
    if address is not None:
        names.append(x509.IPAddress(address))
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, who.id)])
    )
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def write_private(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Puts `data` at `path` as one step and on disk: no reader sees half of it, and nobody else reads it."""
    _draft(path, data, mode).replace(path)
    fsync_folder(path.parent)


def write_once(path: Path, data: bytes, *, mode: int = 0o600) -> bytes:
    """As `write_private`, unless the file is there: of several processes the first wins. Returns what is there."""
    draft = _draft(path, data, mode)
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    draft.unlink()
    fsync_folder(path.parent)
    return path.read_bytes()


def _draft(path: Path, data: bytes, mode: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return draft


def fsync_folder(folder: Path) -> None:
    """Makes a rename in `folder` outlive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A machine's key, certificate chain and the mesh's CA, as PEM."""

    key_pem: bytes
    certificate_pem: bytes
    ca_pem: bytes

    KEY, CERTIFICATE, CA = "key.pem", "certificate.pem", "ca.pem"

    @classmethod
    def read(cls, folder: Path) -> Credentials | None:
        """What `write` left in `folder`, or None when the machine has not joined yet."""
        try:
            return cls(*((folder / name).read_bytes() for name in (cls.KEY, cls.CERTIFICATE, cls.CA)))
        except FileNotFoundError:
            return None

    def write(self, folder: Path) -> None:
        """Key first and certificate last, so that a half-written set reads as none.

        Where another key was before, its certificate goes first; one key's certificate is replaced in one step.
        """
        known = Credentials.read(folder)
        if known and known.key_pem != self.key_pem:
            (folder / self.CERTIFICATE).unlink()
            fsync_folder(folder)
        write_private(folder / self.KEY, self.key_pem)
        write_private(folder / self.CA, self.ca_pem, mode=0o644)
        write_private(folder / self.CERTIFICATE, self.certificate_pem, mode=0o644)

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate_pem)

    @property
    def expires_at(self) -> datetime:
        return self.certificate.not_valid_after_utc

    def renew_in_s(self, now: datetime | None = None) -> float:
        """Seconds until two thirds of the certificate's life since it was signed are over; 0 when that has passed."""
        end = self.expires_at
        signed = min(self.certificate.not_valid_before_utc + BACKDATE, end)
        due = signed + (end - signed) * 2 / 3
        return max(0.0, (due - (now or datetime.now(UTC))).total_seconds())

    def left_s(self, now: datetime | None = None) -> float:
        """Seconds until the certificate ends; 0 when it has."""
        return max(0.0, (self.expires_at - (now or datetime.now(UTC))).total_seconds())

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For calls to a mesh listener."""
        return grpc.ssl_channel_credentials(self.ca_pem, self.key_pem, self.certificate_pem)

    def ssl_context(self, folder: Path) -> ssl.SSLContext:
        """For HTTPS to the control plane, with the files that `write` left in `folder`."""
        context = ssl.create_default_context(cadata=self.ca_pem.decode())
        context.load_cert_chain(folder / self.CERTIFICATE, folder / self.KEY)
        return context


def addresses_in(certificate: x509.Certificate) -> list[Address]:
    """The IPs that the certificate holds for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    found = names.get_values_for_type(x509.IPAddress)
    return [ip for ip in found if isinstance(ip, ipaddress.IPv4Address | ipaddress.IPv6Address)]


def machine_in(certificate: x509.Certificate) -> MachineId | None:
    """Whose certificate it is, or None when it names no machine of a mesh."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return MachineId.parse(uris[0]) if len(uris) == 1 and uris[0].startswith("spiffe://") else None
