"""One call of a client to nodes that play a script, on a loop whose clock jumps to the next timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from tritonclient.grpc import service_pb2

from benchmarks.jumping_clock import on_jumping_clock
from nearmesh import errors
from nearmesh.client import picker
from nearmesh.client.attempts import Call, Delivery, deliver
from nearmesh.client.budget import Budget
from nearmesh.client.experience import Experience
from tests.client_routes import endpoint, route
from tests.client_transport import NEVER, Act, ScriptedTransport

OK: Act = (0.03, "ok")
SLOW: Act = (0.2, "ok")
FROZEN: Act = (NEVER, "ok")
DEAD: Act = (0.01, errors.Unreachable("reset"))


class Outcome:
    """What became of one call."""

    def __init__(
        self,
        transport: ScriptedTransport,
        deadline_s: float,
        idempotent: bool,
        experience: Experience | None = None,
        network_ms: Mapping[str, float] | None = None,
    ) -> None:
        self._network_ms = network_ms or {}
        self.experience = experience or Experience(budget=spent())
        self.delivery: Delivery | None = None
        self.error: errors.MeshError | None = None
        self.took_s = on_jumping_clock(self._run(transport, deadline_s, idempotent))

    async def _run(self, transport: ScriptedTransport, deadline_s: float, idempotent: bool) -> float:
        clock = asyncio.get_running_loop().time
        start_s = clock()
        call = Call(
            request=service_pb2.ModelInferRequest(model_name="m"),
            deadline_s=start_s + deadline_s,
            idempotent=idempotent,
            plan=self._plan(transport, clock),
        )
        try:
            self.delivery = await deliver(call, transport, self.experience)
        except errors.MeshError as error:
            self.error = error
        took_s = clock() - start_s
        assert len(asyncio.all_tasks()) == 1, "an attempt was left behind"
        return took_s

    def _plan(self, transport: ScriptedTransport, clock: Callable[[], float]) -> Callable[[], list[picker.Choice]]:
        # In alphabetical order of merit; each is expected to take 10 + 20 ms. The letter is the site.
        found = route(
            *(
                endpoint(node, self._network_ms.get(node, 10.0 + index / 10), site=node[0])
                for index, node in enumerate(sorted(transport._acts))
            )
        )
        experience = self.experience
        return lambda: picker.order(
            found,
            measured={},
            out=experience.out("m", now_s=clock()),
            slow=experience.slow("m", now_s=clock()),
        )

    @property
    def node(self) -> str:
        assert self.delivery, self.error
        return self.delivery.choice.node


def spent() -> Budget:
    """Nothing is left for hedges, nor ever will be."""
    return Budget(share=0.0, start=0.0)


def call(
    transport: ScriptedTransport,
    *,
    deadline_s: float = 5.0,
    idempotent: bool = True,
    experience: Experience | None = None,
) -> Outcome:
    """Without hedges, unless an experience with a budget is given."""
    return Outcome(transport, deadline_s, idempotent, experience)
