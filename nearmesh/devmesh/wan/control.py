"""Faults on demand: one JSON object a line in, one a line out, on a loopback TCP port.

    {"command": "stats"}                                        -> {"ok": true, "links": {NAME: {...}}}
    {"command": "cut" | "freeze" | "heal", "link": PATTERN}     -> {"ok": true, "changed": [NAME, ...]}
    {"command": "set", "link": PATTERN, "round_trip_ms": 80}    (also jitter_ms, bytes_per_s)

A pattern is a link's name, with `*` for any characters. What is wrong is answered with {"ok": false, "error": "..."}.
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
from collections.abc import Mapping
from typing import Any

from nearmesh.devmesh.wan.link import Link
from nearmesh.errors import InvalidInput, MeshError, NotFound

_SETTINGS = ("round_trip_ms", "jitter_ms", "bytes_per_s")


async def serve_control(links: Mapping[str, Link], port: int) -> asyncio.Server:
    """Listens for commands on loopback; port 0 is asked of the system."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await answer(links, line)).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):
            pass  # it left in the middle of a line, or sent one beyond the reader's limit
        finally:
            writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", port)


async def answer(links: Mapping[str, Link], line: bytes) -> dict[str, Any]:
    """Carries out one command."""
    try:
        command = json.loads(line)
        if not isinstance(command, dict):
            raise InvalidInput("a command is a JSON object")
        return {"ok": True, **await _carry_out(links, command)}
    except ValueError as error:
        return {"ok": False, "error": f"not JSON: {error}"}
    except MeshError as error:
        return {"ok": False, "error": error.message}


async def _carry_out(links: Mapping[str, Link], command: dict[str, Any]) -> dict[str, Any]:
    name = command.get("command")
    if name == "stats":
        return {"links": {key: link.stats() for key, link in links.items()}}
    if name not in ("cut", "freeze", "heal", "set"):
        raise InvalidInput(f"command {name!r} is not one of stats, cut, freeze, heal, set")
    pattern = str(command.get("link", ""))
    found = [key for key in links if fnmatch.fnmatchcase(key, pattern)]
    if not found:
        raise NotFound(f"no link is called {pattern!r}; there are {', '.join(links)}")
    for key in found:
        await _change(links[key], name, command)
    return {"changed": found}


async def _change(link: Link, name: str, command: dict[str, Any]) -> None:
    if name == "cut":
        await link.cut()
    elif name == "freeze":
        link.freeze()
    elif name == "heal":
        await link.heal()
    else:
        link.set(**_numbers(command))


def _numbers(command: dict[str, Any]) -> dict[str, float]:
    values = {key: command[key] for key in command if key not in ("command", "link")}
    for key, value in values.items():
        if key not in _SETTINGS or not isinstance(value, int | float) or value < 0:
            raise InvalidInput(f"{key}={value!r}: `set` takes {', '.join(_SETTINGS)}, each a number of 0 or more")
    return values


class ControlClient:
    """The other end, for tests and the local mesh: `await client.send("cut", link="europe-*")`."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def send(self, command: str, **more: Any) -> dict[str, Any]:
        """Returns the answer. Raises InvalidInput with the proxy's message when it refuses."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**24)
        try:
            writer.write(json.dumps({"command": command, **more}).encode() + b"\n")
            found: dict[str, Any] = json.loads(await reader.readline())
        finally:
            writer.close()
            await writer.wait_closed()
        if not found["ok"]:
            raise InvalidInput(found["error"])
        return found
