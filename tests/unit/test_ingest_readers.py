"""What each kind of file becomes, and what is said of those that are damaged or meant to do harm."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from nearmesh.errors import NotInstalled
from nearmesh.ingest import pdf, reading, tables
from nearmesh.ingest.document import Content, Document, Problem
from nearmesh.ingest.files import File, find
from nearmesh.ingest.markdown import MAX_CHARACTERS, MAX_LINES, read_markdown
from nearmesh.ingest.pdf_pages import pages
from nearmesh.ingest.plain import read_plain
from nearmesh.ingest.records import RecordRules, as_field
from nearmesh.ingest.sources import Rules, read
from nearmesh.ingest.split import Sizes, split

Write = Callable[..., list[Document | Problem]]


@pytest.fixture
def imported(tmp_path: Path) -> Write:
    """Writes a file and reads it as an import would."""

    def write(name: str, data: bytes | str, rules: Rules | None = None) -> list[Document | Problem]:
        path = tmp_path / "docs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        found = find([path])
        assert not found.problems
        return [item for item in read(found.files, rules or Rules()) if not isinstance(item, File)]

    return write


def content(item: Document | Problem) -> Content:
    assert isinstance(item, Document), item
    return item.read()


def told(items: list[Document | Problem]) -> list[str]:
    return [str(item) for item in items if isinstance(item, Problem)]


# Texts.


def test_a_text_has_paragraphs_and_lines(imported: Write) -> None:
    (document,) = imported("a.txt", b"\xef\xbb\xbfOne.\r\n\r\nTwo,\rthree.\n")
    found = content(document)
    assert found.text == "One.\n\nTwo,\nthree.\n"
    assert [found.text[at:][:3] for at, _ in found.breaks] == ["Two"]
    assert found.places(0, 4) == "line 1" and found.places(6, 16) == "lines 3-4"


@pytest.mark.parametrize(
    ("data", "rules", "text"),
    [
        ("é".encode("utf-16"), Rules(), "é"),
        ("é".encode("latin-1"), Rules(encoding="latin-1"), "é"),
        ("abc".encode("utf-16-le"), Rules(encoding="UTF_16LE"), "abc"),
        (b"a" + b"b" * 9000 + b"\0c", Rules(), "a" + "b" * 9000 + " c"),
    ],
)
def test_encodings(imported: Write, data: bytes, rules: Rules, text: str) -> None:
    (document,) = imported("a.txt", data, rules)
    assert content(document).text == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("caf\xe9".encode("latin-1"), "byte 3 is not utf-8; --encoding"),
        (b"PK\x03\x04\0\0", "zero bytes"),
    ],
)
def test_what_is_no_text_is_told(imported: Write, data: bytes, message: str) -> None:
    (document,) = imported("a.txt", data)
    with pytest.raises(reading.Unreadable, match=message):
        content(document)


def test_a_file_that_is_too_large_is_told(imported: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 10)
    assert told(imported("a.txt", "x" * 11)) == ["docs/a.txt: above the limit of 0 MiB; import it in pieces"]
    assert not told(imported("b.txt", "x" * 10))


def test_a_hash_is_of_the_content_and_of_how_it_is_cut(imported: Write) -> None:
    def hash_of(name: str, text: str, rules: Rules | None = None) -> str:
        (document,) = imported(name, text, rules)
        assert isinstance(document, Document)
        return document.hash

    assert hash_of("a.txt", "x") == hash_of("b.txt", "x")
    others = [hash_of("a.txt", "y"), hash_of("a.md", "x"), hash_of("a.txt", "x", Rules(sizes=Sizes(500)))]
    assert len({hash_of("a.txt", "x"), *others}) == 4


# Markdown.

MARKDOWN = """---
title: Facts
---
# Setup

First words.

## Linux

```
# no heading
```

- one
- two

Setext
======

> # quoted
"""


def test_markdown_has_sections_and_blocks() -> None:
    found = read_markdown(MARKDOWN)
    assert found.text == MARKDOWN
    kinds = {found.text[at:].partition("\n")[0]: kind.name for at, kind in found.breaks}
    assert kinds == {
        "# Setup": "SECTION",
        "First words.": "BLOCK",
        "## Linux": "SECTION",
        "```": "BLOCK",
        "- one": "BLOCK",
        "- two": "SENTENCE",
        "Setext": "SECTION",
        "> # quoted": "BLOCK",
    }
    assert [found.places(MARKDOWN.index(of), 0) for of in ("title", "First", "- two", "> #")] == [
        "",
        "Setup",
        "Setup > Linux",
        "Setext",
    ]


@pytest.mark.parametrize("text", ["", "---\n", "---\nno end", "#", "# \n## \n", ">" * 5000, "- " * 3000, "[" * 5000])
def test_markdown_of_any_kind_is_read(text: str) -> None:
    found = read_markdown(text)
    assert found.text == text
    parts = "".join(part.text for part in split(found, Sizes(1000, 0)))
    assert "".join(parts.split()) == "".join(text.split())


@pytest.mark.parametrize("text", ["# a\n" * (MAX_LINES + 1), "# a\n" + "|a" * (MAX_CHARACTERS // 2)])
def test_markdown_that_is_too_long_for_its_blocks_is_read_as_text(text: str) -> None:
    found = read_markdown(text)
    assert found.text == text and list(found.breaks) == []
    assert found.places(4, 5) == "line 2"


# Records.

RULES = RecordRules(fields={"lang": "string", "year": "int", "score": "float", "old": "bool"}, dimension=2)


def test_json_lines(imported: Write) -> None:
    lines = [
        {"id": "a/1", "text": "One.\n\nTwo.", "lang": "en", "year": 2020, "score": 1, "old": False, "url": "left out"},
        {"id": 7, "text": "Seven.", "lang": None},
        {"text": "No name."},
        {"text": "No name."},
    ]
    items = imported("a.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n", Rules(records=RULES))
    names = [item.source for item in items]
    assert names[:2] == ["docs/a.jsonl/a/1", "docs/a.jsonl/7"] and names[2].startswith("docs/a.jsonl/~")
    assert len(items) == 3, "the same twice is once where nothing names it"
    first = content(items[0])
    assert first.fields == {"lang": "en", "year": 2020, "score": 1.0, "old": False}
    assert first.places(0, 3) == "line 1" and len(list(first.breaks)) == 1
    assert content(items[1]).fields == {}


def test_the_columns_that_hold_the_text_are_chosen(imported: Write) -> None:
    line = json.dumps({"name": "x", "title": "Title", "body": "Body", "note": ""})
    rules = Rules(records=RecordRules(text=("title", "note", "body"), id="name"))
    (document,) = imported("a.jsonl", line, rules)
    assert document.source == "docs/a.jsonl/x" and content(document).text == "Title\n\nBody"


def test_a_record_may_bring_its_vector(imported: Write) -> None:
    text = 'id,vector,text\na,"[1, 0.5]",words\nb,,more\n'
    for items in (
        imported("a.csv", text, Rules(records=RULES)),
        imported("a.jsonl", '{"id": "a", "vector": [1, 0.5], "text": "words"}', Rules(records=RULES)),
    ):
        assert content(items[0]).vector == struct.pack("<2f", 1, 0.5)
    assert content(imported("a.csv", text, Rules(records=RULES))[1]).vector == b""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "expected an object, got list"),
        ("{", "not JSON: "),
        ("[" * 100_000, "nested too deeply"),
        ('{"text": NaN}', "NaN is no number of JSON"),
        ('{"n": ' + "9" * 5000 + "}", "not JSON: "),
        ('{"body": "x"}', "no text in it; it has body: --text names the column to take"),
        ("{}", "no text in it; it has nothing"),
        ('{"text": 5}', "text 5 is not text"),
        ('{"text": "x", "id": [1]}', "id [1] is neither text nor a whole number"),
        ('{"text": "x", "id": true}', "id True is neither text"),
        ('{"text": "x", "id": "' + "i" * 201 + '"}', "is above 200 bytes"),
        ('{"text": "x", "year": "soon"}', "year 'soon' is no int, which the collection wants"),
        ('{"text": "x", "old": "perhaps"}', "old 'perhaps' is no bool"),
        ('{"text": "x", "score": [1]}', "score [1] is no float"),
        ('{"text": "x", "lang": {}}', "lang {} is no string"),
        ('{"vector": [1]}', "vector has 1 numbers, the collection's have 2"),
        ('{"vector": [1, "2"]}', "vector [1, '2'] is no list of numbers"),
        ('{"vector": "up"}', "vector 'up' is no list of numbers"),
        ('{"vector": [1, 1e39]}', "vector has a number that FP32 cannot hold"),
        ('{"vector": [1, ' + "9" * 400 + "]}", "vector has a number that FP32 cannot hold"),
        ('{"text": "caf\xe9"}', "byte 13 is not utf-8"),
    ],
)
def test_a_record_that_is_wrong_is_told_with_its_line_and_no_other(imported: Write, line: str, message: str) -> None:
    data = b'{"text": "first"}\n' + line.encode("latin-1") + b'\n{"text": "last"}\n'
    items = imported("a.jsonl", data, Rules(records=RULES))
    assert [content(items[0]).text, content(items[2]).text] == ["first", "last"]
    (problem,) = told(items)
    assert problem.startswith("docs/a.jsonl, line 2: ") and message in problem and len(problem) < 250


def test_an_id_that_stands_twice_is_told(imported: Write) -> None:
    items = imported("a.jsonl", '{"id": 1, "text": "a"}\n{"id": "1", "text": "b"}\n')
    assert told(items) == ["docs/a.jsonl, line 2: id '1' stands in line 1 already"]


def test_halves_of_characters_are_replaced(imported: Write) -> None:
    (document,) = imported("a.jsonl", r'{"text": "a\ud800b\u0000c \ud83d\ude00", "id": "\ud800"}')
    assert content(document).text == "a\ufffdb c \U0001f600"
    assert document.source.encode() == b"docs/a.jsonl/\\x00"


def test_a_line_that_is_too_long_takes_no_other_with_it(imported: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 64)
    items = imported("a.jsonl", '{"text": "' + "x" * 500 + '"}\n{"text": "y"}\n')
    assert told(items) == ["docs/a.jsonl, line 1: above the limit of 0 MiB for a line"]
    assert content(items[1]).text == "y"


def test_a_row_that_quotes_hold_together_is_bounded(imported: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 64)
    short = "text\n" + "".join(f'"two\nlines, {number}"\n' for number in range(20))
    assert len(imported("a.csv", short)) == 20
    # Each of its fields is short enough.
    items = imported("a.csv", short + ",".join(['"a\nb"'] * 40) + "\ntext\n")
    assert len(items) == 21 and told(items)[0].startswith("docs/a.csv: line ")
    assert "its row is above the limit of 0 MiB; is a quote not closed?" in told(items)[0]


def test_binary_and_utf_16_are_no_lines(imported: Write) -> None:
    assert "zero bytes" in told(imported("a.jsonl", b"\x7fELF\0"))[0]
    assert "UTF-16" in told(imported("a.csv", "text\nx\n".encode("utf-16")))[0]
    assert imported("a.jsonl", "") == []


# Tables.


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_tables_are_read_whatever_lies_between_their_columns(imported: Write, delimiter: str) -> None:
    rows = [["id", "text", "year"], ["a", '"One\nmore, ""so""; it\tis | said"', "2020"], ["b", "Two", ""]]
    data = "\r\n".join(delimiter.join(row) for row in rows)
    items = imported("a.csv", data, Rules(records=RULES))
    assert [item.source for item in items] == ["docs/a.csv/a", "docs/a.csv/b"]
    first = content(items[0])
    assert first.text == 'One\nmore, "so"; it\tis | said' and first.fields == {"year": 2020}
    assert [content(item).places(0, 1) for item in items] == ["line 2", "line 4"]


@pytest.mark.parametrize(
    ("data", "problems", "read_rows"),
    [
        ("id,text\na,b,c\nd,e\n", ["docs/a.csv, line 2: 3 columns, where the first line names 2"], 1),
        ('text\na\n"never closed\nb\n', ["docs/a.csv: line 4: unexpected end of data"], 1),
        ("text,text\na,b\n", ["docs/a.csv: the first line names 2 columns; at most 1000, each once"], 0),
        ("a,b\n1,2\n", ["docs/a.csv, line 2: no text in it; it has a, b: --text names the column to take"], 0),
        (b"text\na\n\xff\n", ["docs/a.csv: line 3: byte 0 is not utf-8; --encoding names another one"], 1),
        ("", [], 0),
        ("\n\n", [], 0),
    ],
)
def test_a_table_that_is_wrong(imported: Write, data: bytes | str, problems: list[str], read_rows: int) -> None:
    items = imported("a.csv", data)
    assert told(items) == problems and len(items) == len(problems) + read_rows


@pytest.mark.parametrize(
    ("kind", "value", "found"),
    [
        ("int", "7", 7),
        ("int", 7.0, 7),
        ("float", "0.5", 0.5),
        ("bool", "No", False),
        ("bool", 1, True),
        ("string", 7, "7"),
        ("string", True, "true"),
        ("string", "", ""),
        ("int", "", None),
        ("float", None, None),
    ],
)
def test_values_become_what_the_collection_wants(kind: str, value: Any, found: Any) -> None:
    got = as_field("f", kind, value)
    assert got == found and type(got) is type(found)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("int", True), ("int", 1.5), ("int", 2**63), ("float", "nan"), ("float", 10**400), ("bool", 2), ("string", [])],
)
def test_values_that_do_not_fit_are_refused(kind: str, value: Any) -> None:
    with pytest.raises(reading.Unreadable, match=f"is no {kind}, which the collection wants"):
        as_field("f", kind, value)


# PDF.


def pdf_of(*texts: str, password: str = "") -> bytes:
    """One page a text, a line each."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    for text in texts:
        page = writer.add_blank_page(300, 300)
        font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
        names = DictionaryObject({NameObject(key): NameObject(value) for key, value in font.items()})
        fonts = DictionaryObject({NameObject("/F1"): names})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        stream = DecodedStreamObject()
        lines = "".join(f"({line}) Tj 0 -14 Td " for line in text.split("\n"))
        stream.set_data(f"BT /F1 12 Tf 20 250 Td {lines}ET".encode())
        page[NameObject("/Contents")] = writer._add_object(stream)
    if password:
        writer.encrypt(password, algorithm="AES-256")
    out = BytesIO()
    writer.write(out)
    return out.getvalue()


def test_pages_of_a_pdf() -> None:
    found = pages(pdf_of("One page.", "", "Third\npage."))["pages"]
    assert [page.strip() for page in found] == ["One page.", "", "Third\npage."]


def test_a_pdf_is_read_by_a_process_of_its_own(imported: Write) -> None:
    (document,) = imported("a.pdf", pdf_of("A word that is di-\nvided here, and", "goes on."))
    found = content(document)
    assert found.text == "A word that is divided here, and\ngoes on."
    assert [part.position for part in split(found, Sizes())] == ["pages 1-2"]
    assert found.places(0, 3) == "page 1"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (pdf_of("secret", password="x"), "encrypted with a password; save it without one"),
        (pdf_of("cut off")[:300], "damaged: "),
        (b"%PDF-1.7\n" + b"1 0 obj << /Kids [1 0 R] >>" * 50, "damaged: "),
        (b"%PDF-1.4\nxref\n0 99999999999\ntrailer << /Root 1 0 R /Size 1 >>\nstartxref\n9\n%%EOF", "damaged: "),
    ],
)
def test_a_pdf_that_is_locked_or_damaged_is_told(data: bytes, error: str) -> None:
    found = pages(data)
    assert found.get("error", "").startswith(error), found


def test_a_pdf_with_too_many_pages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearmesh.ingest.pdf_pages.MAX_PAGES", 1)
    assert pages(pdf_of("a", "b")) == {"error": "2 pages, above the limit of 1"}
    monkeypatch.setattr("nearmesh.ingest.pdf_pages.MAX_CHARACTERS", 3)
    assert pages(pdf_of("long")) == {"error": "more than 3 characters of text"}


def test_scans_and_other_files_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(reading.Unreadable, match="not a PDF"):
        pdf.read_pdf(b"<html>")
    monkeypatch.setattr(pdf.subprocess, "run", lambda *_, **__: _done(b'{"pages": ["", " "]}'))
    with pytest.raises(reading.Unreadable, match="no text in its 2 pages; scanned"):
        pdf.read_pdf(b"%PDF-1.7")
    monkeypatch.setattr(pdf.subprocess, "run", lambda *_, **__: _done(b"", -9))
    with pytest.raises(reading.Unreadable, match="more memory than it may"):
        pdf.read_pdf(b"%PDF-1.7")


def _done(stdout: bytes, code: int = 0) -> Any:
    import subprocess

    return subprocess.CompletedProcess([], code, stdout)


def test_a_pdf_that_lasts_is_ended() -> None:
    with pytest.raises(reading.Unreadable, match=r"not found within 0\.001 s"):
        pdf.read_pdf(pdf_of("x"), limit_s=0.001)


def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "find_spec", lambda name: None)
    with pytest.raises(NotInstalled, match=r"nearmesh\[ingest\]"):
        pdf.read_pdf(b"%PDF-1.7")
    monkeypatch.setitem(__import__("sys").modules, "markdown_it", None)
    with pytest.raises(NotInstalled, match=r"nearmesh\[ingest\]"):
        read_markdown("# x")
    assert read_plain("x").text == "x"
