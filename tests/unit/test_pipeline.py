"""Steps of a pipeline: how they find what they read, what a package's own functions may do, rows in parts."""

from __future__ import annotations

import gc
import sys
import textwrap
import weakref

import numpy as np
import pytest
from nearmesh_agent.engines.pipeline.pipeline import Pipeline
from nearmesh_agent.engines.pipeline.python_step import PythonSteps

from nearmesh.errors import EngineFailure, InvalidInput, PackageError
from nearmesh.package import Source, Step, Variant
from tests.fake_graph import CPU, FakeGraph
from tests.tiny_models import package, spec

CUDA = "CUDAExecutionProvider"
ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


def graph_variant(step):
    return Variant(name="fp32", step=step, source=Source(path=f"{step}.onnx"))


def described(*steps, inputs=(("x", "FP32", -1, 2),), outputs=(("y", "FP32", -1, 2),), **more):
    variants = tuple(graph_variant(step.name) for step in steps if step.is_graph)
    specs = [spec(*each) for each in inputs], [spec(*each) for each in outputs]
    return package("piped", *specs, steps=steps, variants=variants, **more)


def python(name, function, **more):
    return Step(name=name, python=f"steps.py:{function}", **more)


@pytest.fixture
def load(tmp_path):
    """Loads a pipeline whose functions are in `code`; `graphs` by their steps' names."""
    opened = []

    def loaded(code, *steps, graphs=None, allow_python=True, **more):
        (tmp_path / "steps.py").write_text("import numpy as np\n" + textwrap.dedent(code))
        opened.append(
            Pipeline.load(
                tmp_path, described(*steps, **more), lambda step: graphs[step.name], allow_python=allow_python
            )
        )
        return opened[-1]

    yield loaded
    for pipeline in opened:
        pipeline.close()


# Of tests before, in the same process, whose pipelines may still be open.
OTHERS = set()


@pytest.fixture(autouse=True)
def others():
    OTHERS.clear()
    OTHERS.update(sys.modules)


def modules():
    """Of the steps of the test that runs."""
    return [name for name in sys.modules if name.startswith("_nearmesh_step_") and name not in OTHERS]


# ---- wiring

HALVES = """
def halve(y):
    return {"half": y / 2}
"""


def test_steps_hand_tensors_to_each_other_by_name(load):
    graphs = {"double": FakeGraph(), "again": FakeGraph(instances=3, variant="int8", providers=(CUDA, CPU))}
    steps = (
        Step(name="double", outputs={"y": "twice"}),
        Step(name="again", inputs={"x": "twice"}),
        python("halve", "halve", outputs={"half": "y"}),
    )
    pipeline = load(HALVES, *steps, graphs=graphs)
    assert pipeline.infer({"x": ROWS}, alone=True)["y"].tolist() == (ROWS * 2).tolist()
    assert graphs["double"].alone == graphs["again"].alone == [True]
    assert (pipeline.variant, pipeline.providers, pipeline.instances) == ("double:fp32,again:int8", (CPU, CUDA), 3)
    pipeline.close()
    pipeline.close()
    assert graphs["double"].closed == graphs["again"].closed == 1


def test_only_the_packages_outputs_come_back(load):
    pipeline = load("def both(x):\n    return {'y': x, 'more': x}", python("both", "both"))
    assert list(pipeline.infer({"x": ROWS})) == ["y"]


def test_a_name_that_is_written_again_has_the_last_value(load):
    code = "def more(y):\n    return {'y': y + np.float32(1)}"
    pipeline = load(code, Step(name="double"), python("more", "more"), graphs={"double": FakeGraph()})
    assert pipeline.infer({"x": ROWS})["y"].tolist() == (ROWS * 2 + 1).tolist()


def test_functions_alone_take_all_cores_or_what_the_package_says(load, monkeypatch):
    monkeypatch.setattr("nearmesh_agent.engines.pipeline.pipeline.usable_cores", lambda: 6)
    code = "def same(x):\n    return {'y': x}"
    assert load(code, python("same", "same")).instances == 6
    assert load(code, python("same", "same"), instances=2).instances == 2


WRONG_WIRING = {
    "a graph's input": (
        (Step(name="double", inputs={"x": "image"}),),
        r"step 'double': there is no 'image' for input 'x' of its graph; there is 'x'",
    ),
    "a function's argument": (
        (python("halve", "halve"), Step(name="double")),
        r"step 'halve': there is no 'y' for argument 'y' of steps.py:halve; there is 'x'",
    ),
    "a later step's output": (
        (Step(name="first", inputs={"x": "later"}), Step(name="double", outputs={"y": "later"})),
        r"step 'first': there is no 'later'",
    ),
    "an output that nobody writes": (
        (Step(name="double", outputs={"y": "twice"}),),
        r"no step writes the output 'y'; written are 'twice'",
    ),
    "another name for no input": ((Step(name="double", inputs={"z": "x"}),), r"`inputs` lists 'z', the step has 'x'"),
    "another name for no output": ((Step(name="double", outputs={"z": "y"}),), r"`outputs` lists 'z', the step has"),
    "another name for no argument": (
        (Step(name="double"), python("halve", "halve", inputs={"z": "x"})),
        r"step 'halve': `inputs` lists 'z', the step has 'y'",
    ),
}


@pytest.mark.parametrize(("steps", "said"), WRONG_WIRING.values(), ids=WRONG_WIRING.keys())
def test_wiring_is_checked_before_anything_runs_and_nothing_stays_open(load, steps, said):
    graphs = {name: FakeGraph() for name in ("double", "first")}
    with pytest.raises(PackageError, match=said):
        load(HALVES, *steps, graphs=graphs)
    used = {step.name for step in steps if step.is_graph}
    assert {name for name, graph in graphs.items() if graph.closed == 1} == used
    assert not any(graph.calls for graph in graphs.values()) and modules() == []


def test_a_graph_that_does_not_load_closes_those_before_it(load):
    first = FakeGraph()
    with pytest.raises(KeyError):
        load(HALVES, Step(name="first"), python("halve", "halve"), Step(name="double"), graphs={"first": first})
    assert first.closed == 1 and modules() == []


def test_what_a_function_did_not_write_is_found_when_the_next_step_needs_it(load):
    steps = (python("other", "other"), Step(name="double", inputs={"x": "lines"}))
    pipeline = load("def other(x):\n    return {'boxes': x}", *steps, graphs={"double": FakeGraph()})
    with pytest.raises(EngineFailure, match=r"step 'double': there is no 'lines' for input 'x'.* is 'boxes', 'x'"):
        pipeline.infer({"x": ROWS})


WRONG_ANSWERS = {
    "another dtype": ("{'y': x.astype('f8')}", r"output 'y' came as FP64 \[3, 2\], model.toml says FP32 \[-1, 2\]"),
    "another size": ("{'y': x[:, :1]}", r"output 'y' came as FP32 \[3, 1\]"),
    "another rank": ("{'y': x[0]}", r"output 'y' came as FP32 \[2\]"),
    "another name": ("{'z': x}", r"no step wrote the output 'y'; written are 'z'"),
    "nothing": ("None", r"step 'f': steps.py:f gave a NoneType, expected a dict of arrays by name"),
    "a list": ("[x]", r"step 'f': steps.py:f gave a list, expected a dict"),
    "a list in a dict": ("{'y': [1.0]}", r"step 'f': steps.py:f gave the output 'y' as a list, expected a NumPy array"),
    "complex numbers": ("{'y': x * 1j}", r"output 'y' as complex64, which is no dtype of the protocol"),
    "objects": ("{'y': np.array([b'a', 3], object)}", r"output 'y' with a int as element 1, expected bytes or str"),
    "a name that is none": ("{1: x}", r"an output named 1, expected a str"),
}


@pytest.mark.parametrize(("answer", "said"), WRONG_ANSWERS.values(), ids=WRONG_ANSWERS.keys())
def test_a_function_with_a_wrong_answer(load, answer, said):
    pipeline = load(f"def f(x):\n    return {answer}", python("f", "f"))
    with pytest.raises(EngineFailure, match=said):
        pipeline.infer({"x": ROWS})


def test_an_output_that_model_toml_lists_must_be_written(load):
    pipeline = load("def f(x):\n    return {'y': x}", python("f", "f", outputs={"score": "sure"}))
    with pytest.raises(EngineFailure, match=r"step 'f': it wrote no 'score', which model.toml lists; it wrote 'y'"):
        pipeline.infer({"x": ROWS})


def test_a_graph_with_a_dtype_of_its_own_is_no_fault_of_the_caller(load):
    odd = FakeGraph(answer=lambda arrays: {"y": arrays["x"].astype(np.complex64)})
    with pytest.raises(EngineFailure, match=r"output 'y' came as complex64 \[3, 2\]"):
        load("", Step(name="odd"), graphs={"odd": odd}).infer({"x": ROWS})


# ---- functions

ERRORS = """
import sys
def f(x):
    if x[0, 0] == 0:
        raise ValueError("not an image")
    if x[0, 0] == 1:
        raise KeyError("lost")
    if x[0, 0] == 2:
        sys.exit(3)
    if x[0, 0] == 3:
        raise StopIteration
    if x[0, 0] == 4:
        raise ValueError
    x += 1
"""


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (0, InvalidInput, "^step 'f': not an image$"),
        (1, EngineFailure, "^step 'f': steps.py:f failed: KeyError: 'lost'$"),
        (2, EngineFailure, "^step 'f': steps.py:f failed: SystemExit: 3$"),
        (3, EngineFailure, "^step 'f': steps.py:f failed: StopIteration: StopIteration$"),
        (4, InvalidInput, "^step 'f': ValueError$"),
        # As a request's arrays are, so that the warm-up shows it.
        (5, InvalidInput, "^step 'f': output array is read-only$"),
    ],
)
def test_what_a_function_raises(load, caplog, value, error, said):
    pipeline = load(ERRORS, python("f", "f"))
    with pytest.raises(error, match=said):
        pipeline.infer({"x": np.full((1, 2), value, np.float32)})
    logged = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(logged) == (error is EngineFailure) and all(record.exc_info for record in logged)


def test_arguments_with_a_default_are_taken_if_they_are_there(load):
    code = "def f(x, *, more=np.float32(10), z=None):\n    return {'y': x + more, 'none': np.array([z is None])}"
    assert load(code, python("f", "f")).infer({"x": ROWS})["y"].tolist() == (ROWS + 10).tolist()
    renamed = load(code, python("f", "f", inputs={"more": "x"}))
    assert renamed.infer({"x": ROWS})["y"].tolist() == (ROWS * 2).tolist()


@pytest.mark.parametrize("text", ["np.array([[b'a', 'b\u00fc']], object)", "np.array([['a', 'b\u00fc']])"])
def test_bytes_are_objects_of_bytes(load, text):
    pipeline = load(f"def f(x):\n    return {{'y': {text}}}", python("f", "f"), outputs=[("y", "BYTES", -1, -1)])
    found = pipeline.infer({"x": ROWS})["y"]
    assert found.dtype == object and found.tolist() == [[b"a", "b\u00fc".encode()]]


WRONG_CODE = {
    "no such function": ("", "f", r"step 'f': steps.py has no function 'f'"),
    "no function": ("f = 3", "f", r"step 'f': steps.py has no function 'f'"),
    "any arguments": ("def f(*x): pass", "f", r"steps.py:f: parameter '\*x' names no tensor"),
    "any names": ("def f(**x): pass", "f", r"steps.py:f: parameter '\*\*x' names no tensor"),
    "arguments without names": ("def f(x, /): pass", "f", r"steps.py:f: parameter 'x' names no tensor"),
    "an async function": ("async def f(x): pass", "f", r"steps.py:f is async"),
    "a syntax error": ("def f(x)", "f", r"steps.py cannot be loaded: SyntaxError"),
    "a missing module": ("import no_such_module", "f", r"cannot be loaded: ModuleNotFoundError: No module named 'no_"),
    "a bug at the top": ("1 / 0", "f", r"steps.py cannot be loaded: ZeroDivisionError"),
    "an exit": ("raise SystemExit('bye')", "f", r"steps.py cannot be loaded: SystemExit: bye"),
    "no signature": ("f = type", "f", r"steps.py:f: its parameters cannot be told"),
}


@pytest.mark.parametrize(("code", "function", "said"), WRONG_CODE.values(), ids=WRONG_CODE.keys())
def test_code_that_is_none(load, code, function, said):
    with pytest.raises(PackageError, match=said):
        load(code, python("f", function))
    assert modules() == []


@pytest.mark.parametrize(
    ("file", "said"), [("gone.py", "gone.py cannot be loaded: FileNotFoundError"), ("../steps.py", "without folders")]
)
def test_files_that_are_not_the_packages(load, file, said):
    # The manifest refuses a path before anything is loaded.
    with pytest.raises((PackageError, InvalidInput), match=said):
        load("", Step(name="f", python=f"{file}:f"))


def test_a_node_may_refuse_code(load, tmp_path):
    with pytest.raises(PackageError, match=r"step 'f' is code of the package .* setting `allow_python` is false"):
        load("open('ran', 'w').close()", python("f", "f"), allow_python=False)
    assert not (tmp_path / "ran").exists() and modules() == []
    assert load("", Step(name="double"), graphs={"double": FakeGraph()}, allow_python=False).infer({"x": ROWS})


SHARED = """
from dataclasses import dataclass

# A dataclass looks its quoted types up in its module.
@dataclass
class Seen:
    calls: "int" = 0

seen = Seen()

def count(x):
    seen.calls += 1
    return {"counted": x}

def tell(counted):
    return {"y": counted * 0 + np.float32(seen.calls)}
"""


def test_functions_of_a_file_share_it_and_packages_do_not(load, tmp_path):
    steps = python("count", "count"), python("tell", "tell")
    one, other = load(SHARED, *steps), load(SHARED, *steps)
    one.infer({"x": ROWS})
    assert one.infer({"x": ROWS})["y"][0, 0] == 2 and other.infer({"x": ROWS})["y"][0, 0] == 1
    assert len(modules()) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["steps.py"], "no bytecode beside the package's files"


def test_a_hundred_swaps_leave_nothing_behind(tmp_path):
    (tmp_path / "steps.py").write_text("import numpy as np\n" + SHARED)
    kept = set(sys.modules)
    gone = []
    for _ in range(100):
        steps = PythonSteps(tmp_path)
        steps.load(python("count", "count")).run({"x": ROWS})
        gone.append(weakref.ref(sys.modules[modules()[0]]))
        steps.close()
        steps.close()
    gc.collect()
    assert set(sys.modules) == kept and not any(ref() for ref in gone)


# ---- several answers

WORDS = """
log = []
def words(x):
    try:
        for row in x:
            if row[0] == 100:
                raise ValueError("too large")
            if row[0] == 200:
                raise RuntimeError("broken")
            log.append(float(row[0]))
            yield {"y": row[None]}
    finally:
        log.append("closed")
"""


def test_answers_come_one_by_one_and_join_for_a_warm_up(load):
    graph = FakeGraph()
    steps = Step(name="double", outputs={"y": "twice"}), python("words", "words", inputs={"x": "twice"})
    pipeline = load(WORDS, *steps, graphs={"double": graph}, decoupled=True)
    answers = [answer["y"].tolist() for answer in pipeline.stream({"x": ROWS})]
    assert answers == [[row] for row in (ROWS * 2).tolist()]
    assert pipeline.infer({"x": ROWS})["y"].tolist() == (ROWS * 2).tolist()
    assert pipeline.infer({"x": ROWS[:0]})["y"].shape == (0, 2)
    assert list(pipeline.stream({"x": ROWS[:0]})) == []


def test_an_iterator_that_is_closed_ends_the_functions_work(load):
    pipeline = load(WORDS, python("words", "words"), decoupled=True)
    log = sys.modules[modules()[0]].log
    stream = pipeline.stream({"x": ROWS})
    next(stream)
    assert log == [0.0]
    stream.close()
    assert log == [0.0, "closed"]


@pytest.mark.parametrize(("value", "error"), [(100, InvalidInput), (200, EngineFailure)])
def test_an_error_between_answers(load, value, error):
    pipeline = load(WORDS, python("words", "words"), decoupled=True)
    x = ROWS.copy()
    x[1, 0] = value
    stream = pipeline.stream({"x": x})
    assert next(stream)["y"].tolist() == [[0, 1]]
    with pytest.raises(error, match=r"^step 'words': (too large|steps.py:words failed: RuntimeError: broken)$"):
        next(stream)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return {'y': x}", "gave a dict, expected an iterator"),
        ("return 3", "gave a int, expected an iterator"),
        ("yield x", "gave a ndarray, expected a dict"),
        ("yield {'y': x.astype('f8')}", "output 'y' came as FP64"),
        ("yield {'z': x}", "no step wrote the output 'y'"),
    ],
)
def test_streams_that_are_none(load, body, said):
    pipeline = load(f"def f(x):\n    {body}", python("f", "f"), decoupled=True)
    with pytest.raises(EngineFailure, match=said):
        list(pipeline.stream({"x": ROWS}))


def test_a_list_of_answers_is_as_good_as_an_iterator(load):
    pipeline = load("def f(x):\n    return [{'y': x}, {'y': x}]", python("f", "f"), decoupled=True)
    assert pipeline.infer({"x": ROWS})["y"].shape == (6, 2)


def test_answers_of_different_shapes_do_not_join(load):
    code = "def f(x):\n    yield {'y': x}\n    yield {'y': x[:, :1]}"
    pipeline = load(code, python("f", "f"), outputs=[("y", "FP32", -1, -1)], decoupled=True)
    assert len(list(pipeline.stream({"x": ROWS}))) == 2
    with pytest.raises(EngineFailure, match="2 answers cannot be joined along axis 0"):
        pipeline.infer({"x": ROWS})
