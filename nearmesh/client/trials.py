"""How a node that was ejected for its errors or its slowness gets a chance: copies of real calls, beside them.

A probe says that a node can be reached, not that it does its work. So a few of the calls to other nodes are sent to one
on probation as well. No caller waits for its answer; it decides about the node, and about nothing else. The copies are
paid from the hedges' budget.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import takewhile

from nearmesh.client import picker
from nearmesh.client.attempts import Call, is_of_node, outputs_of
from nearmesh.client.experience import Experience
from nearmesh.client.health import MIN_EXCESS_MS, SLOW
from nearmesh.client.picker import Choice
from nearmesh.client.tasks import end
from nearmesh.client.transport import Transport
from nearmesh.errors import DeadlineExceeded, MeshError


class Trials:
    """`close` when done."""

    def __init__(self, transport: Transport, experience: Experience) -> None:
        self._transport = transport
        self._experience = experience
        self._tasks: set[asyncio.Task[None]] = set()

    def consider(self, call: Call, choices: Sequence[Choice]) -> None:
        """Sends copies of a call to the nodes that are due for one."""
        if not call.idempotent:
            return
        now_s = asyncio.get_running_loop().time()
        # Those that are out stand at the end.
        for choice in takewhile(lambda choice: not choice.in_service, reversed(choices)):
            # In this order: a trial that is not paid for is due again a little later.
            due = self._experience.take_trial(choice.node, call.request.model_name, now_s=now_s)
            if due and self._experience.budget.take():
                self._experience.tally.trials += 1
                task = asyncio.create_task(self._try(call, choice), name=f"trial {choice.node}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancels them."""
        await end(self._tasks)

    async def _try(self, call: Call, choice: Choice) -> None:
        clock = asyncio.get_running_loop().time
        start_s, node, model = clock(), choice.node, call.request.model_name
        forecast = picker.forecast(choice.endpoint.candidate, call.request.ByteSize())
        limit_ms = max(SLOW * forecast.p95_ms, forecast.p95_ms + MIN_EXCESS_MS)
        self._experience.began(node)
        try:
            reply = await self._transport.infer(choice.endpoint, call.request, limit_ms / 1000)
            outputs_of(reply)
        except DeadlineExceeded:
            self._experience.lost_race(node, model, limit_ms, now_s=clock())
        except MeshError as error:
            if is_of_node(error):
                self._experience.erred(node, model, forecast, now_s=clock())
        else:
            self._experience.took(node, model, 1000 * (clock() - start_s), forecast, now_s=clock())
            self._experience.answered(node, model)
        finally:
            self._experience.ended(node)
