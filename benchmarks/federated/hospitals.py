"""Four hospitals, each with its own patients and its own habits of what is looked for: is the heart diseased?

Data: Heart Disease by A. Janosi, W. Steinbrunn, M. Pfisterer and R. Detrano (UCI, CC BY 4.0). Each tenth patient is the
publisher's, to judge variants with; the others' records lie in their hospital as a CSV file.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.federated.onnx_graph import initializers, onnx_model
from benchmarks.federated.study import HELD_BACK, Arrays, Data, SiteData, Study, parted, recipe

FOLDER = "heart_disease_sites"
SITES = ("cleveland", "hungarian", "switzerland", "va")
PUBLISHER_EVERY = 10
# The first version: who is older than most adults (the usual mean, in training.py) is taken for diseased.
RULE_OF_THUMB = {"age": 1.0}


def read(folder: Path, seed: int) -> dict[str, SiteData]:
    """Each hospital's patients."""
    found = {}
    for at, (site, rows) in enumerate(_at_sites(folder).items()):
        findings, diseased = _numbers(rows)
        found[site] = parted({"findings": findings}, diseased, 100 * seed + at)
    return found


def write_sites(folder: Path, into: Path) -> dict[str, dict[str, Any]]:
    """A CSV file for each hospital."""
    columns = list(recipe("heart-disease").COLUMNS)
    into.mkdir(parents=True, exist_ok=True)
    asked = {}
    for site, rows in _at_sites(folder).items():
        path = into / f"{site}.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        asked[site] = {
            "path": str(path),
            "format": "csv",
            "inputs": columns,
            "target": "num",
            "target_above": 0,
            "missing": -9.0,
            "held_back": HELD_BACK,
        }
    return asked


def sets(folder: Path) -> dict[str, Data]:
    """The publisher's patients."""
    findings, diseased = _numbers(_rows(folder)[::PUBLISHER_EVERY])
    return {"evaluation": Data({"findings": findings}, diseased)}


def first(folder: Path) -> Arrays:
    """The rule of thumb as weights."""
    names = recipe("heart-disease").FEATURES
    points = np.array([RULE_OF_THUMB.get(name, 0.0) for name in names], np.float32)
    return {
        "layer.weight": np.stack([-points, points], axis=1) / 2,
        "layer.bias": np.zeros(2, np.float32),
    }


def graph(arrays: Arrays) -> Any:
    """`features` of training.py, and the layer, as an ONNX model."""
    from onnx import TensorProto, helper, numpy_helper

    rules = recipe("heart-disease")
    constants = initializers(arrays)
    nodes = []

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def columns(group: str, names: tuple[str, ...]) -> str:
        places = np.array([rules.COLUMNS.index(name) for name in names], np.int64)
        return add("Gather", ["findings", constant(f"{group}_columns", places)], group, axis=1)

    def missing(group: str, names: tuple[str, ...]) -> str:
        never = constant(f"{group}_never_zero", np.array([name in rules.NEVER_ZERO for name in names]))
        unmeasured = add("And", [add("Equal", [group, "zero"], f"{group}_is_zero"), never], f"{group}_unmeasured")
        return add("Or", [add("Equal", [group, "not_found"], f"{group}_is_marked"), unmeasured], f"{group}_missing")

    constant("zero", np.float32(0))
    constant("not_found", np.float32(rules.MISSING))
    usual = tuple(rules.USUAL)
    means, deviations = (np.array([rules.USUAL[name][at] for name in usual], np.float32) for at in (0, 1))
    gap = missing(columns("measured", usual), usual)
    centred = add("Sub", ["measured", constant("usual_means", means)], "measured_centred")
    scaled = add("Div", [centred, constant("usual_deviations", deviations)], "measured_scaled")
    bounds = [constant("least", np.float32(-rules.MOST)), constant("most", np.float32(rules.MOST))]
    known = add("Where", [gap, "zero", add("Clip", [scaled, *bounds], "measured_clipped")], "measured_known")

    gap = missing(columns("flags", rules.FLAGS), rules.FLAGS)
    twice = add("Mul", ["flags", constant("two", np.float32(2))], "flags_twice")
    sided = add("Sub", [twice, constant("one", np.float32(1))], "flags_sided")
    flags = add("Where", [gap, "zero", sided], "flags_known")

    kinds = [(column, kind) for column, of in rules.KINDS.items() for kind in of]
    repeated = columns("kinds", tuple(column for column, _ in kinds))
    values = constant("kinds_values", np.array([kind for _, kind in kinds], np.float32))
    one_hot = add("Cast", [add("Equal", [repeated, values], "kinds_equal")], "kinds_known", to=TensorProto.FLOAT)

    gap = missing(columns("told", rules.TOLD_IF_MISSING), rules.TOLD_IF_MISSING)
    told = add("Cast", [gap], "told_known", to=TensorProto.FLOAT)

    features = add("Concat", [known, flags, one_hot, told], "features", axis=1)
    logits = add("Add", [add("MatMul", [features, "layer.weight"], "weighed"), "layer.bias"], "logits")
    add("Softmax", [logits], "scores", axis=1)
    return onnx_model("heart-disease", nodes, constants, ("findings", len(rules.COLUMNS)), ("scores", 2))


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / FOLDER / "patients.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _at_sites(folder: Path) -> dict[str, list[dict[str, str]]]:
    """By site, all but the publisher's."""
    rows = [row for at, row in enumerate(_rows(folder)) if at % PUBLISHER_EVERY]
    return {site: [row for row in rows if row["site"] == site] for site in SITES}


def _numbers(rows: list[dict[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Findings as the graph takes them, and who is diseased."""
    rules = recipe("heart-disease")
    findings = [[float(row[name]) if row[name] else rules.MISSING for name in rules.COLUMNS] for row in rows]
    return np.array(findings, np.float32), np.array([float(row["num"]) > 0 for row in rows], np.int64)


STUDY = Study(
    name="heart-disease",
    title="Four hospitals",
    sites=SITES,
    rounds=10,
    splits=20,
    read=read,
    write_sites=write_sites,
    first=first,
    graph=graph,
    sets=sets,
)
