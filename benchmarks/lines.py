"""A process of a benchmark that is asked by lines of JSON and answers by lines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from nearmesh.devmesh.samples import CHECKOUT
from nearmesh.errors import MeshError
from nearmesh.process import leashed

# Of an answer, which may have every time that was measured.
LINE_BYTES = 1 << 24
ENDS_WITHIN_S = 30.0


class ProcessFailed(MeshError):
    """A process of the benchmark ended, or was silent for too long."""

    reason = "PROCESS_FAILED"


class Lines:
    """One such process."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def say(self, **asked: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")

    async def hear(self, within_s: float) -> dict[str, Any]:
        """Its next line. Raises ProcessFailed."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            # Who says nothing would not hear of the input's end either.
            self.kill()
            raise ProcessFailed(f"{self._name} has said nothing for {within_s:g} s, and is killed") from None
        if not line:
            raise ProcessFailed(f"{self._name} ended with code {await self._process.wait()}; see its error above")
        found: dict[str, Any] = json.loads(line)
        return found

    async def ask(self, within_s: float, **asked: Any) -> dict[str, Any]:
        """Raises ProcessFailed."""
        self.say(**asked)
        return await self.hear(within_s)

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()


@asynccontextmanager
async def talking(
    name: str, command: Sequence[str], environment: Mapping[str, str] | None = None, errors: Path | None = None
) -> AsyncIterator[Lines]:
    """Until the end of the block, which ends its input, and that the process. Its errors go into that file."""
    pipe = asyncio.subprocess.PIPE
    with ExitStack() as stack:
        if errors:
            errors.parent.mkdir(parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            *leashed(command),
            stdin=pipe,
            stdout=pipe,
            stderr=stack.enter_context(errors.open("ab")) if errors else None,
            cwd=CHECKOUT,
            env=environment,
            limit=LINE_BYTES,
            start_new_session=True,
        )
    try:
        yield Lines(name, process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        # A library may have threads that wait for nothing.
        with suppress(TimeoutError):
            async with asyncio.timeout(ENDS_WITHIN_S):
                await process.wait()
        if process.returncode is None:
            process.kill()
        await process.wait()
