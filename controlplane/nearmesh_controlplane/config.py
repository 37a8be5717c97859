"""`mesh.toml`: what an operator decides about one control plane."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from nearmesh import addresses
from nearmesh.config import PathOrUrl
from nearmesh.errors import InvalidInput
from nearmesh.ids import check_label
from nearmesh.routing.table import Listener
from nearmesh_controlplane import postgresql
from nearmesh_controlplane.prices.currencies import Currencies

# Bound to one of these, a listener answers at every address of the machine, and none of them is its name.
WILDCARDS = ("", "0.0.0.0", "::")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where the three listeners bind, host:port."""

    # TLS and bearer token: Join, Resolve, catalog, admin, clients' ADS.
    public: str = "0.0.0.0:7400"
    # TLS with a certificate of the mesh: Session, Renew, gateways' ADS.
    mesh: str = "0.0.0.0:7401"
    # HTTPS: the OCI pull API.
    http: str = "0.0.0.0:7480"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointOverride:
    """Clients of one region reach one node at another address: a proxy or a translated network."""

    client_region: str
    node: str
    address: str
    listener: Listener = "public"


NOWHERE = PathOrUrl("")


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceFeed:
    """Where prices come from that nobody types in."""

    # A CSV or JSON file, or an http(s) URL of one. Empty: none.
    feed: PathOrUrl = NOWHERE
    # How often it is looked at; it is read only when it changed.
    every_s: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.every_s <= 86400:
            raise InvalidInput(f"every_s must be 1 to 86400, got {self.every_s:g}")
        if "://" in self.feed:
            try:
                scheme, host = urlsplit(self.feed).scheme, urlsplit(self.feed).hostname
            except ValueError:
                scheme, host = "", None
            if scheme not in ("http", "https") or not host:
                raise InvalidInput(
                    f"feed {self.feed!r} is neither a path nor such as https://prices.example.net/list.csv"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsConfig:
    """Which SuperLink federated runs go through."""

    # host:port of one that somebody else runs, with `--isolation process`. Empty: the control plane runs one itself.
    superlink: str = ""
    # PEM of whom that one's certificate is from, and the secret by which it knows its SuperExecs, if it asks for one.
    ca: PathOrUrl = NOWHERE
    superexec_secret: PathOrUrl = NOWHERE
    # The control plane's own ends when no run has needed it for so long. Starting it takes some seconds.
    idle_s: float = 300.0
    # Whoever may start runs may bring a Flower app: its server half runs on this machine, as the control plane's user,
    # its client half at the sites. False: packages' recipes alone, which operators have published.
    own_apps: bool = True

    def __post_init__(self) -> None:
        if self.superlink:
            addresses.split(self.superlink)
            if not self.ca:
                raise InvalidInput(f"superlink {self.superlink!r} needs `ca`: the file of whom its certificate is from")
        elif self.ca or self.superexec_secret:
            raise InvalidInput("`ca` and `superexec_secret` are for somebody else's SuperLink: name it, `superlink`")
        for name in ("ca", "superexec_secret"):
            if "://" in getattr(self, name):
                raise InvalidInput(f"{name} is a file's path, not {getattr(self, name)!r}")
        if not 1 <= self.idle_s <= 86400:
            raise InvalidInput(f"idle_s must be 1 to 86400, got {self.idle_s:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshConfig:
    """The control plane's configuration."""

    # A DNS label; it stands in every certificate, so it cannot change later.
    mesh: str
    # Keys, database and model artifacts.
    data: Path
    # Several control planes share one of PostgreSQL, postgresql://USER@HOST:PORT/NAME; a password comes from PGPASSWORD
    # or ~/.pgpass. Empty: SQLite below `data`, for one that is alone.
    database: str = ""
    # Which of several this one is; empty: the name of its machine. A DNS label.
    id: str = ""
    listen: Listen = field(default_factory=Listen)
    # Host that nodes and clients reach the control plane at; it is put into join tokens and the server's certificate.
    # Empty: the host that the public listener binds, which must then be one.
    advertise_host: str = ""
    # A node whose session broke is tried last for this long and then leaves the routes. Longer than a node takes to
    # reconnect after a restart of the control plane, short enough not to keep the dead.
    lease_s: float = 10.0
    # Certificates of nodes and gateways; renewed after two thirds of it.
    certificate_lifetime_s: float = 24 * 3600.0
    # How long nodes, gateways and clients may route by what this control plane said last, while it is away.
    snapshot_lifetime_s: float = 24 * 3600.0
    # Largest model file that may be published.
    max_blob_bytes: int = 8 * 1024**3
    endpoint_override: tuple[EndpointOverride, ...] = ()
    prices: PriceFeed = field(default_factory=PriceFeed)
    # US dollars for one unit of each other currency that prices are given in, by its three letters.
    currencies: dict[str, float] = field(default_factory=dict)
    runs: RunsConfig = field(default_factory=RunsConfig)

    def __post_init__(self) -> None:
        check_label("mesh", self.mesh)
        if self.id:
            check_label("id", self.id)
        if self.database:
            postgresql.check_url(self.database)
        for name in ("lease_s", "certificate_lifetime_s", "snapshot_lifetime_s", "max_blob_bytes"):
            if getattr(self, name) <= 0:
                raise InvalidInput(f"{name} must be above 0, got {getattr(self, name)}")
        Currencies(self.currencies)
        if self.host in WILDCARDS:
            raise InvalidInput(
                f"listening on {self.listen.public}, nodes cannot be told where that is: "
                "set `advertise_host` to the name or the address that they reach this machine at"
            )

    @property
    def name(self) -> str:
        """Which control plane this is, for the others and for people."""
        machine = socket.gethostname().partition(".")[0].lower()
        return self.id or re.sub("[^a-z0-9-]", "-", machine).strip("-") or "control-plane"

    @property
    def host(self) -> str:
        """Where others reach the control plane; an IPv6 address without brackets."""
        return self.advertise_host.strip("[]") or addresses.split(self.listen.public)[0]

    def reached_at(self, listener: str) -> str:
        """host:port by which others reach what listens at `listener`. Raises InvalidInput."""
        return addresses.joined(self.host, addresses.split(listener)[1])
