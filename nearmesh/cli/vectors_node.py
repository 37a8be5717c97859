"""Which node a `nearmesh vectors` command speaks to: by its id, its address, or the only one that keeps vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nearmesh.cli.session import Session
from nearmesh.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from nearmesh.client.vectors import Collection, VectorClient

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the command line says of it."""

    node: str | None = None
    address: str | None = None
    namespace: str = ""


def node_options(command: F) -> F:
    """`--node`, `--address` and `--namespace`, as one argument `target`."""

    def targeted(*arguments: Any, node: str | None, address: str | None, namespace: str, **given: Any) -> Any:
        return command(*arguments, target=Target(node=node, address=address, namespace=namespace), **given)

    targeted.__name__, targeted.__doc__ = command.__name__, command.__doc__
    # Options that the command has already.
    targeted.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(
        (
            click.option("--node", envvar="NEARMESH_NODE", show_envvar=True, metavar="ID", help="The node to ask."),
            click.option("--address", metavar="HOST:PORT", help="Its public listener, where that is to be said."),
            click.option("--namespace", default="", metavar="NAME", help="Whose collections.  [default: one's own]"),
        )
    ):
        option(targeted)
    return targeted  # type: ignore[return-value]


def ask(session: Session, target: Target, work: Callable[[VectorClient], Awaitable[T]]) -> T:
    """Runs `work` with a connection to the node. Raises MeshError."""

    async def run() -> T:
        async with await client(session, target) as vectors:
            return await work(vectors)

    return asyncio.run(run())


def ask_collection(session: Session, target: Target, name: str, work: Callable[[Collection], Awaitable[T]]) -> T:
    """The same with one of its collections."""
    return ask(session, target, lambda vectors: work(vectors.collection(name, namespace=target.namespace)))


async def client(session: Session, target: Target) -> VectorClient:
    """To be entered with `async with`. Raises NotFound, InvalidInput where there are several."""
    from nearmesh.client.vectors import VectorClient
    from nearmesh.ids import node_server_name
    from nearmesh.tokens import mesh_of

    place = session.place
    node, address = target.node, target.address
    if not address:
        node, address = _chosen(await _keepers(session), node)
    mesh = mesh_of(place.token)
    return VectorClient(
        address, place.ca_pem, place.token, server_name=node_server_name(mesh, node) if node and mesh else ""
    )


async def _keepers(session: Session) -> dict[str, str]:
    """Nodes that keep vectors, and their public listeners."""
    local = session.place.state.get("nodes")
    if isinstance(local, Mapping):
        return {name: node["public"] for name, node in local.items() if node.get("vectors")}
    async with session.dial() as admin:
        nodes = await admin.vector_nodes()
    return {node.node: node.address for node in nodes if node.live}


def _chosen(keepers: Mapping[str, str], node: str | None) -> tuple[str, str]:
    if not keepers:
        raise NotFound("no node of this mesh keeps vectors: set `enabled` under [vectors] in a node's node.toml")
    names = ", ".join(sorted(keepers))
    if node is None and len(keepers) > 1:
        raise InvalidInput(f"several nodes keep vectors ({names}): name one with --node, or in NEARMESH_NODE")
    node = node or next(iter(keepers))
    if node not in keepers:
        raise NotFound(f"node {node!r} keeps no vectors, or is away; there are {names}")
    return node, keepers[node]
