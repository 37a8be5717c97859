"""TOML into dataclasses: every error names the file, the key, the value and the remedy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from nearmesh_agent.config import NodeConfig
from nearmesh_controlplane.config import Listen, MeshConfig

from nearmesh import config
from nearmesh.errors import ConfigError, InvalidInput

NOWHERE = config.PathOrUrl("")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    port: int = 1
    kind: Literal["node", "gateway"] = "node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    folder: Path = Path("none")
    ratio: float = 0.5
    on: bool = False
    maybe: str | None = None
    inner: Inner = field(default_factory=Inner)
    many: tuple[Inner, ...] = ()
    words: tuple[str, ...] = ()
    by_name: dict[str, float] = field(default_factory=dict)
    anything: Any = None
    place: config.PathOrUrl = NOWHERE

    def __post_init__(self) -> None:
        if self.ratio > 1:
            raise InvalidInput(f"ratio must be 1 at most, got {self.ratio}")


def read(tmp_path: Path, text: str) -> Outer:
    (tmp_path / "x.toml").write_text(text)
    return config.load(Outer, tmp_path / "x.toml")


def test_every_kind_of_value(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        name = "n"
        folder = "data"
        ratio = 1
        on = true
        maybe = "yes"
        inner = { port = 2, kind = "gateway" }
        many = [{ port = 3 }, {}]
        words = ["a", "b"]
        by_name = { a = 1, b = 2.5 }
        anything = [1, "x"]
        place = "prices.csv"
        """,
    )
    assert found == Outer(
        name="n",
        folder=tmp_path / "data",
        ratio=1.0,
        on=True,
        maybe="yes",
        inner=Inner(port=2, kind="gateway"),
        many=(Inner(port=3), Inner()),
        words=("a", "b"),
        by_name={"a": 1.0, "b": 2.5},
        anything=[1, "x"],
        place=config.PathOrUrl(str(tmp_path / "prices.csv")),
    )


def test_an_absolute_path_stays_and_a_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert read(tmp_path, 'name = "n"\nfolder = "/data"').folder == Path("/data")
    assert read(tmp_path, 'name = "n"\nfolder = "~/data"').folder == Path("/home/someone/data")


@pytest.mark.parametrize(
    ("given", "found"),
    [("", ""), ("/p.csv", "/p.csv"), ("~/p.csv", "/home/someone/p.csv"), ("https://h//p", "https://h//p")],
)
def test_a_path_or_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, found: str) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert read(tmp_path, f'name = "n"\nplace = "{given}"').place == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "key 'name' is missing"),
        ('name = "n"\nnam = "m"', "unknown key 'nam'; did you mean 'name'?"),
        ('name = "n"\nzzzz = 1', "unknown key 'zzzz'; known keys are anything, by_name, folder, inner"),
        ("name = 1", "name: expected str, got 1"),
        ('name = "n"\nratio = true', "ratio: expected float, got True"),
        ('name = "n"\nratio = "1"', "ratio: expected float, got '1'"),
        ('name = "n"\nratio = nan', "ratio: expected a finite number, got nan"),
        ('name = "n"\nratio = -inf', "ratio: expected a finite number, got -inf"),
        ('name = "n"\nby_name = { a = inf }', "by_name.a: expected a finite number, got inf"),
        ('name = "n"\nratio = 2', "ratio must be 1 at most, got 2.0"),
        ('name = "n"\non = 1', "on: expected bool, got 1"),
        ('name = "n"\nfolder = 1', "folder: expected Path, got 1"),
        ('name = "n"\nplace = 1', "place: expected PathOrUrl, got 1"),
        ('name = "n"\nmaybe = 1', "maybe: expected str, got 1"),
        ('name = "n"\ninner = 1', "inner: expected a table, got 1"),
        ('name = "n"\ninner = { port = 1.0 }', "inner.port: expected int, got 1.0"),
        ('name = "n"\ninner = { kind = "nod" }', "kind: 'nod' is not one of 'node', 'gateway'"),
        ('name = "n"\ninner = { prt = 1 }', "inner: unknown key 'prt'; did you mean 'port'?"),
        ('name = "n"\nmany = { port = 1 }', "many: expected a list, got {'port': 1}"),
        ('name = "n"\nmany = [{ port = 1 }, { port = "1" }]', "many[1].port: expected int, got '1'"),
        ('name = "n"\nwords = ["a", 2]', "words[1]: expected str, got 2"),
        ('name = "n"\nname = "m"', "Cannot overwrite"),
        ("name = ", "Invalid value"),
    ],
)
def test_errors_name_the_place_and_the_remedy(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    file, _, rest = caught.value.message.partition("x.toml")
    assert file == f"{tmp_path}/" and rest.startswith((":", ": "))
    assert said in caught.value.message
    assert len(caught.value.message.splitlines()) == 1


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        config.load(Outer, tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        config.load(Outer, tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="utf-8"):
        config.load(Outer, tmp_path / "binary.toml")


NODE, MESH = {"data": "d"}, {"mesh": "m", "data": "d"}


@pytest.mark.parametrize(
    ("cls", "more", "said"),
    [
        (MeshConfig, MESH, "listening on 0.0.0.0:7400, nodes cannot be told where that is: set `advertise_host`"),
        (MeshConfig, MESH | {"mesh": "My Mesh"}, "mesh 'My Mesh' must be 1 to 63 of a-z"),
        (MeshConfig, MESH | {"lease_s": 0}, "lease_s must be above 0, got 0.0"),
        (MeshConfig, MESH | {"lease_s": float("nan")}, "lease_s: expected a finite number"),
        (MeshConfig, MESH | {"certificate_lifetime_s": -1.0}, "certificate_lifetime_s must be above 0, got -1.0"),
        (MeshConfig, MESH | {"max_blob_bytes": 0}, "max_blob_bytes must be above 0, got 0"),
        (MeshConfig, MESH | {"endpoint_override": [{"node": "n"}]}, "endpoint_override[0]: key 'client_region'"),
        (
            MeshConfig,
            MESH | {"endpoint_override": [{"client_region": "r", "node": "n", "address": "a:1", "listener": "x"}]},
            "listener: 'x' is not one of 'public', 'mesh'",
        ),
        (NodeConfig, NODE | {"usd_per_hour": -1}, "usd_per_hour must be 0 or more, got -1.0"),
        (NodeConfig, NODE | {"machine_type": "g2 standard"}, "machine_type 'g2 standard' must be 1 to 63 of letters"),
        (
            MeshConfig,
            MESH | {"currencies": {"EUR": 0}},
            "currencies.EUR is 0; expected US dollars for one EUR, above 0",
        ),
        (MeshConfig, MESH | {"prices": {"every_s": 0.5}}, "every_s must be 1 to 86400, got 0.5"),
        (MeshConfig, MESH | {"prices": {"feed": "ftp://a/b"}}, "feed 'ftp://a/b' is neither a path nor such as https"),
        (MeshConfig, MESH | {"prices": {"feed": "https:///b"}}, "feed 'https:///b' is neither a path nor"),
        (MeshConfig, MESH | {"prices": {"feed": "https://[b"}}, "feed 'https://[b' is neither a path nor"),
        (
            MeshConfig,
            MESH | {"prices": {"url": "https://b"}},
            "prices: unknown key 'url'; known keys are every_s, feed",
        ),
        (MeshConfig, MESH | {"runs": {"superlink": "cp"}}, "address 'cp' is not host:port"),
        (MeshConfig, MESH | {"runs": {"superlink": "cp:9093"}}, "superlink 'cp:9093' needs `ca`"),
        (MeshConfig, MESH | {"runs": {"ca": "ca.pem"}}, "for somebody else's SuperLink: name it, `superlink`"),
        (
            MeshConfig,
            MESH | {"runs": {"superlink": "cp:9093", "ca": "https://cp/ca.pem"}},
            "ca is a file's path, not 'https://cp/ca.pem'",
        ),
        (MeshConfig, MESH | {"runs": {"idle_s": 0.5}}, "idle_s must be 1 to 86400, got 0.5"),
        (NodeConfig, NODE | {"max_message_bytes": 1000}, "at least 1 MiB, got 1000"),
        (NodeConfig, NODE | {"queue_limit": 0}, "queue_limit must be 1 or more"),
        (NodeConfig, NODE | {"threads": -1}, "threads and grace_s 0 or more"),
        (NodeConfig, NODE | {"listen": {"publik": "x"}}, "listen: unknown key 'publik'; did you mean 'public'?"),
    ],
)
def test_the_components_check_their_values(cls: type, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(cls, more, where="file", base=Path())
    assert said in caught.value.message


@pytest.mark.parametrize("advertised", ["2001:db8::1", "[2001:db8::1]", ""])
def test_a_control_plane_on_ipv6_is_told_of_with_brackets(advertised: str) -> None:
    listen = Listen(public="[2001:db8::1]:7400")
    found = MeshConfig(mesh="m", data=Path(), listen=listen, advertise_host=advertised)
    # In the certificate it stands without, in addresses and URLs with them.
    assert (found.host, found.reached_at("[::]:7401")) == ("2001:db8::1", "[2001:db8::1]:7401")


def test_a_nodes_hardware_names_itself() -> None:
    assert NodeConfig(data=Path(), hardware="h200").hardware_name() == "h200"
    name = NodeConfig(data=Path()).hardware_name()
    assert name.rpartition(" x")[0] and name == NodeConfig(data=Path()).hardware_name()
