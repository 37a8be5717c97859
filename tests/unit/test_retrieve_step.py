"""A step that retrieves: what it reads and writes, what stands in for the collection, and how it fails."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from nearmesh_agent.engines.pipeline.pipeline import Pipeline
from nearmesh_agent.engines.pipeline.retrieve_step import FoundPassage, RetrieveStep
from nearmesh_agent.engines.rehearsal import rehearsal, rehearsing
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.watchdog import Watchdog

from nearmesh.errors import InvalidInput, NotFound, NotReady, PackageError
from nearmesh.package import Batching, Retrieve, Step
from tests.tiny_models import package, spec

ASKED = Retrieve(collection="docs", k=3, sample=("A first passage.", "A second."))
STEPS = (Step(name="find", retrieve=ASKED, inputs={"text": "question"}, outputs={"passages": "found"}),)


class Finder:
    """Notes what it is asked; `failing` is raised."""

    def __init__(self, failing=None):
        self.asked, self.failing, self.threads = [], failing, []

    def check(self, asked):
        if asked.collection == "nowhere":
            raise PackageError("this node keeps no vectors")

    def __call__(self, asked, texts):
        self.asked.append((asked.collection, list(texts)))
        self.threads.append(threading.current_thread())
        if self.failing:
            raise self.failing
        return [[FoundPassage(text=f"about {text}", id="d1", source="a.md", score=0.5)] for text in texts]


def described(*steps, **more):
    return package(
        "asker",
        [spec("question", "BYTES", -1)],
        [spec("found", "BYTES", -1, 3)],
        steps=steps or STEPS,
        variants=(),
        batching=Batching(max_batch=8),
        **more,
    )


def question(*texts):
    given = np.empty(len(texts), object)
    given[:] = [text if isinstance(text, bytes) else text.encode() for text in texts]
    return {"question": given}


def pipeline(tmp_path, retriever=None):
    return Pipeline.load(tmp_path, described(), lambda step: None, retriever=retriever)


def test_passages_of_the_collection_padded_to_k(tmp_path):
    finder = Finder()
    answer = pipeline(tmp_path, finder).infer(question("one", "two"))
    assert answer["found"].tolist() == [[b"about one", b"", b""], [b"about two", b"", b""]]
    assert finder.asked == [("docs", ["one", "two"])]


def test_every_tensor_that_it_writes():
    found = RetrieveStep("find", ASKED, Finder()).run({"text": question("x")["question"]})
    assert {name: (array.dtype.str, array.tolist()) for name, array in found.items()} == {
        "passages": ("|O", [[b"about x", b"", b""]]),
        "ids": ("|O", [[b"d1", b"", b""]]),
        "sources": ("|O", [[b"a.md", b"", b""]]),
        "scores": ("<f4", [[0.5, 0, 0]]),
    }


def test_p5_a_version_is_proven_with_its_sample_whatever_the_collection_has(tmp_path):
    finder = Finder(failing=NotFound("no collection 'docs'"))
    loaded = pipeline(tmp_path, finder)
    with rehearsal():
        assert loaded.infer(question("x"))["found"].tolist() == [[b"A first passage.", b"A second.", b""]]
    assert finder.asked == [] and not rehearsing()


def test_without_a_node_it_gives_its_sample(tmp_path):
    assert pipeline(tmp_path).infer(question("x"))["found"][0, 0] == b"A first passage."


def test_p1_what_is_missing_here_may_be_on_another_node(tmp_path):
    loaded = pipeline(tmp_path, Finder(failing=NotFound("no collection 'docs'")))
    with pytest.raises(NotReady, match=r"'find' cannot retrieve from 'docs' on this node: no collection 'docs'"):
        loaded.infer(question("x"))


@pytest.mark.parametrize("failing", [InvalidInput("the text is empty")])
def test_a_wrong_question_is_the_callers(tmp_path, failing):
    with pytest.raises(InvalidInput, match="step 'find': the text is empty"):
        pipeline(tmp_path, Finder(failing=failing)).infer(question("x"))
    with pytest.raises(InvalidInput, match="a text is not UTF-8"):
        pipeline(tmp_path, Finder()).infer(question(b"\xff"))


def test_a_node_that_keeps_no_vectors_refuses_the_package(tmp_path):
    step = Step(name="find", retrieve=Retrieve(collection="nowhere", sample=("a",)), inputs={"text": "question"})
    with pytest.raises(PackageError, match="this node keeps no vectors"):
        Pipeline.load(tmp_path, described(step), lambda step: None, retriever=Finder())


async def test_the_event_loop_never_waits_for_a_step_that_waits_for_it(tmp_path):
    """However short its calls seemed when the version was proven."""
    finder = Finder()
    replica = Replica(described(), "sha256:1", make=lambda: pipeline(tmp_path, finder))
    await replica.activate()
    replica.measured.times.add(1, 1e-6)
    await replica.infer(question("x"))
    assert threading.main_thread() not in finder.threads
    await replica.close()


async def test_probes_are_about_the_engine_alone(tmp_path):
    """They bring what a warm-up brought; a request that says the same is none."""
    finder, probe = Finder(), question("is it there?")
    replica = Replica(described(), "sha256:1", make=lambda: pipeline(tmp_path, finder))
    await replica.activate()
    replica.probe = probe
    with rehearsal():
        replica._active.engine.infer(probe)
    assert await replica.ask() and finder.asked == []
    answer = await replica.infer(question("is it there?"))
    assert answer.outputs["found"][0, 0] == b"about is it there?"
    await replica.close()


async def test_p10_a_collection_that_is_away_is_not_the_engines_fault(tmp_path):
    now, finder = 0.0, Finder(failing=NotReady("restarting"))
    replica = Replica(described(), "sha256:1", make=lambda: pipeline(tmp_path, finder), clock=lambda: now)
    await replica.activate()
    replica.probe = question("x")
    watchdog = Watchdog([replica], Replica.activate, clock=lambda: now)
    now = 10.0
    await watchdog.look()
    await watchdog._watched[replica].probe
    assert finder.asked and replica.ready and not replica.fault
    await replica.close()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"k": 0}, "retrieve.k is 0, expected 1 to 100"),
        ({"collection": ""}, "retrieve.collection is empty"),
        ({"sample": ()}, "retrieve.sample is empty; give a passage or more"),
        ({"timeout_ms": 0.0}, "retrieve.timeout_ms must be above 0, got 0"),
    ],
)
def test_wrong_values_are_named(values, said):
    with pytest.raises(InvalidInput, match=said):
        Retrieve(**{"collection": "docs", "sample": ("a",)} | values)


def test_a_step_is_one_thing():
    with pytest.raises(InvalidInput, match="step 'find' has both `python` and `retrieve`; make two steps of it"):
        Step(name="find", python="steps.py:find", retrieve=ASKED)
