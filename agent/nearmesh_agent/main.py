"""`nearmesh-agent`: run a node, or try packages on this machine without a mesh."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import click
import uvloop

from nearmesh import __version__, config
from nearmesh.errors import ConfigError, MeshError
from nearmesh.process import configure_logging, stop_on_signals
from nearmesh_agent.config import Listen, NodeConfig

TOKEN_VARIABLE = "NEARMESH_JOIN_TOKEN"
# How the names of the threads begin that run engine calls.
ENGINE_THREADS = "engine-"


@click.group(invoke_without_command=True)
@click.option("--config", "path", type=click.Path(path_type=Path), help="The node.toml to run.")
@click.option("--data", type=click.Path(path_type=Path), help="Without --config: the node's folder.")
@click.option("--token", help=f"Join token, at the first start; {TOKEN_VARIABLE} and node.toml do as well.")
@click.option("--advertise-host", help="Without --config: host that clients reach this node at.")
@click.option("--log-level", default="info", show_default=True, help="debug, info, warning or error.")
@click.version_option(__version__)
@click.pass_context
def main(
    context: click.Context,
    path: Path | None,
    data: Path | None,
    token: str | None,
    advertise_host: str | None,
    log_level: str,
) -> None:
    """A node of a mesh: joins once, then serves the models that the control plane wants here.

    Without a subcommand it serves until SIGTERM or Ctrl-C.
    """
    configure_logging(log_level)
    if context.invoked_subcommand is not None:
        return
    try:
        node = _node_config(path, data, advertise_host)
        uvloop.run(_run(node, _token(token, node)))
    except* MeshError as group:
        raise click.ClickException("; ".join(_messages(group))) from None
    _leave_hung_engines()


def _node_config(path: Path | None, data: Path | None, advertise_host: str | None) -> NodeConfig:
    if path and (data or advertise_host):
        raise click.UsageError("--data and --advertise-host go without --config; in node.toml they are keys")
    if path:
        return config.load(NodeConfig, path)
    if not data:
        raise click.UsageError("give --config node.toml, or --data DIR for a node with the default settings")
    node = NodeConfig(data=data)
    return dataclasses.replace(node, advertise_host=advertise_host) if advertise_host else node


def _token(given: str | None, node: NodeConfig) -> str | None:
    token = given or os.environ.get(TOKEN_VARIABLE)
    if token or not node.join_token_file:
        return token
    try:
        return node.join_token_file.read_text("utf-8").strip()
    except FileNotFoundError:
        # It may be gone by now; only a node that has not joined yet needs it.
        return None
    except OSError as error:
        raise ConfigError(f"join_token_file: {error}") from None


async def _run(node: NodeConfig, token: str | None) -> None:
    from nearmesh_agent.server import serve  # ONNX Runtime takes a while to import; --help should not

    await serve(node, token, stop_on_signals())


def _leave_hung_engines() -> None:
    """Ends the process although an engine call has not come back: the interpreter would wait for its thread."""
    if any(thread.name.startswith(ENGINE_THREADS) for thread in threading.enumerate()):
        logging.shutdown()
        os._exit(0)


def _messages(group: BaseExceptionGroup[Any]) -> list[str]:
    found: list[str] = []
    for error in group.exceptions:
        found += _messages(error) if isinstance(error, BaseExceptionGroup) else [str(error)]
    return found


@main.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--listen", default="127.0.0.1:8001", show_default=True, help="host:port, loopback only.")
def serve(folders: tuple[Path, ...], listen: str) -> None:
    """Serve model packages from their FOLDERS without a mesh, without TLS, on loopback: for a first try."""
    try:
        uvloop.run(_serve_alone(folders, listen))
    except MeshError as error:
        raise click.ClickException(error.message) from None


async def _serve_alone(folders: tuple[Path, ...], listen: str) -> None:
    from nearmesh.packaging.build import build
    from nearmesh.packaging.sources import default_cache
    from nearmesh_agent.server import serve_alone

    stop = stop_on_signals()
    with tempfile.TemporaryDirectory(prefix="nearmesh-") as scratch:
        ready: dict[str, Path] = {}
        for folder in folders:
            artifact = await asyncio.to_thread(build, folder, default_cache())
            target = Path(scratch) / artifact.manifest.model
            target.mkdir()
            for file in artifact.manifest.files:
                _place(artifact.blobs[file.digest], target / file.title)
            ready[artifact.digest] = target
        await serve_alone(ready, NodeConfig(data=Path(scratch), listen=Listen(public=listen)), stop)


def _place(blob: Path | bytes, target: Path) -> None:
    if isinstance(blob, bytes):
        target.write_bytes(blob)
    else:
        shutil.copyfile(blob, target)
