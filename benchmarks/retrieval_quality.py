"""How often the passage that answers a question is found first, or among ten: through a node's own import and Retrieve.

    python -m benchmarks.retrieval_quality

The XQuAD sets (1,190 questions about 240 paragraphs, in three languages) are found through NEARMESH_TEST_DATA. A node
is started with models/sentence-encoder, each set imported as a user would, and each question asked by meaning, by words
and by both. The weight of the two was chosen by every other question, and the others say how well. Two minutes on two
cores; writes benchmarks/results/retrieval_quality.{json,md}.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nearmesh_agent.vectors.model import Metric
from nearmesh_agent.vectors.text import fusion

from benchmarks.table import Table, markdown
from benchmarks.vector_node import VectorNode, vector_node
from nearmesh.client.vectors import Collection
from nearmesh.ingest.files import find
from nearmesh.ingest.importer import Wish
from nearmesh.ingest.importer import run as import_files
from nearmesh.v1 import vector_pb2 as pb

VARIABLE = "NEARMESH_TEST_DATA"
LANGUAGES = {"en": "English", "es": "Spanish", "zh": "Chinese"}
ENCODER = Path(__file__).parents[1] / "models" / "sentence-encoder"
RESULTS = Path(__file__).with_name("results")
K = 10
# So many are asked for, to try other weights on what was found.
DEEP = 100
WEIGHTS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
WAYS = ("dense", "lexical", "hybrid")
AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Question:
    """And the passage that answers it."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """Shares of questions whose passage is first, or among ten."""

    at_1: float
    at_10: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question, and what was found: passages best first, by each way and by both with each weight."""

    answer: str
    orders: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """Of one set."""

    passages: int
    rows: int
    questions: int
    # By way: "dense", "lexical", "hybrid".
    all: Mapping[str, Recall]
    # By weight: of the questions that it was chosen by, and of the others.
    chosen_by: Mapping[str, Recall]
    others: Mapping[str, Recall]


def questions(folder: Path) -> list[Question]:
    """In the file's order."""
    answers = dict(line.split("\t")[:2] for line in (folder / "qrels.tsv").read_text("utf-8").splitlines()[1:])
    read = map(json.loads, (folder / "queries.jsonl").read_text("utf-8").splitlines())
    return [Question(each["text"], answers[each["id"]]) for each in read]


def recall(asked: Sequence[Asked], order: str) -> Recall:
    """Of passages, not of their parts: one counts where the first of its parts stands."""
    places = [place(each.orders[order], each.answer) for each in asked]
    return Recall(
        at_1=sum(each < 1 for each in places) / len(places), at_10=sum(each < K for each in places) / len(places)
    )


def place(order: Sequence[str], answer: str) -> int:
    """Among the rows, from 0; past all of them where it is not there."""
    return order.index(answer) if answer in order else max(K, len(order))


def by_weight(hits: Sequence[pb.Hit]) -> dict[str, list[str]]:
    """One answer's rows in the order of each weight."""
    found = {}
    parts = [(hit.dense_score, hit.lexical_score) for hit in hits]
    for weight in WEIGHTS:
        scores = fusion.again(parts, metric=Metric.COSINE, weight=weight)
        best = sorted(range(len(hits)), key=lambda i: -scores[i])
        found[f"{weight:g}"] = _passages([hits[i] for i in best])
    return found


def _passages(hits: Sequence[pb.Hit]) -> list[str]:
    """A source is "passages.jsonl/ID"."""
    return [hit.row.origin.source.rpartition("/")[2] for hit in hits]


async def measured(node: VectorNode, folder: Path, language: str) -> Language:
    collection = await node.client.create(language, embedder="sentence-encoder")
    tally = await import_files(collection, find([folder / "passages.jsonl"]), Wish())
    asked = await ask_all(collection, questions(folder))
    described = await collection.describe()
    return Language(
        passages=tally.new,
        rows=described.rows,
        questions=len(asked),
        all={way: recall(asked, way) for way in WAYS},
        chosen_by={f"{weight:g}": recall(asked[::2], f"{weight:g}") for weight in WEIGHTS},
        others={f"{weight:g}": recall(asked[1::2], f"{weight:g}") for weight in WEIGHTS},
    )


async def ask_all(collection: Collection, asked: Sequence[Question]) -> list[Asked]:
    turns = asyncio.Semaphore(AT_ONCE)

    async def ask(question: Question) -> Asked:
        async with turns:
            found = by_weight((await collection.retrieve(question.text, k=DEEP)).hits)
            for way in WAYS:
                found[way] = _passages((await collection.retrieve(question.text, k=K, mode=way)).hits)
        return Asked(answer=question.answer, orders=found)

    return list(await asyncio.gather(*map(ask, asked)))


async def run(data: Path) -> dict[str, Language]:
    """By language."""
    with tempfile.TemporaryDirectory(prefix="nearmesh-quality-") as scratch:
        async with vector_node(Path(scratch), (ENCODER,)) as node:
            return {name: await measured(node, data / f"xquad_{name}_retrieval", name) for name in LANGUAGES}


def page(found: Mapping[str, Language]) -> str:
    """The whole Markdown page."""
    columns = ("language", "dense @1", "@10", "lexical @1", "@10", "hybrid @1", "@10")
    rows = tuple(
        (LANGUAGES[name], *(_share(value) for way in WAYS for value in _both(each.all[way])))
        for name, each in found.items()
    )
    weights = tuple(
        (
            f"{weight:g}",
            *(_pair(part[f"{weight:g}"]) for each in found.values() for part in (each.chosen_by, each.others)),
        )
        for weight in WEIGHTS
    )
    heads = tuple(f"{LANGUAGES[name]}, {half}" for name in found for half in ("chosen by", "others"))
    some = next(iter(found.values()))
    return (
        "# Whether the right passage is found\n\n"
        "Written by `python -m benchmarks.retrieval_quality`; a new run replaces it. The figures are in "
        "`retrieval_quality.json` beside this page.\n\n"
        f"XQuAD: {some.questions:,} questions about {some.passages} paragraphs of Wikipedia, each answered in one; the "
        "same in three languages. Imported by a node with `models/sentence-encoder` as `nearmesh vectors import` does, "
        "and asked through `Retrieve`. The shares of questions whose paragraph is first (@1) and among the first ten "
        "rows (@10):\n\n"
        f"{markdown(Table(title='', columns=columns, rows=rows))}\n\n"
        "all-MiniLM-L6-v2 knows English. In Spanish words are the better part of the answer, in Chinese nearly all of "
        "it; `dense_weight` stays low enough by default that the fused answer is as good as words alone there. For "
        "texts in other languages publish an encoder that knows them (multilingual-e5-small has as many dimensions), "
        "and give it 0.6 to 0.7 of the weight where it knows the language well.\n\n"
        f"The default weight of the dense part is {fusion.DENSE_WEIGHT:g}. It was chosen by the questions with even "
        "numbers, as the best mean over the three languages; how it does on the others stands beside that (@1 / @10):"
        "\n\n"
        f"{markdown(Table(title='', columns=('weight', *heads), rows=weights))}\n"
    )


def _both(found: Recall) -> tuple[float, float]:
    return found.at_1, found.at_10


def _pair(found: Recall) -> str:
    return " / ".join(map(_share, _both(found)))


def _share(value: float) -> str:
    return f"{value:.3f}"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    named = os.environ.get(VARIABLE)
    if not named or not (Path(named) / "xquad_en_retrieval").is_dir():
        print(f"Error: set {VARIABLE} to the folder that has xquad_en_retrieval/", file=sys.stderr)
        sys.exit(1)
    found = asyncio.run(run(Path(named)))
    text = json.dumps({name: asdict(each) for name, each in found.items()}, indent=1)
    (RESULTS / "retrieval_quality.json").write_text(text + "\n", "utf-8")
    (RESULTS / "retrieval_quality.md").write_text(page(found), "utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
