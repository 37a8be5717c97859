"""Which files an import takes, what it calls them, and what it never touches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nearmesh.errors import InvalidInput
from nearmesh.ingest.files import Claim, Kind, find


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "deep" / "er").mkdir(parents=True)
    for name in ("b.md", "a.TXT", "deep/er/c.csv", "deep/d.pdf", ".hidden.md", "picture.png"):
        (folder / name).write_text("x")
    return folder


def test_a_folder_is_named_by_itself_and_a_file_by_its_folder(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find([docs])
    assert [(file.name, file.kind) for file in found.files] == [
        ("docs/a.TXT", Kind.TEXT),
        ("docs/b.md", Kind.MARKDOWN),
        ("docs/deep/d.pdf", Kind.PDF),
        ("docs/deep/er/c.csv", Kind.CSV),
    ]
    assert sorted(found.others) == ["docs/.hidden.md", "docs/picture.png"]
    assert found.claims == [Claim("docs", True)] and not found.problems
    monkeypatch.chdir(docs)
    assert find([Path()]).files == found.files
    assert find([Path("b.md")]).files == [file for file in found.files if file.name == "docs/b.md"]
    assert find([Path("b.md")], called="handbook/").claims == [Claim("handbook/b.md", False)]


def test_two_paths_of_one_name_are_refused(docs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "docs"
    other.mkdir(parents=True)
    for paths in ([docs, other], [docs, docs / "b.md"], [docs / "b.md", docs / "b.md"]):
        with pytest.raises(InvalidInput, match=r"docs.*--as NAME"):
            find(paths)
    assert len(find([docs / "b.md", docs / "a.TXT"]).claims) == 2


@pytest.mark.parametrize(
    ("claim", "source", "covers"),
    [
        (Claim("docs", True), "docs/a.md", True),
        (Claim("docs", True), "docs", False),
        (Claim("docs", True), "docs-old/a.md", False),
        (Claim("docs/a.jsonl", False), "docs/a.jsonl", True),
        (Claim("docs/a.jsonl", False), "docs/a.jsonl/7", True),
        (Claim("docs/a.jsonl", False), "docs/a.jsonl.bak", False),
    ],
)
def test_what_an_import_speaks_for(claim: Claim, source: str, covers: bool) -> None:
    assert claim.covers(source) is covers
    assert not covers or source.startswith(claim.prefix)


def test_links_and_excluded_files_are_there_and_not_read(docs: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (docs / "link.txt").symlink_to(tmp_path / "secret.txt")
    (docs / "loop").symlink_to(docs)
    found = find([docs], exclude=["*.csv", "docs/b*"])
    assert [file.name for file in found.files] == ["docs/a.TXT", "docs/deep/d.pdf"]
    assert {"docs/link.txt", "docs/loop", "docs/b.md", "docs/deep/er/c.csv"} <= set(found.others)


@pytest.mark.parametrize("glob", ["d.pdf", "deep/*.pdf", "docs/deep/d.*", "deep", "*.pdf"])
def test_what_is_excluded_is_named_by_itself_or_by_its_path(docs: Path, glob: str) -> None:
    for called in ("", "team/handbook"):
        found = find([docs], called=called, exclude=[glob.replace("docs/", f"{called or 'docs'}/")])
        assert "d.pdf" not in {file.path.name for file in found.files} and len(found.files) >= 2


def test_a_path_that_is_a_link_keeps_its_name(docs: Path, tmp_path: Path) -> None:
    """As of a release that is exchanged for the next."""
    (tmp_path / "current").symlink_to(docs)
    (tmp_path / "one.md").symlink_to(docs / "b.md")
    assert find([tmp_path / "current"]).files[0].name == "current/a.TXT"
    (file,) = find([tmp_path / "one.md"]).files
    assert file.name == f"{tmp_path.name}/one.md" and file.path == docs / "b.md"


def test_a_file_of_another_kind_is_told_when_it_was_asked_for(docs: Path) -> None:
    (problem,) = find([docs / "picture.png"]).problems
    assert problem.source == "docs/picture.png" and "--type" in problem.message
    assert find([docs / "picture.png"], kind=Kind.TEXT).files[0].kind is Kind.TEXT
    assert [file.kind for file in find([docs], kind=Kind.TEXT).files] == [
        Kind.TEXT,
        Kind.MARKDOWN,
        Kind.TEXT,
        Kind.PDF,
        Kind.CSV,
    ]


def test_names_that_no_message_carries_are_told(docs: Path) -> None:
    Path(os.fsdecode(os.fsencode(docs) + b"/\xff.md")).write_text("x")
    (docs / "new\nline.md").write_text("x")
    found = find([docs])
    assert sorted(problem.source for problem in found.problems) == ["docs/\\xff.md", "docs/new\\x0aline.md"]
    assert len(found.files) == 4


def test_a_folder_whose_name_no_message_carries_needs_another(docs: Path) -> None:
    strange = Path(os.fsdecode(os.fsencode(docs) + b"\xff"))
    docs.rename(strange)
    with pytest.raises(InvalidInput, match=r"docs\\xff has characters.*--as"):
        find([strange])
    assert find([strange], called="docs").files[0].name == "docs/a.TXT"


def test_what_is_no_file_waits_for_nobody(docs: Path) -> None:
    os.mkfifo(docs / "pipe.txt")
    found = find([docs])
    assert "docs/pipe.txt" in found.others and len(found.files) == 4


def test_a_folder_that_cannot_be_listed_is_told(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find([docs])
    assert [str(problem) for problem in found.problems] == ["docs/deep: this folder cannot be read: Permission denied"]
    assert [file.name for file in found.files] == ["docs/a.TXT", "docs/b.md"]
