"""`python -m benchmarks.pull.registry '{...}'`: the control plane's pull API over HTTPS with one large version, in a
process of its own. Prints a line of JSON when it serves."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.catalog.signing import Signing
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.registry.server_certificate import ServerCertificate
from nearmesh_controlplane.web.peer import HttpsServer
from nearmesh_controlplane.web.registry_api import application

from nearmesh import chunks
from nearmesh.devmesh.ports import free_ports
from nearmesh.oci import CONFIG_TYPE, WEIGHT_CONFIG_TYPE, WEIGHT_TYPE, Descriptor, Manifest, digest_bytes, digest_file
from nearmesh.oci_layout import Layout
from nearmesh.package import RoutePolicy
from nearmesh.process import stop_on_signals
from nearmesh.tls import Credentials

MESH, MODEL = "pull-mesh", "large"
_PART_BYTES = 16 * 2**20


async def main(asked: dict[str, Any]) -> None:
    folder = Path(asked["folder"])
    authority = Authority.open(MESH, folder / "authority")
    layout, (port,) = Layout(folder / "oci"), free_ports(1)
    manifest = await asyncio.to_thread(_version, layout, folder, asked["size_bytes"])
    data = manifest.to_bytes()
    layout.add_manifest(data, digest_bytes(data), f"{MODEL}:1")
    db = Database.open(folder / "state.db")
    catalog = Catalog(db, Generation())
    await catalog.add(manifest, digest_bytes(data), RoutePolicy(), _stored)
    certificate = ServerCertificate(authority, folder / "server", "127.0.0.1")
    server = HttpsServer(
        application(
            layout,
            catalog,
            Signing(MESH, authority.model_key, layout),
            mesh=MESH,
            verifier=authority.verifier(),
            removed=frozenset,
        ),
        address=f"127.0.0.1:{port}",
        certificate=certificate.folder / Credentials.CERTIFICATE,
        key=certificate.folder / Credentials.KEY,
        ca=certificate.folder / Credentials.CA,
    )
    stop = stop_on_signals()
    serving = asyncio.create_task(server.run_until_stopped())
    while not server.started:  # noqa: ASYNC110  # it tells nobody
        await asyncio.sleep(0.01)
    weights = max(manifest.files, key=lambda file: file.size_bytes)
    print(json.dumps({"port": port, "digest": digest_bytes(data), "blob": weights.digest}), flush=True)
    await stop.wait()
    server.should_exit = True
    await serving
    db.close()


def _version(layout: Layout, folder: Path, size_bytes: int) -> Manifest:
    """Of bytes that no two chunks share, with an index."""
    path, random = folder / "weights", np.random.default_rng(1)
    with path.open("wb") as file:
        for at in range(0, size_bytes, _PART_BYTES):
            file.write(random.bytes(min(_PART_BYTES, size_bytes - at)))
    weights = Descriptor(WEIGHT_TYPE, digest_file(path), size_bytes, "weights.onnx")
    index = chunks.index([(weights.digest, path)]).to_bytes()
    small = {
        Descriptor(CONFIG_TYPE, digest_bytes(b"{}"), 2): b"{}",
        Descriptor(WEIGHT_CONFIG_TYPE, digest_bytes(b"name"), 4, "model.toml"): b"name",
        Descriptor(chunks.CHUNKS_TYPE, digest_bytes(index), len(index), "nearmesh.chunks.json"): index,
    }
    config, toml, listed = small
    for blob, data in small.items():
        writer = layout.writer(blob)
        writer.write(data)
        writer.commit()
    writer = layout.writer(weights)
    with path.open("rb") as file:
        while part := file.read(_PART_BYTES):
            writer.write(part)
    writer.commit()
    path.unlink()
    return Manifest(MODEL, "1", config, (toml, weights), listed)


async def _stored() -> None:
    pass


if __name__ == "__main__":
    uvloop.run(main(json.loads(sys.argv[1])))
