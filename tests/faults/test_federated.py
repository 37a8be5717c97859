"""One federated run in which one process after the other dies; the soak kills each of them in each phase."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.federated import Kill, killed
from tests.integration.federated_mesh import federated_mesh

pytest.importorskip("flwr", reason="federated runs need the extra `rounds`")

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(420)]

KILLS = (Kill("server app", "the parent is judged"), Kill("SuperLink", "training"), Kill("control plane", "evaluating"))


async def test_p3_a_run_goes_on_after_whatever_was_killed(tmp_path: Path) -> None:
    async with federated_mesh(tmp_path) as mesh:
        figures = await killed(mesh, KILLS)
    # The server app bears it that its SuperLink is away for a moment.
    assert figures["resumed"] == 2, figures
