"""The tour of a fresh local mesh: one client process in each region, one table of what came back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from nearmesh.devmesh.children import ChildFailed, script
from nearmesh.devmesh.mesh import MESH_FILE
from nearmesh.devmesh.plan import REGIONS
from nearmesh.devmesh.visitor import Row
from nearmesh.process import leashed
from nearmesh.routing import format_usd

TIMEOUT_S = 90.0


async def tour(folder: Path, objective: str = "") -> list[Row]:
    """Every row, by client region. Raises ChildFailed when a client process fails as a whole."""
    found = await asyncio.gather(*(_visit(region, folder / MESH_FILE, objective) for region in REGIONS))
    return [row for rows in found for row in rows]


async def _visit(region: str, state: Path, objective: str) -> list[Row]:
    command = [script("python"), "-m", "nearmesh.devmesh.visitor", region, str(state), objective]
    process = await asyncio.create_subprocess_exec(
        *leashed(command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            output, errors = await process.communicate()
    except TimeoutError:
        raise ChildFailed(f"the client in {region} did not finish within {TIMEOUT_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise ChildFailed(f"the client in {region} failed: {errors.decode(errors='replace').strip()}")
    return [Row(**json.loads(line)) for line in output.splitlines()]


def table(rows: Iterable[Row]) -> Table:
    """For people."""
    found = Table(title="Every model, from every region, through every way in", title_justify="left", box=SIMPLE_HEAD)
    for heading, justify in (
        ("client region", "left"),
        ("way in", "left"),
        ("model", "left"),
        ("answered by", "left"),
        ("network ms", "right"),
        ("total ms", "right"),
        ("USD per 1,000", "right"),
        ("correct", "left"),
        ("why that site", "left"),
    ):
        found.add_column(heading, justify="right" if justify == "right" else "left", overflow="fold")
    last = ""
    for row in rows:
        if last and row.region != last:
            found.add_section()
        last = row.region
        verdict = f"yes: {row.answer}" if row.correct else f"[bold red]NO: {row.answer}[/]"
        found.add_row(
            row.region,
            row.way,
            row.model,
            row.site,
            f"{row.network_ms:.1f}",
            f"{row.total_ms:.1f}",
            format_usd(row.usd_per_1000),
            verdict,
            row.why,
        )
    return found
