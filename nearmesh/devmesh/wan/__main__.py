"""`python -m nearmesh.devmesh.wan --config wan.json`"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from nearmesh.devmesh.wan.server import load, run
from nearmesh.errors import ConfigError


def main() -> int:
    parser = argparse.ArgumentParser(description="An emulated WAN: TCP links with round trips, on loopback.")
    parser.add_argument("--config", type=Path, required=True, help="JSON: {links: [...], control_port}")
    arguments = parser.parse_args()
    try:
        settings = load(arguments.config)
    except ConfigError as error:
        print(error.message, file=sys.stderr)  # noqa: T201
        return 2
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(run(settings))
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


if __name__ == "__main__":
    raise SystemExit(main())
