"""After the last round: the parent's graph with the run's parameters, and what the sites say of it.

The sites run the graph itself, as a node would serve it, on the data that they held back.
"""

from __future__ import annotations

from flwr.app import ConfigRecord, MessageType, RecordDict

from nearmesh.packaging import parameters
from nearmesh.round_messages import ARRAYS, CONFIG, GRAPH, TOLERANCE, digest
from nearmesh_controlplane.rounds.layout import record_of
from nearmesh_controlplane.rounds.loop import ABSENT, Rounds, Said
from nearmesh_controlplane.runs.folder import Arrays, Judged

# What Flower addresses: QUERY, and which of the app's.
QUERY = f"{MessageType.QUERY}.candidate"


def judge(rounds: Rounds, arrays: Arrays) -> None:
    """Writes the candidate and the sites' word. Done before, or a run without a graph: nothing.

    Raises GivenUp, PackageError.
    """
    folder, plan = rounds.folder, rounds.plan
    if folder.judged() is not None or not plan.parameters or not folder.graph.exists():
        return
    ordered = {name: arrays[name] for name in plan.parameters}
    parameters.write(folder.graph, ordered, folder.candidate_graph)
    config = {
        **rounds.config(plan.rounds, digest(ordered)),
        GRAPH: folder.candidate_graph.read_bytes(),
        TOLERANCE: plan.tolerance,
    }
    said = rounds.evaluate(plan.rounds, QUERY, RecordDict({ARRAYS: record_of(ordered), CONFIG: ConfigRecord(config)}))
    nodes = dict.fromkeys([*rounds.sites.nodes(), *said.counted, *said.complaints])
    folder.write_judged([_judged(node, said) for node in nodes])


def _judged(node: str, said: Said) -> Judged:
    word = said.counted.get(node)
    if word is None:
        return Judged(node=node, failed=said.complaints.get(node, ABSENT))
    return Judged(node=node, examples=word.examples, metrics=word.figures, difference=word.difference)
