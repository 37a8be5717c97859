"""What an agent does for training beside overloaded serving; a process that can be killed. Prints the warden's id."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from nearmesh_agent.training.throttle import Throttle

from tests.training_family import tree


async def main(yielded_file: Path) -> None:
    throttle = Throttle((), lambda: 1.5, cpu_share=0.5)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*throttle.command(tree(1), yielded_file), stdin=pipe, stdout=pipe)
    print(process.pid, flush=True)
    await throttle.run(process)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
