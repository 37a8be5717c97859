"""Six speakers over three sites, two at each: which digit did somebody say?

Data: Free Spoken Digit Dataset by Zohar Jackson and contributors (CC BY-SA 4.0), as log-mel bands. The publisher has a
few recordings to judge variants with; the rest lies at the sites.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.federated.onnx_graph import initializers, onnx_model
from benchmarks.federated.study import Arrays, Data, SiteData, Study, parted, recipe

FOLDER = "fsdd_speakers"
SITES = ("speakers-a", "speakers-b", "speakers-c")
# Takes from here on are the publisher's: for judging variants, and from the second on for ranges and a first model.
PUBLISHER, SECOND = 43, 47
# The first version has heard this speaker alone, in the publisher's few takes of him.
FIRST_SPEAKER = 0
# Wide enough that 8 bits are worth something to a processor.
BANDS, STEPS, HIDDEN, DIGITS = 32, 16, 512, 10
SEED = 7


def read(folder: Path, seed: int) -> dict[str, SiteData]:
    """Each site's two speakers."""
    x, digit, speaker, take = _all(folder)
    found = {}
    for at, site in enumerate(SITES):
        mine = (speaker // 2 == at) & (take < PUBLISHER)
        found[site] = parted({"logmel": x[mine]}, digit[mine], 100 * seed + at)
    return found


def write_sites(folder: Path, into: Path) -> dict[str, dict[str, Any]]:
    """Two archives for each site."""
    asked = {}
    for site, data in read(folder, 0).items():
        place = into / site
        place.mkdir(parents=True, exist_ok=True)
        for name, rows in (("train", data.train), ("held_back", data.held_back)):
            np.savez(place / f"{name}.npz", **{"input.logmel": rows.inputs["logmel"], "target": rows.targets})
        asked[site] = {"path": str(place), "format": "arrays"}
    return asked


def sets(folder: Path) -> dict[str, Data]:
    """The publisher's: every speaker's takes."""
    x, digit, _, take = _all(folder)
    judged, second = (take >= PUBLISHER) & (take < SECOND), take >= SECOND
    return {
        "evaluation": Data({"logmel": x[judged]}, digit[judged]),
        "calibration": Data({"logmel": x[second]}, digit[second]),
    }


def first(folder: Path) -> Arrays:
    """What a few recordings of one speaker teach."""
    x, digit, speaker, take = _all(folder)
    mine = (speaker == FIRST_SPEAKER) & (take >= SECOND)
    settings = {"epochs": 20, "batch_size": 10, "learning_rate": 0.01, "momentum": 0.9}
    arrays, _ = recipe("spoken-digits").train(untrained(), Data({"logmel": x[mine]}, digit[mine]), settings)
    return dict(arrays)


def untrained() -> Arrays:
    drawn = np.random.default_rng(SEED)
    pixels = BANDS * STEPS
    return {
        "layer1.weight": drawn.normal(0, pixels**-0.5, (HIDDEN, pixels)).astype(np.float32),
        "layer1.bias": np.zeros(HIDDEN, np.float32),
        "layer2.weight": drawn.normal(0, HIDDEN**-0.5, (DIGITS, HIDDEN)).astype(np.float32),
        "layer2.bias": np.zeros(DIGITS, np.float32),
    }


def graph(arrays: Arrays) -> Any:
    """The network as an ONNX model; mean and deviation of each recording are taken out in it."""
    from onnx import helper, numpy_helper

    smallest = recipe("spoken-digits").SMALLEST
    node = helper.make_node
    nodes = [
        node("Flatten", ["logmel"], ["flat"], "flatten", axis=1),
        node("ReduceMean", ["flat"], ["mean"], "mean", axes=[1], keepdims=1),
        node("Sub", ["flat", "mean"], ["centred"], "centre"),
        node("Mul", ["centred", "centred"], ["squares"], "square"),
        node("ReduceMean", ["squares"], ["variance"], "variance", axes=[1], keepdims=1),
        node("Add", ["variance", "smallest"], ["some"], "never_zero"),
        node("Sqrt", ["some"], ["deviation"], "deviation"),
        node("Div", ["centred", "deviation"], ["normal"], "scale"),
        node("Gemm", ["normal", "layer1.weight", "layer1.bias"], ["seen"], "layer1", transB=1),
        node("Relu", ["seen"], ["hidden"], "relu"),
        node("Gemm", ["hidden", "layer2.weight", "layer2.bias"], ["logits"], "layer2", transB=1),
        node("Softmax", ["logits"], ["scores"], "softmax", axis=1),
    ]
    constants = [*initializers(arrays), numpy_helper.from_array(np.float32(smallest), "smallest")]
    return onnx_model("spoken-digits", nodes, constants, ("logmel", BANDS, STEPS), ("scores", DIGITS))


def _all(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    with np.load(folder / FOLDER / "logmel_32x16.npz") as found:
        return (
            found["x"].astype(np.float32),
            found["digit"].astype(np.int64),
            found["speaker"].astype(np.int64),
            found["take"].astype(np.int64),
        )


STUDY = Study(
    name="spoken-digits",
    title="Six speakers, two at each of three sites",
    sites=SITES,
    rounds=8,
    splits=5,
    read=read,
    write_sites=write_sites,
    first=first,
    graph=graph,
    sets=sets,
)
