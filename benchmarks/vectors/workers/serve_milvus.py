"""Becomes a Milvus server: `serve_milvus.py PROGRAMS DATA PORT...`; the first port is for callers.

The package's own `milvus-server` takes other ports at its second start, while connections to the first ones linger, and
its etcd always the usual pair of ports, of which a machine has one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import milvus


def main(programs: Path, data: Path, ports: list[int]) -> None:
    config = milvus.MilvusServerConfig(data_dir=str(data))
    names = [name for name in config.configurable_items if name.endswith("_port") and name != "proxy_port"]
    callers, health, clients, peers, *others = ports
    if not (data / "configs").exists():
        milvus._initialize_data_files(str(programs))
        config.update(proxy_port=callers, **dict(zip(names, others, strict=True)))
        config.resolve()
        (data / "etcd.yaml").write_text(_etcd(data, f"http://127.0.0.1:{clients}", f"http://127.0.0.1:{peers}"))
    environment = {
        **os.environ,
        "DEPLOY_MODE": "STANDALONE",
        "METRICS_PORT": str(health),
        "ETCD_CONFIG_PATH": str(data / "etcd.yaml"),
        "ETCD_ENDPOINTS": f"127.0.0.1:{clients}",
        "MILVUS_RUN_DIR": str(data / "run"),
        "LD_LIBRARY_PATH": str(programs / "bin"),
    }
    os.chdir(data)
    os.execve(programs / "bin" / "milvus", ["milvus", "run", "standalone"], environment)


def _etcd(data: Path, clients: str, peers: str) -> str:
    return f"""\
name: default
data-dir: {data / "etcd"}
listen-client-urls: {clients}
advertise-client-urls: {clients}
listen-peer-urls: {peers}
initial-advertise-peer-urls: {peers}
initial-cluster: default={peers}
"""


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(port) for port in sys.argv[3:]])
