"""Programs that an agent, a control plane and a gateway begin do begin, whatever gRPC does at that moment."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FORKS = 150
PROGRAM = """
import asyncio, collections, json, sys
import {package}
import grpc, uvloop

async def main():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    async def answer(request, context):
        return request
    methods = {{"b": grpc.unary_unary_rpc_method_handler(answer)}}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a", methods),))
    await server.start()

    async def call():
        while True:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{{port}}") as channel:
                await channel.unary_unary("/a/b")(b"x")

    calling = [asyncio.create_task(call()) for _ in range(4)]
    codes = collections.Counter()
    for _ in range({forks}):
        process = await asyncio.create_subprocess_exec("/bin/true", stdin=asyncio.subprocess.DEVNULL)
        codes[await process.wait()] += 1
    for task in calling:
        task.cancel()
    await asyncio.gather(*calling, return_exceptions=True)
    await server.stop(0)
    print(json.dumps(codes))

uvloop.run(main())
"""


@pytest.mark.parametrize("package", ["nearmesh_agent", "nearmesh_controlplane", "nearmesh.cli"])
def test_programs_begin_while_calls_are_under_way(package: str) -> None:
    program = PROGRAM.format(package=package, forks=FORKS)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == {"0": FORKS}, done.stderr[-2000:]
