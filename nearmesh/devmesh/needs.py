"""Whether this installation can run the local mesh, which needs every part of Nearmesh and the checkout's models."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from nearmesh.devmesh.children import script
from nearmesh.devmesh.samples import CHECKOUT
from nearmesh.errors import ConfigError
from nearmesh.gateway.envoy import envoy_binary

# What the extra `dev` brings beyond the library, by the name that is imported.
MODULES = {"tomli_w": "tomli-w", "PIL": "pillow", "onnxruntime": "onnxruntime"}
# And with vectors on its nodes.
VECTOR_MODULES = {
    "faiss": "faiss-cpu",
    "milvus_lite": "milvus-lite",
    "pymilvus": "pymilvus",
    "tantivy": "tantivy",
    "tokenizers": "tokenizers",
}
PROGRAMS = ("nearmesh-agent", "nearmesh-controlplane")


def check_needs(modules: Iterable[str] = MODULES, programs: Iterable[str] = PROGRAMS, root: Path = CHECKOUT) -> None:
    """Raises ConfigError that names all that is missing, and the command that brings it."""
    known = {**MODULES, **VECTOR_MODULES}
    missing = [known.get(name, name) for name in modules if importlib.util.find_spec(name) is None]
    missing += [name for name in programs if not Path(script(name)).exists()]
    if not (root / "models").is_dir():
        raise ConfigError(
            f"the local mesh serves the packages in models/ of a checkout, and {root} is none; "
            "clone the project and run `make up` there"
        )
    if missing:
        raise ConfigError(f"the local mesh needs {', '.join(missing)} as well: run `make setup` in the checkout")
    envoy_binary()
