"""The control plane's durable state: its tables, and one way to change them.

A transaction that has returned is on disk, whatever is killed next: SQLite in WAL mode with `synchronous = FULL` for a
control plane that is alone, PostgreSQL for several (`nearmesh_controlplane.postgresql`). Every transaction runs in one
thread, so that the serving loop never waits for the disk and a process's own writers never collide.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from nearmesh.errors import ConfigError, NotLeader, Unreachable
from nearmesh_controlplane import postgresql

T = TypeVar("T")

_MIGRATIONS = Path(__file__).parent / "migrations"

metadata = sa.MetaData()

join_tokens = sa.Table(
    "join_tokens",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("expires_at_s", sa.Float, nullable=False),
    # Set in the same transaction that registers the machine, so that a token works once.
    sa.Column("used_at_s", sa.Float),
)

nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("site", sa.String, nullable=False),
    sa.Column("region", sa.String, nullable=False),
    sa.Column("public_address", sa.String, nullable=False, default=""),
    sa.Column("mesh_address", sa.String, nullable=False, default=""),
    sa.Column("metrics_address", sa.String, nullable=False, default=""),
    sa.Column("hardware", sa.String, nullable=False, default=""),
    sa.Column("agent_version", sa.String, nullable=False, default=""),
    # From the node's own configuration, and the operator's, which wins: in US dollars as of when it was set, as it was
    # given where that was in another currency, and until when it holds.
    sa.Column("own_usd_per_hour", sa.Float, nullable=False, default=0.0),
    sa.Column("set_usd_per_hour", sa.Float),
    sa.Column("set_amount", sa.Float),
    sa.Column("set_currency", sa.String),
    sa.Column("set_until_s", sa.Float),
    # On what terms the machine is bought, and the cloud's name for its kind: what a price feed is looked up by.
    sa.Column("spot", sa.Boolean, nullable=False, default=False),
    sa.Column("machine_type", sa.String, nullable=False, default=""),
    sa.Column("keeps_vectors", sa.Boolean, nullable=False, default=False),
    sa.Column("draining", sa.Boolean, nullable=False, default=False),
    sa.Column("cordoned", sa.Boolean, nullable=False, default=False),
    sa.Column("removed", sa.Boolean, nullable=False, default=False),
    sa.Column("joined_at_s", sa.Float, nullable=False),
)

# What each node said last of each version; kept so that a restart of the control plane knows whom to route to.
replicas = sa.Table(
    "replicas",
    metadata,
    sa.Column("node", sa.String, primary_key=True),
    sa.Column("digest", sa.String, primary_key=True),
    # A serialized nearmesh.v1.ReplicaStatus.
    sa.Column("status", sa.LargeBinary, nullable=False),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("digest", sa.String, primary_key=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("version", sa.String, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
    # Another registry that nodes pull it from; empty: the mesh's own.
    sa.Column("registry", sa.String, nullable=False, server_default=""),
    sa.UniqueConstraint("model", "version"),
)

deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("model", sa.String, nullable=False, index=True),
    sa.Column("version", sa.String, nullable=False),
    sa.Column("digest", sa.String, nullable=False),
    # JSON list; empty for every site.
    sa.Column("sites", sa.JSON, nullable=False),
    # JSON list, empty or null for every region; how many nodes of those have it, 0 for all; and which, as JSON list.
    sa.Column("regions", sa.JSON),
    sa.Column("replicas", sa.Integer, nullable=False, default=0, server_default="0"),
    sa.Column("nodes", sa.JSON),
    # The rollout that brought it; 0: none did.
    sa.Column("rollout", sa.Integer, nullable=False, default=0, server_default="0"),
    sa.Column("created_at_s", sa.Float, nullable=False),
    sa.Column("actor", sa.String, nullable=False),
)

# Versions on their way, and how the last ones ended.
rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("ended", sa.Boolean, nullable=False),
    # Grows with each change: who writes says which one it saw.
    sa.Column("revision", sa.Integer, nullable=False),
    # The rest, as `Rollout.content` makes it.
    sa.Column("content", sa.JSON, nullable=False),
    sa.Index(
        "one_rollout_at_a_time",
        "model",
        unique=True,
        sqlite_where=sa.text("NOT ended"),
        postgresql_where=sa.text("NOT ended"),
    ),
)

policies = sa.Table(
    "policies",
    metadata,
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("objective", sa.String, nullable=False),
    sa.Column("deadline_ms", sa.Float, nullable=False),
    # A policy that an operator set is not overwritten by the next published package.
    sa.Column("by_operator", sa.Boolean, nullable=False, default=False),
    # JSON list of the regions that may serve the model; empty or null for any. Whose word they are is kept apart: who
    # changes a deadline has not said that the next package may not bind itself to a region.
    sa.Column("regions", sa.JSON),
    sa.Column("regions_by_operator", sa.Boolean, nullable=False, default=False),
)

# What an operator said that it costs to move data between regions; "*" stands for any other region.
transfer_prices = sa.Table(
    "transfer_prices",
    metadata,
    sa.Column("from_region", sa.String, primary_key=True),
    sa.Column("to_region", sa.String, primary_key=True),
    sa.Column("usd_per_gb", sa.Float, nullable=False),
)

# The regions that may answer the clients of a region; a region without a row may be answered by any.
residency = sa.Table(
    "residency",
    metadata,
    sa.Column("client_region", sa.String, primary_key=True),
    # JSON list, never empty.
    sa.Column("regions", sa.JSON, nullable=False),
)

# What becomes of a model that nobody asks for, and what has become of it. A model without a row is never given up.
idle = sa.Table(
    "idle",
    metadata,
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("unload_after_s", sa.Float, nullable=False),
    sa.Column("scale_to_zero_after_s", sa.Float, nullable=False),
    sa.Column("keep", sa.Integer, nullable=False),
    # A policy that an operator set is not overwritten by the next published package.
    sa.Column("by_operator", sa.Boolean, nullable=False, default=False),
    # Asleep: the deployment by which it was the wanted one when its replicas left, and, as JSON list, the nodes that
    # keep it. 0: it is awake. A newer deployment wakes it.
    sa.Column("deployment", sa.Integer, nullable=False, default=0),
    sa.Column("nodes", sa.JSON, nullable=False, default=list),
    # When it fell asleep or woke, seconds since the epoch.
    sa.Column("since_s", sa.Float, nullable=False, default=0.0),
)

# Federated runs. What stands in `content` may hold numbers that are none (of a training that came to nothing), which a
# database's own JSON does not take.
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    # It goes on by itself.
    sa.Column("active", sa.Boolean, nullable=False),
    # Grows with each change: who writes says which one it saw.
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
    sa.Column("idempotency_key", sa.String, unique=True),
    # The rest, as JSON of what `Run.content` makes.
    sa.Column("content", sa.Text, nullable=False),
    # The data team's own app, a FAB.
    sa.Column("app", sa.LargeBinary),
)

# The rounds of each run that have ended.
run_rounds = sa.Table(
    "run_rounds",
    metadata,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    # JSON of a RoundRecord.
    sa.Column("content", sa.Text, nullable=False),
    # The parameters after it, as .npz; kept of the newest rounds alone.
    sa.Column("arrays", sa.LargeBinary),
)

# The round under way of each run, for those control planes that do not lead.
run_progress = sa.Table(
    "run_progress",
    metadata,
    sa.Column("run", sa.String, primary_key=True),
    # JSON of a Progress.
    sa.Column("content", sa.Text, nullable=False),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at_s", sa.Float, nullable=False),
    sa.Column("actor", sa.String, nullable=False),
    sa.Column("action", sa.String, nullable=False),
    sa.Column("subject", sa.String, nullable=False),
    sa.Column("detail", sa.String, nullable=False),
)


# Which control plane decides; one row.
leadership = sa.Table(
    "leadership",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    # Grows with each change of the leader. Unique, so that PostgreSQL takes it for a key: a leader's transaction locks
    # the key alone, which a renewal need not wait for and a change of the leader must.
    sa.Column("term", sa.BigInteger, nullable=False, unique=True),
    # A control plane's id, and what tells its process from the one before.
    sa.Column("holder", sa.String, nullable=False),
    sa.Column("incarnation", sa.String, nullable=False),
    # By the database's clock.
    sa.Column("expires_at_s", sa.Float, nullable=False),
)

# Every leadership there was.
terms = sa.Table(
    "terms",
    metadata,
    sa.Column("term", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("holder", sa.String, nullable=False),
    sa.Column("since_s", sa.Float, nullable=False),
)

control_planes = sa.Table(
    "control_planes",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("public_address", sa.String, nullable=False),
    sa.Column("mesh_address", sa.String, nullable=False),
    sa.Column("http_address", sa.String, nullable=False),
    # By the database's clock.
    sa.Column("seen_at_s", sa.Float, nullable=False),
)

# What the leader decided last, for the others to serve: one row for each kind.
decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("term", sa.BigInteger, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
)


class Database:
    """Runs transactions on the control plane's state, one after another, off the event loop."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        # Whether other control planes write to it as well.
        self.shared = engine.dialect.name == "postgresql"
        # Where it is shared: the leadership that this process holds (0: none), and by what others know its writes.
        self.term: Callable[[], int] = _none_held
        self.author = ""
        self._closing = threading.Event()
        self._patience = postgresql.Patience(self._closing)
        self._thread = ThreadPoolExecutor(1, "database")

    @classmethod
    def open(cls, path: Path) -> Database:
        """The SQLite database in the file `path`, created or migrated to the present schema. Raises ConfigError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # One connection, which the database's thread uses after this one has migrated it.
        engine = sa.create_engine(
            f"sqlite:///{path}", poolclass=sa.pool.StaticPool, connect_args={"check_same_thread": False}
        )
        make_durable(engine)
        return cls._migrated(engine)

    @classmethod
    def at(cls, url: str) -> Database:
        """The PostgreSQL database at `url`, migrated to the present schema. Raises ConfigError, Unreachable."""
        with postgresql.said_plainly(url):
            return cls._migrated(postgresql.engine(url))

    @classmethod
    def _migrated(cls, engine: sa.Engine) -> Database:
        try:
            migrate(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    async def run(self, change: Callable[..., T], *args: Any) -> T:
        """`change(connection, *args)` in one transaction. What it wrote is on disk when this returns.

        Where the database is another process, `change` may run again when the connection broke on the way. Raises
        Unreachable when it stays away, also for a change of which nobody knows whether it was committed; and when this
        machine's disk refuses it.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, change, *args)

    async def run_as_leader(self, change: Callable[..., T], *args: Any, term: int | None = None) -> T:
        """The same for what the leader alone may write, decided in `term` (default: the present one).

        Raises NotLeader when that term is over by the time of the commit, and then nothing was written.
        """
        if not self.shared:
            return await self.run(change, *args)
        held = self.term() if term is None else term
        if not held:
            raise NotLeader("another control plane leads, or none does yet")
        return await self.run(_fenced, held, change, *args)

    def _transaction(self, change: Callable[..., T], *args: Any) -> T:
        if self.shared:
            return self._patience.keep_trying(lambda: self._shared(change, *args))
        try:
            with self._engine.begin() as connection:
                return change(connection, *args)
        except sa.exc.OperationalError as error:
            # Full, read-only or broken. Nothing was written, and what is known already goes on being served.
            raise Unreachable(
                f"the database cannot be used: {error.orig}; look at the disk that `data` is on"
            ) from error

    def _shared(self, change: Callable[..., T], *args: Any) -> T:
        try:
            return self._once(change, *args)
        except sa.exc.IntegrityError:
            # Another control plane inserted the same row between the look for it and the insert: look again.
            return self._once(change, *args)

    def _once(self, change: Callable[..., T], *args: Any) -> T:
        with postgresql.transaction(self._engine, self.author) as connection:
            return change(connection, *args)

    def close(self) -> None:
        """Waits for the transaction in progress."""
        self._closing.set()
        self._thread.shutdown(wait=True)
        self._engine.dispose()


def _none_held() -> int:
    return 0


def _fenced(connection: sa.Connection, term: int, change: Callable[..., T], *args: Any) -> T:
    """Nobody else can become the leader between this look and the commit."""
    held = sa.select(leadership.c.term).where(leadership.c.term == term)
    if connection.execute(held.with_for_update(read=True, key_share=True)).one_or_none() is None:
        raise NotLeader(f"another control plane leads: term {term} is over")
    return change(connection, *args)


def migrate(engine: sa.Engine) -> None:
    """Brings the schema to the newest revision. Raises ConfigError when it is newer than this program."""
    newest = max(path.name.partition("_")[0] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))
    with engine.begin() as connection:
        postgresql.one_at_a_time(connection)
        if _revision(connection) != newest:
            _upgrade(connection)


def _revision(connection: sa.Connection) -> str:
    """The schema's; empty where there is none yet."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar())


def _upgrade(connection: sa.Connection) -> None:
    # Not where there is nothing to be done, as at most starts: it takes a while to import.
    import alembic.command
    import alembic.config
    import alembic.util

    settings = alembic.config.Config()
    settings.set_main_option("script_location", str(_MIGRATIONS))
    settings.attributes["connection"] = connection
    try:
        alembic.command.upgrade(settings, "head")
    except alembic.util.CommandError as error:
        raise ConfigError(f"the database is of a newer control plane than this one ({error})") from None


def make_durable(engine: sa.Engine) -> None:
    """Every transaction whole and on disk, also one that changes the schema."""
    sa.event.listen(engine, "connect", _set_up)
    sa.event.listen(engine, "begin", _begin)


def _set_up(connection: Any, _record: Any) -> None:
    # Python's driver by itself begins a transaction before it changes rows, but not before it creates a table.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA busy_timeout = 5000")


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
