"""What each rival is installed from."""

from __future__ import annotations

from benchmarks.serving.environments import Environment


def _environment(name: str, *packages: str, system_python: bool = False) -> Environment:
    return Environment(name=name, packages=packages, shared=("numpy",), system_python=system_python)


ENVIRONMENTS = {
    found.name: found
    for found in (
        # Its IVF and HNSW indexes are faiss's; without that it only compares with every row.
        _environment("milvus-lite", "milvus-lite==3.2.2", "pymilvus==3.0.2", "faiss-cpu==1.15.1"),
        _environment("milvus", "milvus==2.3.5", "pymilvus==3.0.2"),
        _environment("lancedb", "lancedb==0.40.0", "pyarrow==26.0.1"),
        _environment("qdrant-local", "qdrant-client==1.20.0"),
        # An SQLite that loads extensions; not every build of Python has one, the system's does.
        _environment("sqlite-vec", "sqlite-vec==0.1.9", system_python=True),
    )
}
