"""Words of texts: what is found, at once and after a commit, after a crash, in scripts without spaces."""

from __future__ import annotations

import json
import shutil
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nearmesh_agent.vectors import limits
from nearmesh_agent.vectors.text import lexical as module
from nearmesh_agent.vectors.text import words
from nearmesh_agent.vectors.text.lexical import TantivyLexical

from nearmesh.errors import EngineFailure, InvalidInput
from tests.plain_vectors import row, write

BARN = row("barn", "A storm tore the roof off the barn.")
TRAIN = row("train", "The trains were late because of the storm in the valley, and because of the snow.")
ROUTER = row("router", "Restart the router when the connection is slow.")


@pytest.fixture
def lexical(tmp_path):
    opened = TantivyLexical.new(tmp_path / "words")
    yield opened
    opened.close()


def ids(found):
    return [each.id for each in found]


@pytest.mark.parametrize("committed", [False, True])
def test_the_best_match_comes_first(lexical, committed):
    lexical.apply(write(BARN, TRAIN, ROUTER), 1)
    if committed:
        lexical.maintain()
    assert ids(lexical.search("storm barn", 10)) == ["barn", "train"]
    assert ids(lexical.search("storm", 10)) == ["barn", "train"], "the shorter text says it more"
    assert ids(lexical.search("storm", 1)) == ["barn"]
    assert lexical.search("helicopter", 10) == []
    assert lexical.search("?!", 10) == []


def test_a_row_scores_alike_before_and_after_the_commit(lexical):
    lexical.apply(write(BARN, TRAIN, ROUTER), 1)
    fresh = lexical.search("the storm and the barn", 10)
    lexical.maintain()
    committed = lexical.search("the storm and the barn", 10)
    assert ids(fresh) == ids(committed)
    assert [each.score for each in fresh] == pytest.approx([each.score for each in committed], rel=0.1)


@pytest.mark.parametrize(
    ("asked", "finds"),
    [
        ("TRAIN", "train"),
        ("restarting", "router"),
        ("routers'", "router"),
        ("Zurich", "zürich"),
        ("数据库", "zh"),
        ("据", None),
        ("東京タワー", "ja"),
        ("도쿄에서", "ko"),
        ("ﬁle", "file"),
    ],
)
@pytest.mark.parametrize("committed", [False, True])
def test_words_are_found_in_every_form_and_script(lexical, asked, finds, committed):
    more = (
        row("zürich", "Zürich liegt am See."),
        row("zh", "我们把向量存放在数据库里。"),
        row("ja", "東京タワーは高い。"),
        row("ko", "도쿄에서 만나요"),
        row("file", "the file is gone"),
    )
    lexical.apply(write(BARN, TRAIN, ROUTER, *more), 1)
    if committed:
        lexical.maintain()
    assert ids(lexical.search(asked, 10)) == ([finds] if finds else [])


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize(
    ("language", "text", "asked", "finds"),
    [
        ("german", "Die Häuser stehen am Fluss.", "Haus", True),
        ("english", "Die Häuser stehen am Fluss.", "Haus", False),
        ("russian", "новые книги", "книга", True),
        ("none", "The trains were late.", "train", False),
        ("none", "The trains were late.", "TRAINS", True),
        ("spanish", "我们把向量存放在数据库里。", "数据库", True),
    ],
)
def test_words_lose_their_endings_as_in_the_language_that_is_named(tmp_path, language, text, asked, finds, committed):
    lexical = TantivyLexical.new(tmp_path, language)
    lexical.apply(write(row("a", text)), 1)
    if committed:
        lexical.maintain()
    assert bool(lexical.search(asked, 10)) is finds
    lexical.save()
    lexical.close()
    assert TantivyLexical.load(tmp_path, "dutch") is None, "it is made anew"
    again = TantivyLexical.load(tmp_path, language)
    assert again is not None and bool(again.search(asked, 10)) is finds
    again.close()


@pytest.mark.parametrize("language", limits.LANGUAGES)
def test_every_language_that_may_be_named_is_known(language):
    assert words.words("storm storm", language).total() == 2


def test_what_was_saved_before_there_were_languages_is_english(tmp_path):
    first = TantivyLexical.new(tmp_path)
    first.apply(write(BARN), 7)
    first.save()
    first.close()
    (tmp_path / "position.json").write_text(json.dumps({"version": 1, "position": 7}))
    again = TantivyLexical.load(tmp_path)
    assert again is not None and again.position == 7
    again.close()


@pytest.mark.parametrize("committed", [False, True])
def test_what_is_deleted_or_replaced_is_found_no_more(lexical, committed):
    lexical.apply(write(BARN, TRAIN, ROUTER), 1)
    if committed:
        lexical.maintain()
    lexical.apply(write(row("router", "A modem."), deleted=["barn"]), 2)
    for _ in range(2):
        assert ids(lexical.search("storm", 10)) == ["train"]
        assert ids(lexical.search("router connection", 10)) == []
        assert ids(lexical.search("modem", 10)) == ["router"]
        lexical.maintain()


def test_a_word_that_deleted_rows_had_is_still_found_in_a_fresh_one(lexical):
    """They are counted until they are merged away."""
    lexical.apply(write(row("a", "sun"), row("b", "sun")), 1)
    lexical.maintain()
    lexical.apply(write(deleted=["a"]), 2)
    lexical.maintain()
    lexical.apply(write(row("a", "sun")), 3)
    assert sorted(ids(lexical.search("sun", 10))) == ["a", "b"]


def test_the_same_again_changes_nothing(lexical):
    for position in (1, 1, 2):
        lexical.apply(write(BARN, TRAIN), position)
        lexical.maintain()
    assert ids(lexical.search("storm", 10)) == ["barn", "train"]
    assert lexical.position == 2


def test_a_search_among_some_finds_only_those(lexical):
    lexical.apply(write(BARN, TRAIN), 1)
    lexical.maintain()
    lexical.apply(write(row("new", "storm storm")), 2)
    assert ids(lexical.search("storm", 10, ["train", "router"])) == ["train"]
    assert ids(lexical.search("storm", 10, {"train", "new"})) == ["new", "train"]
    assert lexical.search("storm", 10, []) == []


def test_rows_without_text_have_no_words(lexical):
    lexical.apply(write(row("a"), BARN), 1)
    lexical.maintain()
    assert ids(lexical.search("storm", 10)) == ["barn"] and lexical.size == 1


def test_it_knows_after_a_restart_what_it_saved(tmp_path):
    first = TantivyLexical.new(tmp_path)
    first.apply(write(BARN), 7)
    assert first.position == 7 and first.save() == 7
    first.apply(write(TRAIN), 8)
    first.close()
    again = TantivyLexical.load(tmp_path)
    assert again.position == 7, "the rest comes from the journal"
    assert ids(again.search("storm", 10)) == ["barn"]
    again.close()


def test_a_crash_between_the_commit_and_its_position_has_writes_applied_again(tmp_path, monkeypatch):
    first = TantivyLexical.new(tmp_path)
    first.apply(write(BARN), 1)
    first.save()
    monkeypatch.setattr(first, "_tell", lambda position: None)
    first.apply(write(TRAIN), 2)
    first.save()
    first.close()
    again = TantivyLexical.load(tmp_path)
    assert again.position == 1
    again.apply(write(TRAIN), 2)
    assert ids(again.search("storm", 10)) == ["barn", "train"]
    again.close()


@pytest.mark.parametrize("damage", ["index", "state", "version", "nothing was saved"])
def test_what_cannot_be_read_is_begun_anew(tmp_path, damage):
    first = TantivyLexical.new(tmp_path)
    first.apply(write(BARN), 1)
    if damage != "nothing was saved":
        first.save()
    first.close()
    if damage == "index":
        (tmp_path / "words" / "meta.json").write_text("{")
    elif damage == "state":
        (tmp_path / "position.json").write_text("[]")
    elif damage == "version":
        (tmp_path / "position.json").write_text(json.dumps({"version": 0, "position": 1}))
    assert TantivyLexical.load(tmp_path) is None
    again = TantivyLexical.new(tmp_path)
    assert again.position == 0 and again.search("storm", 10) == []
    again.apply(write(BARN), 1)
    assert ids(again.search("storm", 10)) == ["barn"]
    again.close()


def test_many_fresh_rows_are_committed_before_they_are_searched(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_FRESH", 3)
    lexical = TantivyLexical.new(tmp_path)
    lexical.apply(write(*(row(str(number), f"word {number}") for number in range(5))), 1)
    assert len(lexical.search("word", 10)) == 5 and lexical.size == 5
    lexical.close()


def test_a_disk_that_is_full_loses_no_words(lexical, monkeypatch):
    monkeypatch.setattr(module, "MOST_FRESH", 1)
    lexical.apply(write(BARN, TRAIN), 1)

    class Full:
        def writer(self, *settings):
            raise ValueError("No space left on device")

    whole = lexical._index
    lexical._index = Full()
    with pytest.raises(EngineFailure, match="cannot be written: No space left on device"):
        lexical.maintain()
    lexical._index.schema = whole.schema
    assert ids(lexical.search("storm", 10)) == ["barn", "train"], "from memory"
    lexical._index = whole
    assert lexical.save() == 1 and lexical.size == 2 and ids(lexical.search("storm", 10)) == ["barn", "train"]


def test_threads_search_beside_the_writer(lexical):
    lexical.apply(write(BARN), 0)
    lexical.maintain()
    failed, over = [], threading.Event()

    def look():
        while not over.is_set():
            found = ids(lexical.search("storm", 1000))
            if len(found) != len(set(found)) or "barn" not in found:
                failed.append(found)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(1, 20):
        lexical.apply(write(row(f"s{number % 5}", f"storm number {number}")), number)
        if number % 3 == 0:
            lexical.maintain()
    over.set()
    for thread in threads:
        thread.join()
    assert not failed


def test_no_k_and_a_very_long_question(lexical):
    with pytest.raises(InvalidInput, match="k is 0, expected 1 or more"):
        lexical.search("storm", 0)
    lexical.apply(write(BARN), 1)
    assert ids(lexical.search("storm " + " ".join(f"word{number}" for number in range(5000)), 10)) == ["barn"]
    assert len(words.query_words("x" * 100_000 + " storm")) == 1, "what is too long is no word"


@settings(max_examples=10, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.one_of(st.none(), st.lists(st.sampled_from(["sun", "rain", "snow"]), min_size=1, max_size=4)),
            st.sampled_from(["nothing", "commit", "restart"]),
        ),
        max_size=12,
    )
)
def test_any_order_of_writes_commits_and_restarts_ends_in_what_was_written_last(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("words")
    lexical, journal, here = TantivyLexical.new(folder), [], {}
    for position, (id, said, then) in enumerate(steps, 1):
        done = write(deleted=[id]) if said is None else write(row(id, " ".join(said)))
        journal.append(done)
        here[id] = said or []
        lexical.apply(done, position)
        if then == "commit":
            lexical.maintain()
        if then == "restart":
            lexical.close()
            lexical = TantivyLexical.load(folder) or TantivyLexical.new(folder)
            for number in range(lexical.position, position):
                lexical.apply(journal[number], number + 1)
    for word in ("sun", "rain", "snow"):
        assert set(ids(lexical.search(word, 10))) == {id for id, said in here.items() if word in said}
    lexical.close()
    shutil.rmtree(folder)
