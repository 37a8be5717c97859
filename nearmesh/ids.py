"""Names and identities: what a valid one looks like, and how it stands in a certificate."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from nearmesh.errors import InvalidInput

# A DNS label, because node ids and mesh names stand in certificates and model names in xDS listeners.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
# As clouds name them: g2-standard-4, Standard_NC24ads_A100_v4, p4d.24xlarge.
_MACHINE_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

# What nodes keep in a version's folder beside its files: this, and names that begin with a dot.
RESERVED_FILE = "manifest.json"

Kind = Literal["node", "gateway"]


def check_label(what: str, value: str) -> str:
    """Returns `value` if it can name a mesh, node, site, region or model. Raises InvalidInput."""
    if not _LABEL.fullmatch(value):
        raise InvalidInput(f"{what} {value!r} must be 1 to 63 of a-z, 0-9 and '-', and not begin or end with '-'")
    return value


def check_version(value: str) -> str:
    """Returns `value` if it can name a model version. Raises InvalidInput."""
    if not _VERSION.fullmatch(value):
        raise InvalidInput(f"version {value!r} must be 1 to 64 of letters, digits and . _ + -, beginning with neither")
    return value


def check_machine_type(value: str) -> str:
    """Returns `value` if it can name a kind of machine, or is empty. Raises InvalidInput."""
    if value and not _MACHINE_TYPE.fullmatch(value):
        raise InvalidInput(
            f"machine_type {value!r} must be 1 to 63 of letters, digits and . _ -, such as g2-standard-4"
        )
    return value


def check_digest(value: str) -> str:
    """Returns `value` if it is 'sha256:' and 64 lower-case hex digits. Raises InvalidInput."""
    if not _DIGEST.fullmatch(value):
        raise InvalidInput(f"digest {value!r} must be 'sha256:' followed by 64 lower-case hex digits")
    return value


@dataclass(frozen=True, slots=True)
class MachineId:
    """Who a certificate speaks for: one node or one gateway of one mesh."""

    mesh: str
    kind: Kind
    id: str

    @property
    def spiffe(self) -> str:
        """The URI in the certificate, `spiffe://<mesh>/node/<id>`."""
        return f"spiffe://{self.mesh}/{self.kind}/{self.id}"

    @property
    def dns(self) -> str:
        """The DNS name in the certificate, `<id>.<mesh>`."""
        return f"{self.id}.{self.mesh}"

    @classmethod
    def parse(cls, spiffe: str) -> MachineId:
        """The identity in a SPIFFE URI. Raises InvalidInput."""
        match = re.fullmatch(r"spiffe://([^/]+)/(node|gateway)/([^/]+)", spiffe)
        if match is None:
            raise InvalidInput(f"{spiffe!r} is not spiffe://MESH/node/ID or spiffe://MESH/gateway/ID")
        mesh, kind, name = match.groups()
        check_label("mesh", mesh)
        check_label("id", name)
        return cls(mesh, "node" if kind == "node" else "gateway", name)


def node_server_name(mesh: str, node: str) -> str:
    """The name to expect in a node's TLS handshake."""
    return MachineId(mesh, "node", node).dns
