"""`nearmesh dev`: the whole mesh on this machine, three regions and the WAN between them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from nearmesh.devmesh.folder import MESH_FILE
from nearmesh.errors import MeshError, NotFound
from nearmesh.process import holder, stop_on_signals

DEFAULT_FOLDER = Path(".nearmesh/dev")
# `down` waits this long for the mesh to end in order.
DOWN_WITHIN_S = 40.0

_console = Console(highlight=False)

_folder = click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_FOLDER,
    show_default=True,
    envvar="NEARMESH_MESH",
    show_envvar=True,
    help="Where the local mesh keeps its state and its logs.",
)


@click.group()
def dev() -> None:
    """The whole mesh on this machine: three regions, real models, an emulated WAN."""


@dev.command()
@_folder
@click.option("--once", is_flag=True, help="Stop after the table; exit 1 if any row is wrong.")
@click.option("--no-tour", is_flag=True, help="Only start the mesh; ask the models nothing.")
@click.option("--vectors", is_flag=True, help="Nodes keep vectors, and serve an encoder of texts; some seconds more.")
@click.option("--json", "as_json", is_flag=True, help="With --once: the table's rows as JSON on stdout.")
def up(folder: Path, once: bool, no_tour: bool, vectors: bool, as_json: bool) -> None:
    """Start the mesh, ask every model through every way in, and stay up until Ctrl-C."""
    from nearmesh.devmesh.needs import MODULES, VECTOR_MODULES, check_needs

    check_needs({**MODULES, **VECTOR_MODULES} if vectors else MODULES)
    console = Console(stderr=True, highlight=False) if as_json else _console
    wanted = {"once": once, "tour": not no_tour, "vectors": vectors, "as_json": as_json}
    raise SystemExit(asyncio.run(_up(folder, console=console, **wanted)))


async def _up(folder: Path, *, console: Console, **wanted: bool) -> int:
    stop = stop_on_signals()
    started = time.monotonic()

    def say(line: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:5.1f} s[/]  {line}", soft_wrap=True)

    running = asyncio.create_task(_stay(folder, console=console, say=say, **wanted))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not running.done():
        say("stopping every process")
        running.cancel()
    try:
        return await running
    except asyncio.CancelledError:
        return 0
    finally:
        say("stopped")


async def _stay(
    folder: Path, *, once: bool, tour: bool, vectors: bool, as_json: bool, console: Console, say: Any
) -> int:
    from nearmesh.devmesh.mesh import local_mesh

    async with local_mesh(folder, say, vectors=vectors) as mesh:
        say("the mesh is up")
        wrong = await _tour(mesh.plan.folder, as_json=as_json, console=console) if tour else 0
        if once:
            return 1 if wrong else 0
        _next_steps(console, mesh)
        await mesh.keep_running()
        return 0


async def _tour(folder: Path, *, as_json: bool, console: Console) -> int:
    """Shows the table; how many of its rows are wrong."""
    from dataclasses import asdict

    from nearmesh.devmesh import tour

    rows = await tour.tour(folder)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        # Wide enough for every column when the output is no terminal.
        wide = console if console.is_terminal else Console(highlight=False, width=200)
        wide.print(tour.table(rows))
    wrong = sum(not row.correct for row in rows)
    console.print(f"{len(rows) - wrong} of {len(rows)} rows right")
    return wrong


def _next_steps(console: Console, mesh: Any) -> None:
    region, child = next(iter(mesh.nodes.items()))
    gateway = f"127.0.0.1:{mesh.plan.gateways[region]}"
    console.print(
        f"""
The mesh stays up until Ctrl-C. In another terminal (after `. .venv/bin/activate`):
  nearmesh status                                              what runs where
  nearmesh route explain --from {region} --model file-type   why a request goes where it goes
  nearmesh node price {child.name} 0.1                 make a region cheap, and ask again
  nearmesh dev kill {child.name}                       kill -9; nobody sees an error, and it comes back
  nearmesh infer file-type --help                              ask a model from the command line{_training(mesh)}{
            _retrieval(mesh, child.name)
        }
A stock tritonclient reaches every model at {gateway} (the gateway in {region}).
Addresses and process ids are in {mesh.plan.folder}/{MESH_FILE}, logs in {mesh.plan.folder}/logs.""",
        soft_wrap=True,
    )


def _training(mesh: Any) -> str:
    if not mesh.plan.trains:
        return ""
    return "\n  nearmesh run start --model digits --rounds 3                 train a model where the data are"


def _retrieval(mesh: Any, node: str) -> str:
    if not mesh.plan.vectors:
        return ""
    return f"""
  export NEARMESH_NODE={node}        the node that `nearmesh vectors` speaks to
  nearmesh vectors create docs --embedder sentence-encoder
  nearmesh vectors import docs --collection docs               the project's own documents
  nearmesh vectors retrieve docs 'how is a model published?'"""


@dev.command()
@_folder
def down(folder: Path) -> None:
    """Stop the mesh that runs in the folder."""
    pid = _supervisor(folder)
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + DOWN_WITHIN_S
    while holder(folder) == pid:
        if time.monotonic() > until:
            raise MeshError(f"the mesh (pid {pid}) has not ended within {DOWN_WITHIN_S:.0f} s")
        time.sleep(0.1)
    click.echo("stopped")


@dev.command()
@_folder
@click.option("--json", "as_json", is_flag=True, help="mesh.json, with `up` for each process.")
def status(folder: Path, as_json: bool) -> None:
    """What runs, and where."""
    from rich.table import Table

    state = _state(folder)
    processes = [("control-plane", state["control_plane"]["grpc"], state["control_plane"]["pid"])]
    processes += [(name, node["public"], node["pid"]) for name, node in state["nodes"].items()]
    processes += [(f"gateway-{region}", g["address"], g["pid"]) for region, g in state["gateways"].items()]
    if as_json:
        rows = [{"name": name, "address": address, "pid": pid, "up": _alive(pid)} for name, address, pid in processes]
        click.echo(json.dumps({"mesh": state, "processes": rows}, indent=1))
        return
    found = Table("process", "address", "pid", "state")
    for name, address, pid in processes:
        found.add_row(name, address, str(pid), "up" if _alive(pid) else "[red]down[/]")
    _console.print(found)


@dev.command()
@click.argument("name")
@_folder
def kill(name: str, folder: Path) -> None:
    """kill -9 a process, such as node-us-east1; it comes back after a few seconds."""
    os.kill(_pid(folder, name), signal.SIGKILL)
    click.echo(f"{name} is killed")


@dev.command()
@click.argument("name")
@_folder
@click.option("--kill", "hard", is_flag=True, help="kill -9 instead of SIGTERM.")
def stop(name: str, folder: Path, hard: bool) -> None:
    """Stop a process, such as control-plane; it stays down until `nearmesh dev start`."""
    pid = _pid(folder, name)
    marker = _down_marker(folder, name)
    marker.parent.mkdir(exist_ok=True)
    marker.touch()
    os.kill(pid, signal.SIGKILL if hard else signal.SIGTERM)
    click.echo(f"{name} is told to stop; `nearmesh dev start {name}` brings it back")


@dev.command()
@click.argument("name")
@_folder
def start(name: str, folder: Path) -> None:
    """Bring back a process that `nearmesh dev stop` took down."""
    marker = _down_marker(folder, name)
    if not marker.exists():
        raise NotFound(f"{name} was not stopped with `nearmesh dev stop`")
    marker.unlink()
    click.echo(f"{name} is about to start")


def _down_marker(folder: Path, name: str) -> Path:
    from nearmesh.devmesh.mesh import DOWN_FOLDER

    return folder / DOWN_FOLDER / name


def _state(folder: Path) -> dict[str, Any]:
    _supervisor(folder)
    try:
        found: dict[str, Any] = json.loads((folder / MESH_FILE).read_text())
    except FileNotFoundError:
        raise NotFound(f"the mesh in {folder} is still starting") from None
    return found


def _pid(folder: Path, name: str) -> int:
    state = _state(folder)
    known = {"control-plane": state["control_plane"]["pid"], "wan": state["wan"]["pid"]}
    known |= {node: entry["pid"] for node, entry in state["nodes"].items()}
    known |= {f"gateway-{region}": entry["pid"] for region, entry in state["gateways"].items()}
    if name not in known:
        raise NotFound(f"no process {name!r}; there are {', '.join(known)}")
    pid: int = known[name]
    if not pid or not _alive(pid):
        raise NotFound(f"{name} is not running")
    return pid


def _supervisor(folder: Path) -> int:
    """The process that runs the mesh in `folder`. Raises NotFound."""
    pid = holder(folder)
    if pid is None:
        raise NotFound(f"no mesh runs in {folder}; `make up` or `nearmesh dev up` starts one")
    return pid


def _alive(pid: int) -> bool:
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
