"""A connection of its own to the shared database, on the event loop: for the lease, which no slow change may hold up,
and for hearing what others wrote."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from nearmesh.errors import Unreachable
from nearmesh_controlplane.postgresql import connect_arguments, conninfo


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """A `psycopg.AsyncConnection` that commits each statement. Raises Unreachable, also when it breaks in the body."""
    # Not at the top: who runs one control plane alone has no driver.
    import psycopg

    try:
        async with await psycopg.AsyncConnection.connect(
            conninfo(url), autocommit=True, **connect_arguments()
        ) as connection:
            yield connection
    except psycopg.Error as error:
        said = str(error).strip().splitlines()
        raise Unreachable(f"the database: {said[0] if said else type(error).__name__}") from None
