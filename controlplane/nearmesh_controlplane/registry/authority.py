"""The mesh's certificate authority: signs nodes, gateways and the control plane itself, and holds the keys of tokens
and of model versions."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nearmesh.errors import JoinRefused
from nearmesh.ids import MachineId
from nearmesh.signature import public_pem
from nearmesh.tls import BACKDATE, Address, Credentials, key_from_pem, key_to_pem, new_key, write_once
from nearmesh.tokens import TokenIssuer, TokenVerifier

CA_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=30)

# What a request that a stranger made can raise while it is read.
_UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    x509.InvalidVersion,
)


@dataclass(slots=True)
class Authority:
    """Everything that signs. One per mesh."""

    mesh: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    issuer: TokenIssuer
    # Signs model versions. Not the CA's: others are given its public half to trust for nothing else.
    model_key: ec.EllipticCurvePrivateKey

    @classmethod
    def open(cls, mesh: str, folder: Path) -> Authority:
        """The authority kept in `folder`; made at the first call, once even if several processes call at a time."""
        key = _key_in(folder / "ca-key.pem")
        ca_path = folder / "ca.pem"
        if not ca_path.exists():
            write_once(ca_path, _self_signed(mesh, key).public_bytes(Encoding.PEM), mode=0o644)
        certificate = x509.load_pem_x509_certificate(ca_path.read_bytes())
        issuer = TokenIssuer(_key_in(folder / "token-key.pem"), mesh)
        return cls(mesh, key, certificate, issuer, _key_in(folder / "model-key.pem"))

    @property
    def ca_pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def model_key_pem(self) -> str:
        """The public key that versions are checked by."""
        return public_pem(self.model_key)

    @property
    def jwks_json(self) -> str:
        return self.issuer.jwks_json

    @property
    def public(self) -> bytes:
        """What others know this authority by: its certificate, and the keys that check its tokens."""
        return self.ca_pem + self.jwks_json.encode()

    def verifier(self) -> TokenVerifier:
        """Checks the tokens that this authority signs."""
        return TokenVerifier(self.jwks_json, self.mesh)

    def sign(
        self,
        csr_pem: bytes,
        who: MachineId,
        lifetime: timedelta,
        allows: Callable[[Address], bool] = lambda address: False,
    ) -> bytes:
        """A certificate for `who`, in PEM. Raises JoinRefused when the CSR does not hold or asks for another name.

        Beside its own names it may ask for one IP that `allows` lets pass.
        """
        csr, address = _checked_request(csr_pem, who, allows)
        builder = self._builder(who.id, csr.public_key(), lifetime)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(who.spiffe), x509.DNSName(who.dns), *address]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return self._finish(builder)

    def server_credentials(self, hosts: list[str]) -> Credentials:
        """Key and certificate for the control plane's own listeners."""
        key = new_key()
        names = [_general_name(host) for host in dict.fromkeys([*hosts, "localhost", "127.0.0.1", "::1"])]
        builder = self._builder("control-plane", key.public_key(), SERVER_LIFETIME)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return Credentials(key_to_pem(key), self._finish(builder), self.ca_pem)

    def _builder(self, name: str, key: object, lifetime: timedelta) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self.certificate.subject)
            .public_key(key)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )

    def _finish(self, builder: x509.CertificateBuilder) -> bytes:
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _checked_request(
    csr_pem: bytes, who: MachineId, allows: Callable[[Address], bool]
) -> tuple[x509.CertificateSigningRequest, list[x509.IPAddress]]:
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        sound = csr.is_signature_valid and _is_mesh_key(csr.public_key())
        asked = _names_in(csr)
    except _UNREADABLE as error:
        raise JoinRefused(f"join refused: not a certificate request: {error}") from None
    if not sound:
        raise JoinRefused("join refused: the certificate request is not validly signed by an ECDSA P-256 key")
    address = [name for name in asked if isinstance(name, x509.IPAddress) and _is_allowed(name, allows)][:1]
    if asked - {*address} != {x509.UniformResourceIdentifier(who.spiffe), x509.DNSName(who.dns)}:
        names = ", ".join(sorted(str(name.value) for name in asked)) or "nobody"
        raise JoinRefused(f"join refused: the request is for {names}, not {who.spiffe} and {who.dns}")
    return csr, address


def _is_allowed(name: x509.IPAddress, allows: Callable[[Address], bool]) -> bool:
    # In a certificate's constraints the same kind of name may be a whole network.
    return isinstance(name.value, ipaddress.IPv4Address | ipaddress.IPv6Address) and allows(name.value)


def _is_mesh_key(key: object) -> bool:
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)


def _names_in(csr: x509.CertificateSigningRequest) -> set[x509.GeneralName]:
    try:
        return set(csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return set()


def _self_signed(mesh: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    now = datetime.now(UTC)
    name = _name(f"{mesh} mesh authority")
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _key_in(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        write_once(path, key_to_pem(new_key()))
    return key_from_pem(path.read_bytes())


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
