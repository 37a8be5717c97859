"""Loads from separate client processes against a local mesh, and what must be true of them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearmesh.devmesh.children import script
from nearmesh.devmesh.load import LoadResult
from nearmesh.devmesh.mesh import MESH_FILE, LocalMesh
from nearmesh.process import leashed

WAYS = ("gateway", "xds", "sdk")
RATE = 20.0
# A client process imports its libraries, connects across the WAN and gets a first answer.
READY_WITHIN_S = 60.0
# Beyond its own seconds, a load waits for its last calls.
DONE_WITHIN_S = 30.0
# A result has every call in one line.
LINE_BYTES = 64 * 1024 * 1024
# The share of planned calls that must have been sent for a result to count.
SENT_SHARE = 0.95


class Conversation:
    """A client process that says JSON lines and may be told to go on."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process

    async def start(self) -> None:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe, limit=LINE_BYTES)

    async def hear(self, event: str, within_s: float = READY_WITHIN_S) -> dict[str, Any]:
        """The next line, which must be of that event."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), within_s)
        assert line, f"{self._command} ended with code {await self._process.wait()} before it said {event!r}"
        content: dict[str, Any] = json.loads(line)
        assert content.pop("event") == event
        return content

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def close(self) -> None:
        """Ends the process, if it has not ended."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@dataclass(slots=True)
class Loads:
    """Loads that run side by side; `results` are there when the context has been left."""

    results: list[LoadResult] = field(default_factory=list)


@asynccontextmanager
async def loads(
    mesh: LocalMesh,
    model: str,
    *,
    region: str = "europe-west1",
    ways: Sequence[str] = WAYS,
    rate: float = RATE,
    seconds: float,
    objective: str = "",
    timeout_s: Mapping[str, float] | None = None,
    files: Mapping[str, Path] | None = None,
) -> AsyncIterator[Loads]:
    """One client process for each way in, all past their first right answer. Leaving waits for their ends.

    `timeout_s` is each way's own deadline. With `files` its calls are written to its own, and the results have none.
    """
    found = Loads()
    command = [script("python"), "-m", "nearmesh.devmesh.load", "--mesh", str(mesh.plan.folder / MESH_FILE)]
    command += ["--region", region, "--model", model, "--rate", str(rate), "--seconds", str(seconds)]
    command += ["--objective", objective] if objective else []
    clients = []
    for way in ways:
        own = ["--way", way]
        own += ["--timeout-s", str(timeout_s[way])] if timeout_s else []
        own += ["--calls", str(files[way])] if files else []
        clients.append(Conversation(leashed([*command, *own])))
    try:
        for client in clients:
            await client.start()
        await asyncio.gather(*(client.hear("ready") for client in clients))
        yield found
        ends = await asyncio.gather(*(client.hear("result", seconds + DONE_WITHIN_S) for client in clients))
        found.results += [LoadResult.parse(end) for end in ends]
    finally:
        for client in clients:
            await client.close()


def check_no_error(results: Iterable[LoadResult]) -> None:
    """No call failed, and enough were sent to say so. Prints the figures."""
    for result in results:
        figures = summary(result)
        print(json.dumps(figures))
        # An answer that had begun to come is asked for again by the SDK alone (see the README).
        cut_off = figures["of_those_cut_off"]
        assert not result.errors, (
            f"{len(result.errors)} of {len(result.calls)} calls failed on {result.way}, {cut_off} of them in the midst "
            f"of their answer: {Counter(result.errors).most_common(3)}"
        )
        assert len(result.calls) >= SENT_SHARE * result.planned, figures


def check_moved(
    results: Iterable[LoadResult], *, away_from: str, after_s: float, until_s: float, within_s: float
) -> None:
    """No call that started `within_s` after the moment, and before `until_s`, was answered by that node.

    A hedged call may be answered by any.
    """
    for result in results:
        later = [c for c in result.calls if after_s + within_s < c.started_s < until_s and not c.hedged]
        stayed = [c for c in later if c.node == away_from]
        assert not stayed, f"{result.way}: {len(stayed)} of {len(later)} calls went to {away_from} after {within_s} s"
        assert later, f"{result.way}: the load ended too early"


def check_met(results: Iterable[LoadResult], *, node: str, until_s: float) -> None:
    """The node answered calls before the moment: the fault met traffic."""
    calls = [call for result in results for call in result.calls if call.started_s + call.ms / 1000 < until_s]
    nodes = Counter(call.node for call in calls)
    assert nodes[node], f"{dict(nodes)} answered before, and not {node}"


def moved_after_s(results: Iterable[LoadResult], *, away_from: str, after_s: float, until_s: float) -> float:
    """Seconds from the moment until the last call that still went to the node was started; 0 when none did."""
    calls = [c for result in results for c in result.calls if c.node == away_from and not c.hedged]
    return max((c.started_s - after_s for c in calls if after_s < c.started_s < until_s), default=0.0)


def summary(result: LoadResult) -> dict[str, object]:
    """The figures of one load."""
    times = sorted(call.ms for call in result.calls) or [0.0]
    return {
        "way": result.way,
        "model": result.model,
        "region": result.region,
        "rate": result.rate,
        "planned": result.planned,
        "sent": len(result.calls),
        "errors": len(result.errors),
        "of_those_cut_off": sum(bool(call.cut_off) for call in result.calls),
        "p50_ms": round(_at(times, 0.5), 1),
        "p99_ms": round(_at(times, 0.99), 1),
        "max_ms": round(times[-1], 1),
        "by_node": dict(Counter(call.node for call in result.calls if call.node)),
    }


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
