"""The language of filters: what it takes, what it refuses and in which words, and that all its readers agree."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearmesh_agent.vectors import filters
from nearmesh_agent.vectors.filters.tree import COMPARISONS, after_all
from nearmesh_agent.vectors.model import FieldType, Origin, Row, Scalar, presence

from nearmesh.errors import InvalidInput
from tests.vector_rows import FIELDS, row, rows_of

HERE = row("b", {"lang": "en", "year": 2021, "score": 0.5, "open": True}, source="handbook/leave.md", part=2)


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        ('lang == "en"', True),
        ("lang == 'de'", False),
        ('lang != "de"', True),
        ("year >= 2021 and year < 2022", True),
        ("2021 <= year and 2022 > year", True),
        ("year == -2021", False),
        ("score > .4 && score < 5e-1", False),
        ("score <= 0.5 AND score > 0", True),
        ("open == true", True),
        ("not (open == True)", False),
        ("open in [false]", False),
        ('lang in ["de", "en"]', True),
        ('lang not in ["de", "en"]', False),
        ('not lang in ["de"]', True),
        ('source like "handbook/%"', True),
        ('source not like "handbook/%"', False),
        ('source like "%"', True),
        ('id == "b" || id == "c"', True),
        ('id > "a" and id < "c"', True),
        ("part == 2", True),
        ('source_hash == ""', True),
        ('lang == "de" or year == 2021 and open == true', True),
        ('(lang == "de" or year == 2021) and open == false', False),
        ('!(lang == "de" || year != 2021)', True),
        # A row that lacks a field is in no comparison with it, however it is turned.
        ('author == "x"', False),
        ('author != "x"', False),
        ('not author == "x"', False),
        ('not (author in ["x"])', False),
        ('author not like "x%"', False),
        ('not (author == "x" and year == 0)', True),
    ],
)
def test_what_a_filter_takes(text: str, takes: bool) -> None:
    where = filters.read(text, FIELDS)
    assert where is not None
    assert where.matches(HERE) is takes


@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_a_blank_filter_is_none(text: str) -> None:
    assert filters.read(text, FIELDS) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lang", r"character 5: expected one of == != .* found its end"),
        ('langs == "en"', r'character 1: the collection has no field "langs"; did you mean "lang"\?'),
        ("zzz == 1", r"there are: id, source, source_hash, part, lang"),
        ("lang == 5", r'character 9: field "lang" takes a string, found 5'),
        ('year == "2021"', 'field "year" takes a whole number'),
        ("year == 2021.5", 'field "year" takes a whole number, found 2021.5'),
        ("year == true", 'field "year" takes a whole number'),
        ("score == true", 'field "score" takes a number'),
        ("open == 1", "takes true or false"),
        ("open < true", "compared with == and != only"),
        ("true > open", "compared with == and != only"),
        ("year == 9223372036854775808", "no number of 64 bits"),
        ("year == " + "9" * 5000, "no number of 64 bits"),
        ("score == 1e999", "above what a float holds"),
        ("year == 12ab", "'12ab' is no number"),
        ('lang = "en"', 'character 6: a single "="'),
        ('lang == "en', 'character 9: a string that begins with " does not end'),
        (r'lang == "\x"', r"the escape \\x"),
        ('lang == "en" year == 1', r'character 14: expected "and", "or" or its end, found year'),
        ('(lang == "en"', r'character 14: expected "\)", found its end'),
        ("lang in []", "the list is empty"),
        ('lang in ["a", 5]', "takes a string, found 5"),
        ('lang in ["a"', 'expected "]"'),
        ("lang in 5", r'expected "\["'),
        ('lang like "a"', 'one "%" at the end'),
        ('lang like "%a%"', 'one "%" at the end'),
        ('year like "2%"', "takes a whole number"),
        ("year like 5", '"like" asks about strings'),
        ("not", "expected a field, found its end"),
        ("lang == lang", "takes a string, found lang"),
        ("year + 1 == 5", "has no meaning here|is no number"),
        ('__import__("os") == 1', "no field"),
        ('json_contains(lang, "x")', "no field"),
        ("not lang == year", "takes a string"),
        ("lang not == 5", '"in" or "like"'),
        ("(" * 40 + "year == 1" + ")" * 40, "nested more than 32 deep"),
        ("not " * 5000 + "year == 1", "nested more than 32 deep"),
        (" or ".join(["year == 1"] * 300), "more than 256 comparisons"),
        ("year in [" + "1," * 10_000 + "1]", "more than 10000 values"),
        ("x" * 300_000, "300000 characters; 262144 is the limit"),
        ('lang == "' + "x" * 200_000, "does not end"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as refused:
        filters.read(text, FIELDS)
    assert len(refused.value.message) < 300


def test_milvus_is_told_the_same_in_its_own_words() -> None:
    where = filters.read("""not (lang == 'a"b\\\\' or year > 5) and source like "x_%" and open != false""", FIELDS)
    assert where is not None
    assert where.milvus() == (
        r'(((_has_lang == true and lang != "a\"b\\") and (_has_year == true and year <= 5))'
        r' and (source >= "x_" and source < "x`") and (_has_open == true and open != false))'
    )


def test_a_prefix_without_an_end_is_a_range_that_is_open() -> None:
    assert after_all("ab") == "ac"
    assert after_all("a\U0010ffff") == "b"
    assert after_all("\ud7ff") == "\ue000"
    assert after_all("\U0010ffff") is None
    assert after_all("") is None


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
_VALUES: dict[FieldType, st.SearchStrategy[Scalar]] = {
    FieldType.STRING: st.sampled_from(["", "a", "ab", "b", 'c"', "d\\\n"]) | _TEXTS,
    FieldType.INT: st.integers(-3, 3) | st.integers(-(2**63) + 1, 2**63 - 1),
    FieldType.FLOAT: st.sampled_from([0.0, 0.5, -1.0]) | st.floats(allow_nan=False, allow_infinity=False),
    FieldType.BOOL: st.booleans(),
}


def _said(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return repr(value)
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[str, object]:
    """A comparison, and a function that says what it means."""
    fields = {**filters.STANDING, **FIELDS}
    name = draw(st.sampled_from(sorted(fields)))
    kind = fields[name]
    value = draw(_VALUES[kind])
    how = draw(st.sampled_from(["compare", "in", "not in", "like"]))
    if how == "like" and kind is FieldType.STRING and "%" not in str(value):
        return f"{name} like {_said(str(value) + '%')}", lambda it: str(it).startswith(str(value))
    if how in ("in", "not in"):
        values = [value, *draw(st.lists(_VALUES[kind], max_size=2))]
        listed = ", ".join(map(_said, values))
        return f"{name} {how} [{listed}]", lambda it: (it in values) == (how == "in")
    sign = draw(st.sampled_from(["==", "!="] if kind is FieldType.BOOL else sorted(COMPARISONS)))
    return f"{name} {sign} {_said(value)}", lambda it: COMPARISONS[sign](it, value)


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> tuple[str, object]:
    """A filter's text, and what SQL's three values make of it for one row: true, false or None."""
    shape = draw(st.sampled_from(["test", "not", "and", "or"])) if depth else "test"
    if shape == "test":
        text, holds = draw(comparisons())
        name = text.split()[0]

        def tested(one: Row) -> bool | None:
            value = filters.value_of(one, name)
            return None if value is None else bool(holds(value))  # type: ignore[operator]

        return text, tested
    text, inner = draw(expressions(depth - 1))
    if shape == "not":
        return f"not ({text})", lambda one: None if (it := inner(one)) is None else not it  # type: ignore[operator]
    other, second = draw(expressions(depth - 1))
    decisive = shape == "or"

    def joined(one: Row) -> bool | None:
        both = (inner(one), second(one))  # type: ignore[operator]
        return decisive if decisive in both else None if None in both else not decisive

    return f"({text}) {shape} ({other})", joined


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    count = draw(st.integers(1, 6))
    made = []
    for number in range(count):
        given_fields = {name: draw(_VALUES[kind]) for name, kind in FIELDS.items() if draw(st.integers(0, 3))}
        origin = Origin(source=draw(_VALUES[FieldType.STRING]), part=draw(st.integers(0, 3)))  # type: ignore[arg-type]
        made.append(row(f"{number}{draw(_TEXTS)}", given_fields, source=origin.source, part=origin.part))
    return made


@given(rows(), expressions())
def test_one_row_all_columns_and_sql_agree(some: list[Row], expression: tuple[str, object]) -> None:
    text, meaning = expression
    where = filters.read(text, FIELDS)
    assert where is not None
    expected = [meaning(one) is True for one in some]  # type: ignore[operator]
    assert [where.matches(one) for one in some] == expected, text
    with rows_of(some) as view:
        assert where.mask(view).tolist() == expected, text


@given(rows(), expressions())
def test_what_milvus_is_told_reads_as_the_same(some: list[Row], expression: tuple[str, object]) -> None:
    where = filters.read(expression[0], FIELDS)
    assert where is not None
    again = filters.read(where.milvus(), {**FIELDS, **{presence(name): FieldType.BOOL for name in FIELDS}})
    assert again is not None
    assert [again.matches(stored(one)) for one in some] == [where.matches(one) for one in some]


def stored(one: Row) -> Row:
    """As the store has it: something in each column, and beside it whether the row has the field."""
    nothing = {FieldType.STRING: "", FieldType.INT: 0, FieldType.FLOAT: 0.0, FieldType.BOOL: False}
    filled = {name: one.fields.get(name, nothing[kind]) for name, kind in FIELDS.items()}
    return replace(one, fields={**filled, **{presence(name): name in one.fields for name in FIELDS}})


@given(st.text(max_size=40) | st.text("()[]\"'=<>!&|, \\%andortilke1.-e", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        filters.read(text, FIELDS)
    except InvalidInput as error:
        assert error.message.startswith("filter, character ")
