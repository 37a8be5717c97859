"""A data team's own Flower app, packed as Flower's own `flwr build` packs it."""

from __future__ import annotations

from pathlib import Path

from nearmesh.errors import ConfigError, PackageError


def packed(folder: Path) -> bytes:
    """The app in a folder as one file (a FAB). Raises PackageError for what is no app, ConfigError without Flower."""
    if not (folder / "pyproject.toml").is_file():
        raise PackageError(f"{folder}: no pyproject.toml, so it is no Flower app; `flwr new` makes one")
    try:
        from flwr.cli.build import build_fab_from_disk
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "flwr":
            raise
        raise ConfigError("packing an app needs Flower itself: pip install 'nearmesh[rounds]'") from None
    try:
        return build_fab_from_disk(folder)
    except ValueError as error:
        # Flower's own words are about its configuration, one mistake a line; wrong TOML is one of them.
        raise PackageError("\n".join(f"{folder}: {line}" for line in str(error).splitlines() if line)) from None
