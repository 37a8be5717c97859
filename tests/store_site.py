"""Nodes of one site in one process: stores that hand each other blobs through the real servicer, without sockets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearmesh_agent.config import StoreConfig
from nearmesh_agent.store.blobs import BlobServicer
from nearmesh_agent.store.store import ModelStore

from nearmesh.chunks import Chunk, ChunkIndex
from nearmesh.errors import Unreachable
from nearmesh.oci import digest_bytes
from nearmesh.v1 import blob_pb2
from nearmesh.v1 import node_pb2 as pb
from tests.fake_registry import FakeRegistry, manifest_of

CHUNK_BYTES = 128 * 1024


def cut(data: bytes, size: int = CHUNK_BYTES) -> tuple[Chunk, ...]:
    parts = [(at, data[at : at + size]) for at in range(0, len(data), size)]
    return tuple(Chunk(at, len(part), digest_bytes(part)) for at, part in parts)


@dataclass(slots=True)
class Model:
    """A version with one large file, and the registry that has it."""

    weights: bytes
    version: str = "1"
    indexed: bool = True
    manifest: bytes = field(init=False)
    index: bytes | None = field(init=False)

    def __post_init__(self) -> None:
        files = {digest_bytes(self.weights): cut(self.weights)}
        self.index = ChunkIndex(files).to_bytes() if self.indexed else None
        self.manifest = manifest_of(self.files, self.version, self.index).to_bytes()

    @classmethod
    def of(cls, size_bytes: int, seed: int = 1, **more: Any) -> Model:
        return cls(random.Random(seed).randbytes(size_bytes), **more)

    @property
    def files(self) -> dict[str, bytes]:
        return {"model.toml": b"name", "weights.onnx": self.weights}

    @property
    def digest(self) -> str:
        return digest_bytes(self.manifest)

    @property
    def blob(self) -> str:
        """The large file's digest."""
        return digest_bytes(self.weights)

    def registry(self) -> FakeRegistry:
        return FakeRegistry(self.manifest, self.files, *([self.index] if self.index else []))


@dataclass(slots=True, eq=False)
class Node:
    """A store, its servicer, and what goes wrong with it."""

    name: str
    store: ModelStore
    servicer: BlobServicer
    registry: FakeRegistry
    # What the control plane says of it.
    pulling: bool = False
    whole: bool = False
    dead: bool = False
    # Every byte of what it hands on is another one.
    lies: bool = False
    asked: list[blob_pb2.ReadBlobRequest] = field(default_factory=list)


class LocalPeer:
    """A node as the others reach it."""

    def __init__(self, node: Node, loop: asyncio.AbstractEventLoop) -> None:
        self._node = node
        self._loop = loop

    def open(self, digest: str, offset: int, size: int, wait_s: float) -> LocalReader:
        if self._node.dead:
            raise Unreachable(f"{self._node.name} is dead")
        request = blob_pb2.ReadBlobRequest(digest=digest, offset=offset, size=size, wait_s=wait_s)
        self._node.asked.append(request)
        return LocalReader(self._node, self._node.servicer.Read(request, None), self._loop)

    def here(self, digests: Collection[str]) -> Mapping[str, Sequence[tuple[int, int]]]:
        if self._node.dead:
            raise Unreachable(f"{self._node.name} is dead")
        question = self._node.servicer.Here(blob_pb2.HereRequest(digests=digests), None)
        answer = asyncio.run_coroutine_threadsafe(question, self._loop).result(10)
        found: dict[str, list[tuple[int, int]]] = {}
        for each in answer.ranges:
            found.setdefault(each.digest, []).append((each.offset, each.offset + each.size))
        return found

    def break_off(self) -> None:
        pass

    def close(self) -> None:
        pass


class LocalReader:
    def __init__(self, node: Node, answers: AsyncIterator[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._node, self._answers, self._loop = node, answers, loop
        self._rest = b""

    def readinto(self, view: memoryview) -> int:
        if self._node.dead:
            raise Unreachable(f"{self._node.name} died")
        if not self._rest:
            more = asyncio.run_coroutine_threadsafe(_next(self._answers), self._loop).result(30)
            self._rest = bytes(255 - byte for byte in more) if self._node.lies else more
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._answers.aclose(), self._loop)  # type: ignore[attr-defined]


async def _next(answers: AsyncIterator[Any]) -> bytes:
    answer = await anext(answers, None)
    return answer.data if answer else b""


class Site:
    """All nodes know of each other at once, as the control plane tells them; `same_site` False makes them a region."""

    def __init__(self, folder: Path, model: Model) -> None:
        self._folder = folder
        self.model = model
        self.nodes: dict[str, Node] = {}
        self.same_site = True

    def add(self, name: str, registry: FakeRegistry | None = None, config: StoreConfig | None = None) -> Node:
        store = ModelStore(self._folder / name, config, me=name)
        node = Node(name, store, BlobServicer(store.shelf), registry or self.model.registry())
        self.nodes[name] = node
        return node

    async def pull(self, node: Node, model: Model | None = None) -> Path:
        wanted = model or self.model
        node.pulling = True
        _, folder = await node.store.pull("m", wanted.digest, node.registry, peers=_Peers(self, node))
        assert (folder / "weights.onnx").read_bytes() == wanted.weights
        return folder

    def sent_bytes(self, blob: str) -> int:
        """Of a blob, what came from registries."""
        return sum(size for node in self.nodes.values() for digest, _, size in node.registry.reads if digest == blob)


class _Peers:
    def __init__(self, site: Site, me: Node) -> None:
        self._site, self._me = site, me
        self._loop = asyncio.get_running_loop()

    def of(self, digest: str) -> list[pb.Holder]:
        return [
            pb.Holder(node=node.name, same_site=self._site.same_site, whole=node.whole)
            for node in self._site.nodes.values()
            if node is not self._me and (node.whole or node.pulling)
        ]

    def connect(self, holder: pb.Holder) -> LocalPeer:
        return LocalPeer(self._site.nodes[holder.node], self._loop)


@asynccontextmanager
async def site(folder: Path, model: Model, *names: str) -> AsyncIterator[Site]:
    """With these nodes; their threads are ended."""
    found = Site(folder, model)
    for name in names:
        found.add(name)
    try:
        yield found
    finally:
        for node in found.nodes.values():
            node.store.close()
