"""What a run ends in: the parent's graph with the run's parameters, and the sites' word on it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from flwr.app import Context, Message, RecordDict
from nearmesh_controlplane.rounds.server_app import RUN_FOLDER, app
from nearmesh_controlplane.runs.folder import Judged
from onnx import TensorProto, helper, numpy_helper

from nearmesh.packaging import parameters
from tests.fake_grid import FakeClock, FakeGrid, flower_identity
from tests.round_run import ARun, a_run, digits_sites
from tests.round_sites import INITIAL


def write_graph(path: Path) -> None:
    """Softmax regression, as the sites train it."""
    inputs = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64])
    outputs = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 10])
    nodes = [helper.make_node("Gemm", ["x", "weight", "bias"], ["y"])]
    tensors = [numpy_helper.from_array(array, name) for name, array in INITIAL.items()]
    graph = helper.make_graph(nodes, "digits", [inputs], [outputs], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


@pytest.fixture
def run(tmp_path: Path) -> ARun:
    made = a_run(tmp_path, digits_sites(3), rounds=2)
    write_graph(made.folder.graph)
    return made


def test_the_graph_has_the_last_parameters_and_the_sites_judge_it(run: ARun) -> None:
    asked: list[Message] = []
    site = run.grid.sites[0]

    def listens(message: Message) -> RecordDict:
        asked.append(message)
        return site(message)

    run.grid.sites[0] = listens
    run.go()
    assert run.reason() == ""
    written = parameters.read(run.folder.candidate_graph, list(INITIAL))
    for name, array in run.arrays().items():
        np.testing.assert_array_equal(written[name], array)

    query = asked[-1]
    config = query.content["config"]
    assert query.metadata.message_type == "query.candidate"
    assert config["graph"] == run.folder.candidate_graph.read_bytes()
    assert (config["tolerance"], config["server-round"], config["run"]) == (1e-4, 2, "r1")

    judged = run.folder.judged()
    assert [one.node for one in judged or []] == ["node-0", "node-1", "node-2"]
    last = {site.node: site.metrics for site in run.folder.rounds()[-1].sites}
    for one in judged or []:
        assert (one.failed, one.difference, one.metrics) == ("", 0.0, last[one.node])
        assert one.examples > 0


def test_who_says_nothing_of_it_is_told_with_the_reason(run: ARun) -> None:
    site = run.grid.sites[1]

    def fails(message: Message) -> RecordDict | str:
        return "GraphError: it does not run" if message.metadata.message_type.startswith("query") else site(message)

    run.grid.sites[1] = fails
    run.grid.offline = {2}
    run.clock.after(600, lambda: None)
    # Two of three are wanted, one is away and one cannot: nobody is served what a single site has judged.
    run.go()
    assert "round 2, evaluating: in 5 trials never 2 sites" in run.reason()
    assert "node-1: GraphError: it does not run" in run.reason()
    assert run.folder.judged() is None

    run.folder.clear_end()
    run.grid.offline = set()
    run.go()
    assert run.reason() == ""
    assert run.folder.judged()[1] == Judged(node="node-1", failed="GraphError: it does not run")


def test_what_is_judged_is_not_judged_again(run: ARun) -> None:
    run.go()
    run.folder.clear_end()
    before = len(run.grid.sent)
    run.go()
    assert run.reason() == ""
    assert len(run.grid.sent) == before


def test_a_graph_that_the_parameters_do_not_fit_ends_the_run(run: ARun) -> None:
    model = onnx.load(run.folder.graph)
    del model.graph.initializer[1]
    onnx.save(model, run.folder.graph)
    run.go()
    assert "no initializer 'bias'" in run.reason()


def test_the_app_takes_its_folder_from_the_run_config(run: ARun, monkeypatch: pytest.MonkeyPatch) -> None:
    """With real threads, and a clock that is only looked at."""
    clock = FakeClock()
    monkeypatch.setattr("nearmesh_controlplane.rounds.server_app.SystemClock", lambda: clock)
    monkeypatch.setattr("nearmesh_controlplane.rounds.asking.SystemClock", lambda: clock)
    context = Context(1, 1, {}, RecordDict(), {RUN_FOLDER: str(run.folder.path)})
    with flower_identity():
        app(FakeGrid(clock, run.grid.sites), context)
    assert run.reason() == ""
    assert [record.number for record in run.folder.rounds()] == [0, 1, 2]
    assert len(run.folder.judged() or []) == 3
