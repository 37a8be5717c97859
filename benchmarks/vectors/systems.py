"""The stores that are compared: what each is, how it is set, and what it means by "written"."""

from __future__ import annotations

from dataclasses import dataclass

OURS = "nearmesh"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One store of the comparison; its settings are in `workers/keep_NAME.py`."""

    name: str
    # For the page: what it is and how it is set.
    about: str
    # What is on disk when a write has been acknowledged.
    written: str
    # Of `ENVIRONMENTS`; empty: this one.
    environment: str = ""
    # Whether it is a process of its own, that callers reach through gRPC.
    server: bool = False


SYSTEMS = {
    found.name: found
    for found in (
        System(
            name=OURS,
            about="this project's agent with `[vectors]` enabled, asked through gRPC with TLS and a token. A process "
            "of its agent's own keeps journal, index and Milvus Lite; the index chooses its effort itself, for a "
            "recall of 0.99 on queries that it makes up. The texts are indexed by their words, too",
            written="in the journal, fsynced",
            server=True,
        ),
        System(
            name="milvus-lite",
            about="Milvus Lite by itself, in its caller's process: IVF_FLAT of 512 lists, nprobe chosen (its "
            "HNSW takes ten times as long to build, and answers no sooner)",
            written="in its log, not fsynced",
            environment="milvus-lite",
        ),
        System(
            name="milvus",
            about="Milvus standalone, from PyPI, asked through gRPC without TLS or token: HNSW with M 16 and "
            "efConstruction 200, ef chosen, bounded consistency",
            written="in its message queue, RocksDB",
            environment="milvus",
            server=True,
        ),
        System(
            name="lancedb",
            about="LanceDB in its caller's process: IVF_FLAT of 316 partitions, nprobes chosen, a bitmap index for the "
            "filter; written 5,000 rows at a time, for it makes a file of each write",
            written="in a file, not fsynced",
            environment="lancedb",
        ),
        System(
            name="qdrant-local",
            about="Qdrant's local mode in its caller's process; it compares with every row, in NumPy",
            written="in SQLite",
            environment="qdrant-local",
        ),
        System(
            name="sqlite-vec",
            about="sqlite-vec in its caller's process, a connection for each caller; it compares with every row",
            written="in SQLite's log, fsynced",
            environment="sqlite-vec",
        ),
    )
}
