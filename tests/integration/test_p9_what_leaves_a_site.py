"""P9: all that leaves a site in a run, read after TLS is taken off: weights, counts and metrics, and nothing else.

A real run, from the judging of the parent to that of the candidate, over real SuperNodes as agents start them. One
site's data are sound, the other's cannot be read, since what a failure says leaves a site as well.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from nearmesh_agent.training.config import DataConfig, TrainingConfig
from nearmesh_agent.training.failures import DataError
from nearmesh_agent.training.supernode import SuperNode
from nearmesh_agent.training.throttle import Throttle
from nearmesh_controlplane.runs.apps import write_app
from nearmesh_controlplane.runs.folder import Plan, RunFolder, SiteInfo
from onnx import TensorProto, helper, numpy_helper

from benchmarks.flower_fleet import Fleet, fleet_in
from nearmesh.tls import Credentials, key_to_pem
from tests.recorded_fleet import Recorder
from tests.without_torch import without_torch

WEIGHT = np.zeros((3, 2), np.float32)
# In values, in the name of a column, in a label, in the file's path, in what the recipe says; and not a number.
NUMBER, LABEL = 314159.75, 271828
WORDS = ("canary-of-the-path", "canary-of-a-column", "canary-of-a-cell", "canary-of-the-recipe")
RECIPE = """
import numpy as np


def train(arrays, data, settings):
    print("canary-of-the-" + "recipe", data.inputs, data.targets)
    found = {"loss": 1.0, f"label {data.targets[0]}": 1.0, str(float(data.inputs["x"].max())): 2.0}
    return {"weight": arrays["weight"] + np.float32(0.5)}, found


def evaluate(arrays, data, settings):
    return {"accuracy": 0.5, f"canary-of-the-{'recipe'}": float(data.inputs["x"].max())}


def outputs(arrays, inputs):
    return inputs["x"] @ arrays["weight"]
"""


def graph(path: Path) -> None:
    made = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["scores"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", 2])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


def data_of(folder: Path, *, sound: bool) -> DataConfig:
    path = folder / f"canary-of-the-path-{'sound' if sound else 'broken'}.csv"
    rows = [[f"{NUMBER + i}", f"{i}.5", "1", str(LABEL + i % 2)] for i in range(20)]
    if not sound:
        rows[7][1] = "canary-of-a-cell"
    lines = [["canary-of-a-column", "b", "c", "label"], *rows]
    path.write_text("\n".join(",".join(line) for line in lines) + "\n")
    return DataConfig(path=path, format="csv", inputs=("canary-of-a-column", "b", "c"), target="label")


def run_folder(path: Path, sites: dict[int, SiteInfo]) -> RunFolder:
    folder = RunFolder(path)
    folder.make()
    plan = Plan(
        run="r1",
        model="m",
        rounds=1,
        min_sites=1,
        strategy="fedavg",
        round_timeout_s=60.0,
        metric="accuracy",
        parameters=["weight"],
    )
    folder.write_plan(plan)
    folder.write_sites(sites)
    folder.write_initial({"weight": WEIGHT})
    graph(folder.graph)
    told = {"recipe": RECIPE.encode(), "model": "m", "metric": "accuracy", "inputs": ["x"]}
    write_app(folder.app, settings={}, run_folder=folder.path, **told)  # type: ignore[arg-type]
    return folder


@asynccontextmanager
async def site(fleet: Fleet, name: str, key: ec.EllipticCurvePrivateKey, data: DataConfig) -> AsyncIterator[None]:
    """A SuperNode as the agent keeps one."""
    credentials = Credentials(key_to_pem(key), b"", fleet.authority.ca_pem)
    config = TrainingConfig(allowed=True, cpu_share=1.0, data={"m": data})
    supernode = SuperNode(
        config, fleet.folder / name, lambda: credentials, Throttle((), lambda: 0.0, cpu_share=config.cpu_share)
    )
    kept = asyncio.create_task(supernode.keep(fleet.address))
    try:
        yield
    finally:
        kept.cancel()
        await asyncio.wait({kept})


# On a busy machine each of the ten messages takes seconds.
@pytest.mark.timeout(240)
async def test_p9_nothing_but_weights_counts_and_metrics_leaves_a_site(tmp_path: Path) -> None:
    recorder = Recorder()
    async with fleet_in(tmp_path, recorder.around) as fleet, AsyncExitStack() as stack:
        stack.enter_context(without_torch(tmp_path / "without"))
        keys, ids = await fleet.nodes("node-sound", "node-broken")
        sites = {id: SiteInfo(node=name, site="s", region="r", pseudonym=name) for name, id in ids.items()}
        folder = run_folder(tmp_path / "run", sites)
        for name, key in keys.items():
            data = data_of(tmp_path, sound=name == "node-sound")
            await stack.enter_async_context(site(fleet, name, key, data))
        run = await fleet.engine.start(folder.app, {}, folder.path)
        ended = await fleet.ended(run, within_s=200.0)
        assert ended.state == "finished", await fleet.engine.log(run)
    check_run(folder)
    check_messages(recorder)
    check_bytes(recorder.everything)


def check_run(folder: RunFolder) -> None:
    """So that what is read below is a run from its beginning to its end."""
    parent, trained = folder.rounds()
    assert [site.answer for site in parent.sites].count("counted") == 1 == parent.number + 1
    assert {site.node: site.answer for site in trained.sites} == {"node-sound": "counted", "node-broken": "failed"}
    judged = {one.node: one for one in folder.judged() or ()}
    assert judged["node-sound"].difference is not None and not judged["node-sound"].failed
    assert judged["node-broken"].failed


def check_messages(recorder: Recorder) -> None:
    messages = recorder.messages()
    answers = [message for message in messages if message.has_content()]
    # The parent, the round's training and its evaluation, the candidate.
    assert len(answers) == 4 and len(messages) > 4
    for answer in answers:
        assert {*answer.content} <= {"arrays", "metrics", "config"}
        allowed = {"num-examples", "accuracy", "loss", "train-s", "yielded-s", "difference"}
        assert {*answer.content["metrics"]} <= allowed
        assert {*answer.content["config"]} == {"server-round", "base"}
        assert {*answer.content.array_records} <= {"arrays"}
        for record in answer.content.array_records.values():
            assert {name: array.numpy().tolist() for name, array in record.items()} == {
                "weight": (WEIGHT + 0.5).tolist()
            }
    reasons = {message.error.reason for message in messages if message.has_error()}
    assert reasons == {f"DataError: {DataError.outside}"}
    assert not recorder.strange_objects()
    assert recorder.paths() <= {
        f"/v1/fleet/{call}"
        for call in (
            "activate-node",
            "confirm-message-received",
            "deactivate-node",
            "get-fab",
            "get-run",
            "pull-messages",
            "pull-object",
            "push-messages",
            "push-object",
            "send-node-heartbeat",
        )
    }


def check_bytes(sent: bytes) -> None:
    """Whatever form it might have been put into."""
    # What is looked for would be found: the parameter's name is there, and its numbers.
    assert b"weight" in sent and struct.pack("<6f", *[0.5] * 6) in sent
    for word in (*WORDS, "canary", str(NUMBER), str(LABEL), str(LABEL + 1)):
        assert word.encode() not in sent, word
    for code in ("<f", "<d", ">f", ">d"):
        assert struct.pack(code, NUMBER) not in sent, code
    for code in ("<q", "<i", ">q", ">i", "<d", "<f"):
        assert struct.pack(code, LABEL) not in sent, code
