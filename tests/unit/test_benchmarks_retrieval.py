"""The page of retrieval's quality: what counts as found, other weights on what was found, a line for each language."""

from __future__ import annotations

from benchmarks.retrieval_quality import WEIGHTS, Asked, Language, Recall, by_weight, page, recall
from nearmesh.v1 import vector_pb2 as pb


def hit(passage: str, dense: float, lexical: float) -> pb.Hit:
    row = pb.Row(origin=pb.Row.Origin(source=f"passages.jsonl/{passage}"))
    return pb.Hit(row=row, dense_score=dense, lexical_score=lexical)


def test_a_passage_counts_where_its_first_part_stands():
    ways = {"first": ["a", "b", "a"], "second": ["b", "b", "a"], "far": ["b"] * 10 + ["a"], "nowhere": ["b"]}
    found = {way: recall([Asked(answer="a", orders={way: order})], way) for way, order in ways.items()}
    assert found == {
        "first": Recall(at_1=1, at_10=1),
        "second": Recall(at_1=0, at_10=1),
        "far": Recall(at_1=0, at_10=0),
        "nowhere": Recall(at_1=0, at_10=0),
    }


def test_a_weight_puts_what_was_found_in_its_order():
    orders = by_weight([hit("near", 0.9, 1.0), hit("said", 0.1, 9.0)])
    assert orders["1"] == ["near", "said"] and orders["0"] == ["said", "near"] and len(orders) == len(WEIGHTS)


def test_a_line_for_each_language():
    shares = Recall(at_1=0.5, at_10=0.9)
    ways = dict.fromkeys(("dense", "lexical", "hybrid"), shares)
    weights = dict.fromkeys((f"{weight:g}" for weight in WEIGHTS), shares)
    some = Language(passages=240, rows=300, questions=1190, all=ways, chosen_by=weights, others=weights)
    text = page({"en": some, "zh": some})
    assert "| English | 0.500 | 0.900 | 0.500 | 0.900 | 0.500 | 0.900 |" in text and "| Chinese |" in text
    assert "| 0.5 | 0.500 / 0.900 | 0.500 / 0.900 | 0.500 / 0.900 | 0.500 / 0.900 |" in text
    assert "1,190 questions about 240 paragraphs" in text
