"""`nearmesh gateway`: run a region's gateway for stock Open Inference Protocol clients."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.group()
def gateway() -> None:
    """Run a gateway: Envoy, configured by the control plane alone."""


@gateway.command()
@click.option("--config", "path", type=click.Path(path_type=Path), required=True, help="The gateway.toml to run.")
@click.option("--token", help="Join token (`nearmesh node token --kind gateway`); NEARMESH_JOIN_TOKEN does as well.")
@click.option("--token-file", type=click.Path(path_type=Path), help="A file with the join token.")
@click.option("--log-level", default="info", show_default=True)
def run(path: Path, token: str | None, token_file: Path | None, log_level: str) -> None:
    """Join once, then serve until SIGTERM or Ctrl-C."""
    import asyncio

    from nearmesh import config
    from nearmesh.errors import ConfigError
    from nearmesh.gateway.config import GatewayConfig
    from nearmesh.process import configure_logging, stop_on_signals

    try:
        from nearmesh.gateway.server import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"no module {error.name!r}; install the gateway extra: pip install 'nearmesh[gateway]'"
        ) from None

    configure_logging(log_level)
    settings = config.load(GatewayConfig, path)
    given = token or os.environ.get("NEARMESH_JOIN_TOKEN")
    if not given and token_file and token_file.exists():
        given = token_file.read_text("utf-8").strip()

    async def main() -> None:
        await serve(settings, given, stop_on_signals())

    asyncio.run(main())
