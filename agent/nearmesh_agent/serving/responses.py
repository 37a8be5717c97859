"""What an answer says besides its tensors: which version made it, and on request where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

from nearmesh_agent.engines.base import Array
from nearmesh_agent.serving.queue import Answer
from nearmesh_agent.serving.replica import Replica

FINAL = "triton_final_response"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this node is; it signs receipts with it."""

    node: str
    site: str
    region: str

    def sign(self, response: Any, replica: Replica, answer: Answer, service_ms: float, attempt: int) -> None:
        """Writes the receipt: who answered, with what, and where the time went."""
        written = response.parameters
        written["nearmesh_node"].string_param = self.node
        written["nearmesh_site"].string_param = self.site
        written["nearmesh_region"].string_param = self.region
        written["nearmesh_digest"].string_param = replica.digest
        written["nearmesh_variant"].string_param = replica.variant
        if replica.run:
            written["nearmesh_run"].string_param = replica.run
        written["nearmesh_queue_ms"].double_param = answer.queue_ms
        written["nearmesh_compute_ms"].double_param = answer.compute_ms
        written["nearmesh_service_ms"].double_param = service_ms
        written["nearmesh_batch_rows"].int64_param = answer.batch_rows
        written["nearmesh_attempt"].int64_param = attempt


def begun(replica: Replica, message: Any) -> Any:
    """An answer to `message`, still without its tensors."""
    return service_pb2.ModelInferResponse(model_name=replica.name, model_version=replica.version, id=message.id)


def chosen(outputs: Mapping[str, Array], names: list[str]) -> dict[str, Array]:
    """What the request asked for."""
    return {name: outputs[name] for name in names}
