"""A question to one table: by vector, by words, by both, with filters, beside deletes."""

from __future__ import annotations

import numpy as np
import pytest
from nearmesh_agent.vectors.model import Metric
from nearmesh_agent.vectors.text import retrieve as module
from nearmesh_agent.vectors.text.lexical import TantivyLexical
from nearmesh_agent.vectors.text.retrieve import Ask, Mode, retrieve

from nearmesh.errors import InvalidInput
from tests.plain_vectors import Only, PlainIndex, row, write

ROWS = (
    row("storm", "A storm tore the roof off the barn.", (1, 0), kind="news"),
    row("wind", "Gusts damaged farm buildings.", (0.9, 0.3), kind="news"),
    row("stock", "The storm of orders lifted the share.", (-0.5, 1), kind="money"),
    row("cat", "Cats sleep all day.", (0, 1), kind="pets"),
)
VECTOR = np.array([1, 0.1], np.float32)


@pytest.fixture
def lexical(tmp_path):
    opened = TantivyLexical.new(tmp_path)
    opened.apply(write(*ROWS), 1)
    yield opened
    opened.close()


@pytest.fixture
def index():
    found = PlainIndex()
    found.apply(write(*ROWS), 1)
    return found


def ids(passages):
    return [each.row.id for each in passages.found]


def ask(index, lexical, text="storm", **more):
    return retrieve(index, lexical, index.metric, Ask(**{"text": text, "vector": VECTOR, "k": 10} | more))


def test_both_ways_together(index, lexical):
    found = ask(index, lexical)
    assert ids(found)[0] == "storm" and set(ids(found)) == {each.id for each in ROWS}
    assert found.found[0].fused.dense_rank == 1 and found.found[0].fused.lexical_rank == 1
    assert found.dense_ms >= 0 and found.lexical_ms >= 0


@pytest.mark.parametrize(
    ("mode", "order"),
    [(Mode.DENSE, ["storm", "wind", "cat", "stock"]), (Mode.LEXICAL, ["stock", "storm"])],
)
def test_one_way_alone(index, lexical, mode, order):
    assert sorted(ids(ask(index, lexical, mode=mode))[: len(order)]) == sorted(order)
    scores = [each.fused.score for each in ask(index, lexical, mode=mode).found]
    assert scores == sorted(scores, reverse=True)


def test_words_alone_need_no_vector(index, lexical):
    assert set(ids(ask(index, lexical, mode=Mode.LEXICAL, vector=None))) == {"storm", "stock"}
    with pytest.raises(InvalidInput, match="no embedder; ask by words"):
        ask(index, lexical, vector=None)


def test_what_words_alone_found_has_its_true_distance(index, lexical, monkeypatch):
    monkeypatch.setattr(module, "CANDIDATES", 1)
    found = {each.row.id: each.fused for each in ask(index, lexical, text="cats sleep", k=1, weight=0.1).found}
    assert found["cat"].dense_score == pytest.approx(0.1 / np.hypot(1, 0.1), rel=1e-3)


@pytest.mark.parametrize("costs", [0, 3])
def test_few_or_many_of_a_filter_are_found_alike(tmp_path, monkeypatch, costs):
    """By naming them, by looking at more hits, and where these turn out to be too few."""
    monkeypatch.setattr(module, "_COSTS", costs)
    texts = {number: "storm " * (200 - number) + "calm " * number for number in range(200)}
    rows = [row(f"{number:03}", text, late=number >= 20) for number, text in texts.items()]
    index, lexical = PlainIndex(), TantivyLexical.new(tmp_path)
    index.apply(write(*rows), 1)
    lexical.apply(write(*rows), 1)
    lexical.maintain()
    filters = {
        "even": (lambda each: int(each.id) % 2 == 0, ["000", "002", "004"]),
        "late": (lambda each: each.fields["late"], ["020", "021", "022"]),
        "few": (lambda each: each.id in ("150", "199"), ["150", "199"]),
    }
    for takes, expected in filters.values():
        found = ask(index, lexical, mode=Mode.LEXICAL, k=3, where=Only(takes))
        assert ids(found) == expected
    lexical.close()


@pytest.mark.parametrize("most_among", [20_000, 1])
def test_a_filter_holds_for_both_ways(index, lexical, monkeypatch, most_among):
    monkeypatch.setattr(module, "MOST_AMONG", most_among)
    news = Only(lambda each: each.fields["kind"] == "news")
    assert ids(ask(index, lexical, where=news)) == ["storm", "wind"]
    money = Only(lambda each: each.fields["kind"] == "money")
    assert ids(ask(index, lexical, mode=Mode.LEXICAL, where=money)) == ["stock"]
    assert ids(ask(index, lexical, where=Only(lambda each: False))) == []


def test_a_wide_filter_is_looked_through_until_there_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_AMONG", 5)
    rows = [row(f"{number:03}", "storm " * (100 - number), keep=number >= 90) for number in range(100)]
    index, lexical = PlainIndex(), TantivyLexical.new(tmp_path)
    index.apply(write(*rows), 1)
    lexical.apply(write(*rows), 1)
    lexical.maintain()
    found = ask(index, lexical, mode=Mode.LEXICAL, k=3, where=Only(lambda each: each.fields["keep"]))
    assert len(found.found) == 3 and all(each.row.fields["keep"] for each in found.found)
    lexical.close()


def test_what_was_deleted_meanwhile_gives_its_place_to_the_next(index, lexical):
    del index.here["storm"]
    assert "storm" not in ids(ask(index, lexical, k=2)) and len(ids(ask(index, lexical, k=2))) == 2


def test_an_empty_table_has_no_passages(lexical):
    assert ids(ask(PlainIndex(), lexical)) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"k": 0}, "k is 0, expected 1 or more"),
        ({"weight": 1.5}, r"dense_weight is 1.5, expected 0 \(words alone\) to 1"),
        ({"weight": float("nan")}, "dense_weight is nan"),
    ],
)
def test_what_cannot_be_asked(index, lexical, more, said):
    with pytest.raises(InvalidInput, match=said):
        ask(index, lexical, **more)


@pytest.mark.parametrize("metric", list(Metric))
def test_scores_are_the_metrics(metric):
    vector, rows = np.array([3, 4], np.float32), np.array([[3, 4], [0, 2]], np.float32)
    expected = {Metric.COSINE: [1, 0.8], Metric.INNER_PRODUCT: [25, 8], Metric.L2: [0, 13]}[metric]
    assert module.scores(vector, rows, metric).tolist() == pytest.approx(expected)
