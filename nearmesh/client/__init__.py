"""The SDK: inference on the nearest site that is cheap enough, and no error because one site died.

async with nearmesh.client.connect("bootstrap-europe-west1.json") as mesh:
    answer = await mesh.infer("file-type", {"bytes": array})
    print(answer["target_label"].argmax(), answer.receipt)
"""

from nearmesh.client.blocking import BlockingMesh, BlockingSequence, connect_sync
from nearmesh.client.client import Mesh, connect
from nearmesh.client.receipt import Answer, Attempt, Prediction, Receipt
from nearmesh.client.sequences import Sequence
from nearmesh.client.settings import ConnectSettings
from nearmesh.client.tally import NodeStatistics, Statistics

__all__ = [
    "Answer",
    "Attempt",
    "BlockingMesh",
    "BlockingSequence",
    "ConnectSettings",
    "Mesh",
    "NodeStatistics",
    "Prediction",
    "Receipt",
    "Sequence",
    "Statistics",
    "connect",
    "connect_sync",
]
