"""The emulated WAN of the local mesh: a TCP proxy with many links, each with its own round trip and its own faults."""

from nearmesh.devmesh.wan.control import ControlClient
from nearmesh.devmesh.wan.link import Link, LinkSettings
from nearmesh.devmesh.wan.server import Wan, WanSettings, load, running

__all__ = ["ControlClient", "Link", "LinkSettings", "Wan", "WanSettings", "load", "running"]
