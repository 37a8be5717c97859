"""Lines of keys in TOML: whatever way a key is written, its line is found."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from nearmesh.toml_lines import At, Lines

TEXT = r"""# A comment = with ] and "quotes"
name = "x"            # another
plain = 1979-05-27 07:32:00
"quoted key" = 'single # no comment'
dotted . key = 2
long = QQQ
[not.a.table]
a = "]]" \"QQ QQQQ
raw = '''
b = {'''
list = [
    1, # one
    "two, ]",

    { a = 1, b = [2,
      3] },
]

[table]
inner = { a = 1, b = "}", c . d = 3 }

[[many]]
a = 1
[many.below]
b = 2

[[many]]
  a = [ ]
[[many.deep]]
z = true
[[many.deep]]
z = false

[ "odd.name" . x ]
y = 0
""".replace("Q", '"')
PLACES: list[tuple[At, int]] = [
    (("name",), 2),
    (("plain",), 3),
    (("quoted key",), 4),
    (("dotted", "key"), 5),
    (("long",), 6),
    (("raw",), 9),
    (("list",), 11),
    (("list", 0), 12),
    (("list", 1), 13),
    (("list", 2, "a"), 15),
    (("list", 2, "b", 1), 16),
    (("table",), 19),
    (("table", "inner", "c", "d"), 20),
    (("many",), 22),
    (("many", 0, "a"), 23),
    (("many", 0, "below", "b"), 25),
    (("many", 1), 27),
    (("many", 1, "a"), 28),
    (("many", 1, "deep", 0, "z"), 30),
    (("many", 1, "deep", 1), 31),
    (("odd.name", "x", "y"), 35),
]


@pytest.mark.parametrize(("at", "line"), PLACES)
def test_a_place_has_its_line(at: At, line: int) -> None:
    assert Lines(TEXT).find(at) == line


def test_what_is_not_written_has_the_line_of_what_it_is_in() -> None:
    lines = Lines(TEXT)
    assert lines.find(("many", 1, "absent")) == 27
    assert lines.find(("table", "inner", "absent", 3)) == 20
    assert lines.find(("absent",)) is None and lines.find(()) is None


def places(value: Any, at: At = ()) -> list[At]:
    """Every key and item of a document."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in parts for found in [(*at, key), *places(inner, (*at, key))]]


def test_nothing_of_the_text_above_is_missed() -> None:
    lines = Lines(TEXT)
    for at in places(tomllib.loads(TEXT)):
        assert lines.find(at) is not None, at


texts = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=8)
scalars = texts | st.integers(-(2**40), 2**40) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
documents = st.dictionaries(
    texts,
    st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
    ),
    max_size=4,
)


@settings(deadline=None)
@given(documents, st.booleans())
def test_each_key_stands_on_the_line_that_is_found_for_it(document: dict[str, Any], multiline: bool) -> None:
    text = tomli_w.dumps(document, multiline_strings=multiline)
    lines, written = Lines(text), text.split("\n")
    for at in places(tomllib.loads(text)):
        number = lines.find(at)
        if isinstance(at[-1], str) and number is not None:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", at[-1])
            assert (at[-1] if bare else '"') in written[number - 1]
