"""The proxy's process: read the config, start every link, say "ready", stop on SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from nearmesh import config
from nearmesh.devmesh.wan.control import serve_control
from nearmesh.devmesh.wan.link import Link, LinkSettings
from nearmesh.errors import ConfigError, InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class WanSettings:
    """`wan.json`."""

    links: tuple[LinkSettings, ...]
    # Loopback port of the control channel; 0: asked of the system.
    control_port: int = 0

    def __post_init__(self) -> None:
        names = [link.name for link in self.links]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise InvalidInput(f"two links are called {min(twice)!r}")


def load(path: Path) -> WanSettings:
    """Reads `wan.json`. Raises ConfigError that names the file, the key and the remedy."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return config.parse(WanSettings, data, where=str(path), base=path.parent)


@dataclass(frozen=True, slots=True)
class Wan:
    """A running proxy."""

    links: dict[str, Link]
    control_port: int


@asynccontextmanager
async def running(settings: WanSettings) -> AsyncIterator[Wan]:
    """Every link and the control channel, listening; all closed on the way out. Raises OSError for a taken port."""
    links = {link.name: Link(link) for link in settings.links}
    control: asyncio.Server | None = None
    try:
        for link in links.values():
            await link.start()
        control = await serve_control(links, settings.control_port)
        yield Wan(links, control.sockets[0].getsockname()[1])
    finally:
        if control:
            control.close()
        for link in links.values():
            await link.close()


async def run(settings: WanSettings) -> None:
    """Serves until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings) as wan:
        ports = {name: link.port for name, link in wan.links.items()}
        line = {"event": "ready", "control_port": wan.control_port, "ports": ports}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        await stop.wait()
