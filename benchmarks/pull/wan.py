"""A version of a gigabyte over an emulated WAN: one node in three ways, through ten cuts, and three nodes of a site."""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from nearmesh_controlplane.registry.authority import Authority

from benchmarks.pull.registry import MESH
from nearmesh.devmesh.ports import free_ports
from nearmesh.devmesh.wan.control import ControlClient
from nearmesh.ids import MachineId
from nearmesh.process import leashed
from nearmesh.tls import Credentials, certificate_request, key_to_pem, new_key

LINK = "wan"
NAMES = ("node-a", "node-b", "node-c")
CUTS, CUT_S = 10, 0.2
# Of a bare reader; the better one counts.
CONNECTIONS = (8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is measured, and over which WAN."""

    size_bytes: int = 2**30
    rounds: int = 3
    round_trip_ms: float = 40.0
    mbit_s: float = 1000.0
    # What one connection may have under way: TCP's window. Half of it in the proxy, which delays each direction.
    window_bytes: int = 2**20


@dataclass(slots=True)
class Bench:
    """A registry behind a WAN, and credentials for nodes."""

    folder: Path
    settings: Settings
    control: ControlClient
    url: str
    digest: str
    blob: str

    async def crossed_bytes(self) -> int:
        """What came over the WAN so far, to all nodes."""
        return int((await self.control.send("stats"))["links"][LINK]["bytes_down"])


class Process:
    """A child that speaks by lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, module: str, *arguments: str) -> Process:
        command = leashed([sys.executable, "-m", module, *arguments])
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=2**20))

    async def line(self) -> str:
        assert self._process.stdout
        found = (await self._process.stdout.readline()).decode()
        if not found:
            raise RuntimeError(f"a child ended with {await self._process.wait()}")
        return found

    def say(self) -> None:
        assert self._process.stdin
        self._process.stdin.write(b"go\n")

    async def end(self) -> None:
        if self._process.returncode is None:
            assert self._process.stdin
            self._process.stdin.close()
            try:
                async with asyncio.timeout(10):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()


@asynccontextmanager
async def bench(folder: Path, settings: Settings) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        asked = {"folder": str(folder / "registry"), "size_bytes": settings.size_bytes}
        (folder / "registry").mkdir()
        registry = await Process.start("benchmarks.pull.registry", json.dumps(asked))
        stack.push_async_callback(registry.stop)
        told = json.loads(await registry.line())
        link = {
            "name": LINK,
            "client_region": "site",
            "node": "registry",
            "target": f"127.0.0.1:{told['port']}",
            "round_trip_ms": settings.round_trip_ms,
            "bytes_per_s": settings.mbit_s * 1e6 / 8,
            "buffer_bytes": settings.window_bytes // 2,
        }
        (folder / "wan.json").write_text(json.dumps({"links": [link]}))
        wan = await Process.start("nearmesh.devmesh.wan", "--config", str(folder / "wan.json"))
        stack.push_async_callback(wan.stop)
        ready = json.loads(await wan.line())
        authority = Authority.open(MESH, folder / "registry" / "authority")
        for name in NAMES:
            _credentials(folder / name, authority, name)
        yield Bench(
            folder,
            settings,
            ControlClient(ready["control_port"]),
            f"https://127.0.0.1:{ready['ports'][LINK]}",
            told["digest"],
            told["blob"],
        )


def _credentials(folder: Path, authority: Authority, name: str) -> None:
    key, who = new_key(), MachineId(MESH, "node", name)
    signed = authority.sign(certificate_request(key, who), who, timedelta(hours=6))
    Credentials(key_to_pem(key), signed, authority.ca_pem).write(folder)


@asynccontextmanager
async def nodes(of: Bench, mode: str, *names: str, connections: int = 0) -> AsyncIterator[list[Process]]:
    """Ready to begin, each with an empty disk."""
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    found: list[Process] = []
    try:
        for name in names:
            data = of.folder / name / "models"
            shutil.rmtree(data, ignore_errors=True)
            asked = {
                "mode": mode,
                "me": name,
                "url": of.url,
                "digest": of.digest,
                "blob": of.blob,
                "size_bytes": of.settings.size_bytes,
                "connections": connections,
                "data": str(data),
                "credentials": str(of.folder / name),
                "listen": f"127.0.0.1:{ports[name]}",
                "peers": {other: f"127.0.0.1:{port}" for other, port in ports.items() if other != name},
            }
            found.append(await Process.start("benchmarks.pull.node", json.dumps(asked)))
        for process in found:
            await process.line()
        yield found
    finally:
        for process in found:
            await process.end()


async def once(of: Bench, mode: str, *names: str, connections: int = 0, cuts: int = 0) -> dict[str, Any]:
    """One run: seconds of the slowest node, of processor of all, and bytes that crossed the WAN."""
    async with nodes(of, mode, *names, connections=connections) as processes:
        before = await of.crossed_bytes()
        for process in processes:
            process.say()
        cutting = asyncio.create_task(_cut(of, before, cuts))
        told = [json.loads(await process.line()) for process in processes]
        cutting.cancel()
        crossed = await of.crossed_bytes() - before
    return {
        "seconds": max(each["seconds"] for each in told),
        "cpu_s": sum(each["cpu_s"] for each in told),
        "crossed_bytes": crossed,
        "cuts": cutting.result() if cutting.done() and not cutting.cancelled() else cuts and None,
    }


async def _cut(of: Bench, before: int, cuts: int) -> int:
    """Evenly over the transfer, by what came through; how many there were."""
    for number in range(1, cuts + 1):
        due = before + of.settings.size_bytes * number / (cuts + 1)
        while await of.crossed_bytes() < due:  # noqa: ASYNC110  # the proxy tells nobody
            await asyncio.sleep(0.02)
        await of.control.send("cut", link=LINK)
        await asyncio.sleep(CUT_S)
        await of.control.send("heal", link=LINK)
    return cuts


async def measure(folder: Path, settings: Settings) -> dict[str, Any]:
    """Everything, in turns, so that a slower moment of the machine meets all ways alike."""
    runs: dict[str, list[dict[str, Any]]] = {}
    async with bench(folder, settings) as of:
        for number in range(settings.rounds):
            _say(f"round {number + 1}")
            found = await once(of, "bare", NAMES[0], connections=1)
            runs.setdefault("one stream", []).append(found)
            for connections in CONNECTIONS:
                found = await once(of, "bare", NAMES[0], connections=connections)
                runs.setdefault(f"bare, {connections} connections", []).append(found)
            runs.setdefault("the store", []).append(await once(of, "store", NAMES[0]))
        _say("ten cuts")
        runs["the store, cut ten times"] = [await once(of, "store", NAMES[0], cuts=CUTS)]
        _say("three nodes")
        runs["three nodes of a site"] = [await once(of, "store", *NAMES)]
    return {"runs": runs, **judged(runs, settings)}


def judged(runs: Mapping[str, list[dict[str, Any]]], settings: Settings) -> dict[str, Any]:
    """Ratios of the figures that matter, within each round, and their medians."""
    bare = [
        min(found["seconds"] for found in each)
        for each in zip(*(runs[f"bare, {n} connections"] for n in CONNECTIONS), strict=True)
    ]
    store, stream = ([found["seconds"] for found in runs[name]] for name in ("the store", "one stream"))
    cut, three = runs["the store, cut ten times"][0], runs["three nodes of a site"][0]
    return {
        "of_bare": statistics.median(b / s for b, s in zip(bare, store, strict=True)),
        "times_one_stream": statistics.median(o / s for o, s in zip(stream, store, strict=True)),
        "bare_mbit_s": settings.size_bytes * 8 / 1e6 / statistics.median(bare),
        "cut_crossed": cut["crossed_bytes"] / settings.size_bytes,
        "three_crossed": three["crossed_bytes"] / settings.size_bytes,
    }


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
