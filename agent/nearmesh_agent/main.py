"""`nearmesh-agent`: run a node, or try packages on this machine without a mesh."""

from __future__ import annotations

import asyncio
import faulthandler
import importlib
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import uvloop

from nearmesh import __version__, config
from nearmesh.errors import ConfigError, MeshError
from nearmesh.process import configure_logging, rare_collections, stop_on_signals
from nearmesh_agent.config import Listen, NodeConfig
from nearmesh_agent.notice.file import THREAD
from nearmesh_agent.serving import memory
from nearmesh_agent.store.threads import READER_THREADS

TOKEN_VARIABLE = "NEARMESH_JOIN_TOKEN"
# How the names of the threads begin that load engines and run their calls.
ENGINE_THREADS = "engine-"
# How the names of the options begin that are keys of node.toml's [listen].
LISTEN = "listen_"


@click.group(invoke_without_command=True)
@click.option("--config", "path", type=click.Path(path_type=Path), help="The node.toml to run.")
@click.option("--token", help=f"Join token, at the first start; {TOKEN_VARIABLE} and node.toml do as well.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="The node's folder; this and what follows go without --config."
)
@click.option("--advertise-host", metavar="IP", help="Where clients reach this node. [default: found out]")
@click.option("--listen-public", metavar="HOST:PORT", help=f"For clients. [default: {Listen().public}]")
@click.option("--listen-mesh", metavar="HOST:PORT", help=f"For gateways and nodes. [default: {Listen().mesh}]")
@click.option("--listen-metrics", metavar="HOST:PORT", help=f"For Prometheus. [default: {Listen().metrics}]")
@click.option("--usd-per-hour", type=click.FloatRange(0), help="What this machine costs. [default: 0]")
@click.option("--spot", is_flag=True, default=None, help="This machine is bought on spot terms.")
@click.option("--machine-type", help="What the cloud calls this kind of machine; price feeds look it up.")
@click.option("--log-level", default="info", show_default=True, help="debug, info, warning or error.")
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context, /, path: Path | None, token: str | None, log_level: str, **settings: Any) -> None:
    """A node of a mesh: joins once, then serves the models that the control plane wants here.

    Without a subcommand it serves until SIGTERM or Ctrl-C.
    """
    configure_logging(log_level)
    if context.invoked_subcommand is not None:
        return
    memory.use_one_arena()
    if sys.__stderr__:
        # The native runtime of a model may crash: where it was is in the log then, and nowhere else.
        faulthandler.enable(sys.__stderr__)
    try:
        node = _node_config(path, {name: value for name, value in settings.items() if value is not None})
        uvloop.run(_run(node, _token(token, node)))
    except* MeshError as group:
        raise click.ClickException("; ".join(_messages(group))) from None
    _leave_what_hangs()


def _node_config(path: Path | None, settings: dict[str, Any]) -> NodeConfig:
    """From the file, or from the options that stand for its most usual keys."""
    if path and settings:
        options = ", ".join("--" + name.replace("_", "-") for name in settings)
        raise click.UsageError(f"{options} cannot go with --config; in node.toml they are keys")
    if path:
        return config.load(NodeConfig, path)
    if "data" not in settings:
        raise click.UsageError("give --config node.toml, or --data DIR for a node with the default settings")
    listen = {key.removeprefix(LISTEN): settings.pop(key) for key in list(settings) if key.startswith(LISTEN)}
    return NodeConfig(listen=Listen(**listen), **settings)


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
    await _server().serve(node, token, stop_on_signals())


def _server() -> ModuleType:
    """ONNX Runtime takes a while to import, and --help should not. Raises ConfigError where there is none."""
    try:
        server = importlib.import_module("nearmesh_agent.server")
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise ConfigError("there is no ONNX Runtime: pip install 'nearmesh-agent[cpu]' or '...[gpu]'") from None
    rare_collections()
    return server


def _leave_what_hangs() -> None:
    """Ends the process although an engine call, a load or a disk has not come back; the interpreter would wait."""
    if any(thread.name.startswith((ENGINE_THREADS, THREAD, READER_THREADS)) for thread in threading.enumerate()):
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
    memory.use_one_arena()
    try:
        uvloop.run(_serve_alone(folders, listen))
    except MeshError as error:
        raise click.ClickException(error.message) from None
    _leave_what_hangs()


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("cases", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("answers", type=click.Path(path_type=Path))
@click.option("--variant", "variants", multiple=True, metavar="[STEP:]NAME", help="The one to run; may be repeated.")
def evaluate(folder: Path, cases: Path, answers: Path, variants: tuple[str, ...]) -> None:
    """Answer the CASES of an .npz file by the package in FOLDER, as a node would.

    The answers go to the file ANSWERS, how fast they were to stdout: what `nearmesh model evaluate` asks for.
    """
    chosen = {step: name for step, _, name in (variant.rpartition(":") for variant in variants)}
    try:
        _server()
        found = importlib.import_module("nearmesh_agent.evaluate").of_folder(folder, cases, answers, chosen)
    except MeshError as error:
        raise click.ClickException(error.message) from None
    click.echo(json.dumps(found))


async def _serve_alone(folders: tuple[Path, ...], listen: str) -> None:
    from nearmesh.packaging.build import build
    from nearmesh.packaging.sources import default_cache

    server = _server()
    stop = stop_on_signals()
    with tempfile.TemporaryDirectory(prefix="nearmesh-") as scratch:
        ready: dict[str, Path] = {}
        for folder in folders:
            artifact = await asyncio.to_thread(build, folder, default_cache(), draft=True, workshop=False)
            target = Path(scratch) / artifact.manifest.model
            target.mkdir()
            for file in artifact.manifest.files:
                _place(artifact.blobs[file.digest], target / file.title)
            ready[artifact.digest] = target
        await server.serve_alone(ready, NodeConfig(data=Path(scratch), listen=Listen(public=listen)), stop)


def _place(blob: Path | bytes, target: Path) -> None:
    if isinstance(blob, bytes):
        target.write_bytes(blob)
    else:
        shutil.copyfile(blob, target)
