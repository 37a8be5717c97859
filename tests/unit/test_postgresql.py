"""What becomes of a change when the database is away, which URLs are taken, and what control planes tell each other."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from nearmesh_controlplane import postgresql
from nearmesh_controlplane.config import MeshConfig
from nearmesh_controlplane.peers import told
from nearmesh_controlplane.peers.changes import written_by_others
from nearmesh_controlplane.peers.role import Peer
from nearmesh_controlplane.postgresql import PATIENCE_S, Broken, Patience, check_url, conninfo, notice
from nearmesh_controlplane.registry.join import Addresses
from nearmesh_controlplane.registry.nodes import Sighting

from nearmesh import config
from nearmesh.errors import ConfigError, Unreachable


@pytest.mark.parametrize(
    "url", ["postgresql://me@db/mesh", "postgresql:///mesh?host=/run/pg", "postgres://db:5433/mesh"]
)
def test_a_url_of_postgresql(url: str) -> None:
    assert check_url(url) == url
    assert conninfo(url).startswith("postgresql://")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mesh", "'mesh' is no URL; write postgresql://USER@HOST:PORT/NAME"),
        ("sqlite:///state.db", "'sqlite' is not offered"),
        ("mysql://db/mesh", "'mysql' is not offered"),
        ("postgresql+asyncpg://db/mesh", r"'postgresql\+asyncpg' is not offered"),
        ("postgresql://me:secret@db/mesh", "set PGPASSWORD, or use ~/.pgpass"),
    ],
)
def test_what_is_none_says_what_to_write_and_tells_no_secret(url: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        check_url(url)
    assert "secret" not in raised.value.message
    file = tmp_path / "mesh.toml"
    file.write_text(f'mesh = "m"\ndata = "d"\nadvertise_host = "h"\ndatabase = "{url}"')
    with pytest.raises(ConfigError, match=said):
        config.load(MeshConfig, file)


def test_which_control_plane_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Host_1.example.net")
    more = {"mesh": "m", "data": tmp_path, "advertise_host": "h"}
    assert MeshConfig(**more).name == "host-1"
    assert MeshConfig(id="cp-2", **more).name == "cp-2"
    with pytest.raises(ConfigError, match="id 'CP'"):
        config.parse(MeshConfig, {"mesh": "m", "data": "d", "id": "CP"}, where="x", base=tmp_path)


# While the database is away


class Away:
    """A database that is away until `back_at_s`; each try takes a second of the clock."""

    def __init__(self, back_at_s: float) -> None:
        self.now_s = 0.0
        self.back_at_s = back_at_s
        self.tries = 0
        self.patience = Patience(_AtOnce(), lambda: self.now_s)

    def once(self) -> str:
        self.tries += 1
        self.now_s += 1.0
        if self.now_s < self.back_at_s:
            raise Broken("gone")
        return "done"


class _AtOnce(threading.Event):
    """Nobody closes, and nobody waits."""

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


def test_a_change_waits_for_a_database_that_is_away_for_a_while() -> None:
    away = Away(PATIENCE_S / 2)
    assert away.patience.keep_trying(away.once) == "done"
    assert away.tries == PATIENCE_S / 2


def test_after_that_each_change_has_one_try_until_it_is_back() -> None:
    away = Away(PATIENCE_S + 10)
    with pytest.raises(Unreachable, match="database is away, and nothing was changed: gone"):
        away.patience.keep_trying(away.once)
    before = away.tries
    for _ in range(3):
        with pytest.raises(Unreachable):
            away.patience.keep_trying(away.once)
    assert away.tries == before + 3
    away.now_s = PATIENCE_S + 10
    assert away.patience.keep_trying(away.once) == "done"
    # Its next absence is another one.
    away.back_at_s = away.now_s + PATIENCE_S / 2
    assert away.patience.keep_trying(away.once) == "done"


def test_who_closes_waits_no_longer() -> None:
    closing = threading.Event()
    closing.set()

    def gone() -> None:
        raise Broken("gone")

    with pytest.raises(Unreachable):
        Patience(closing, lambda: 0.0).keep_trying(gone)


# What they tell each other


@pytest.mark.parametrize(
    ("payload", "written"),
    [
        (notice("other", ["b", "a"]), {"a", "b"}),
        (notice("me", ["a"]), set()),
        (notice("other", []), set()),
        ("", set()),
        ("{}", set()),
        ('{"author": "other", "tables": 3}', set()),
        ("[1]", set()),
    ],
)
def test_a_notice_names_the_tables_that_others_wrote(payload: str, written: set[str]) -> None:
    assert written_by_others(payload, "me") == written


def test_a_notice_fits_into_what_postgresql_carries() -> None:
    assert len(notice("f" * 32, [f"table_{n}" for n in range(40)])) < 8000


def test_presence_is_the_same_while_nobody_comes_or_goes() -> None:
    seen = {"a": Sighting("live", 1001.0), "b": Sighting("gone", 0.0)}
    later = {"b": Sighting("gone", 0.0), "a": Sighting("live", 1009.9)}
    assert told.presence_bytes(seen) == told.presence_bytes(later)
    assert told.presence_bytes({**later, "a": Sighting("suspect", 1009.9)}) != told.presence_bytes(seen)
    assert told.presence_from(told.presence_bytes(seen)) == {"a": Sighting("live", 1000.0), "b": Sighting("gone", 0.0)}
    assert told.presence_from(b"") == {}
    leaving = {"a": Sighting("live", 1000.0, "spot", 1030.0, 3, 1, False)}
    assert told.presence_from(told.presence_bytes(leaving)) == leaving


def test_a_join_token_leads_to_all_of_them_its_own_first() -> None:
    peers = [Peer(id=name, public=f"{name}:1", mesh=f"{name}:2", http=f"{name}:3", seen_at_s=0.0) for name in "abc"]
    assert Addresses.of("b", peers) == Addresses(public="b:1,a:1,c:1", mesh="b:2,a:2,c:2")
    assert postgresql.CHANNEL == "nearmesh"
