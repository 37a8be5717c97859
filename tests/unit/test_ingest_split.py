"""Where texts are cut: nothing is lost, nothing is too long, and a cut is where a reader would make one."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nearmesh.errors import ConfigError
from nearmesh.ingest.document import Break, Content
from nearmesh.ingest.markdown import read_markdown
from nearmesh.ingest.plain import read_plain
from nearmesh.ingest.split import Part, Sizes, split, units, weight

WORDS = st.sampled_from(
    [*"a|word|Sentence.|end?|\n|\n\n|  |# Heading\n|- item\n|字|句子。|e\u0301|---\n|```\n".split("|"), "x" * 400]  # noqa: SIM905
)
TEXTS = st.lists(WORDS, max_size=120).map(" ".join) | st.text(max_size=600)
SIZES = st.integers(100, 300).flatmap(lambda n: st.builds(Sizes, st.just(n), st.integers(0, n // 2)))


def ends(parts: list[Part]) -> list[int]:
    return [part.start + len(part.text) for part in parts]


@settings(deadline=None)
@given(TEXTS, SIZES, st.booleans())
@example("x" * 400 + " a \n\n " + "x" * 400, Sizes(102, 4), True)
def test_parts_are_slices_in_order_that_leave_out_white_space_alone(text: str, sizes: Sizes, is_markdown: bool) -> None:
    parts = split(read_markdown(text) if is_markdown else read_plain(text), sizes)
    reached = 0
    for part in parts:
        assert text[part.start : part.start + len(part.text)] == part.text
        assert part.text == part.text.strip() != ""
        assert weight(part.text) <= sizes.length
        assert not text[reached : part.start].strip(), "something between two parts is lost"
        # The overlap, and that each part has something that no part before it had.
        assert weight(text[part.start : reached]) <= sizes.overlap
        assert part.start + len(part.text) > reached
        reached = part.start + len(part.text)
    assert not text[reached:].strip()
    assert [part.start for part in parts] == sorted({part.start for part in parts})


@settings(deadline=None)
@given(TEXTS, st.integers(100, 300))
def test_units_are_all_of_the_text(text: str, length: int) -> None:
    found = list(units(text, read_plain(text).breaks, length))
    assert "".join(text[unit.start : unit.end] for unit in found) == text
    assert all(unit.weight <= length for unit in found)


@pytest.mark.parametrize("tiny", ["a\n\n", "a. ", "\n"])
def test_a_text_of_tiny_units_takes_little_more_memory_than_it_has(tiny: str) -> None:
    text = tiny * (150_000 // len(tiny))
    tracemalloc.start()
    try:
        split(read_plain(text), Sizes())
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 20 * len(text)


def test_what_fits_is_one_part() -> None:
    assert split(read_plain("One. Two.\n\nThree.\n"), Sizes()) == [Part("One. Two.\n\nThree.", 0, "lines 1-3")]
    assert split(read_plain(" \n\n "), Sizes()) == []
    assert split(Content(""), Sizes()) == []


def test_a_full_part_ends_at_the_best_place_of_its_second_half() -> None:
    paragraph = "It has a sentence. And another one."
    text = f"{'First things come first. ' * 3}\n\n{paragraph}\n\n{'Then the rest follows. ' * 4}"
    first, *_ = split(read_plain(text), Sizes(130, 0))
    assert first.text.endswith("And another one."), "a paragraph's end, though a sentence more would fit"
    one, *_ = split(Content("word " * 20 + "End here. " + "more " * 20), Sizes(150, 0))
    assert one.text.endswith("End here.")


def test_a_cut_sentence_is_whole_in_the_next_part() -> None:
    text = " ".join(f"Sentence number {n} says something." for n in range(12))
    parts = split(read_plain(text), Sizes(200, 80))
    for before, after in pairwise(parts):
        last = before.text.rpartition(" Sentence")[2]
        assert last in after.text and after.text.startswith("Sentence"), (before, after)


def test_an_overlap_begins_at_a_word_where_no_sentence_fits() -> None:
    text = " ".join(f"word{n:03}" for n in range(100))
    parts = split(read_plain(text), Sizes(200, 50))
    assert len(parts) > 3
    for before, after in pairwise(parts):
        shared = before.start + len(before.text) - after.start
        assert 30 < shared <= 50 and after.text.startswith("word")


def test_chinese_is_cut_at_its_sentences_and_counts_as_more() -> None:
    text = "这是一个句子。" * 40
    parts = split(read_plain(text), Sizes(200, 60))
    assert all(part.text.startswith("这") and part.text.endswith("。") for part in parts)
    assert all(len(part.text) <= 50 for part in parts)
    assert weight("这是") == 8


def test_sections_are_kept_apart_unless_they_are_short() -> None:
    long = "\n\n" + "Some words of it. " * 4 + "\n\n"
    text = f"# One{long}# Two{long}# Three\n\nshort\n\n# Four{long}"
    parts = split(read_markdown(text), Sizes(250, 0))
    assert [part.text.partition("\n")[0] for part in parts] == ["# One", "# Two", "# Three"]
    assert "# Four" in parts[-1].text
    assert [part.position for part in parts] == ["One", "Two", "Three"]


def test_a_long_text_takes_time_in_proportion() -> None:
    """A text made to be slow: no ends, only ends, or quotes that might be ends."""
    for hostile in ("x", ".", '."', "\n ", "字", "e\u0301"):
        text = "e" + hostile * (200_000 // len(hostile)) + "x"
        assert "".join(text[unit.start : unit.end] for unit in units(text, [], 1000)) == text


@pytest.mark.parametrize("sizes", [(99, 0), (15_001, 0), (200, 101), (200, -1)])
def test_sizes_that_make_no_sense_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="is not from"):
        Sizes(*sizes)


def test_the_best_place_is_the_last() -> None:
    assert max(Break) is Break.SECTION
