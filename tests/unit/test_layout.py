"""The OCI layout: a blob that is there is whole, and the index never loses an entry."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nearmesh.errors import DigestMismatch, InvalidInput, NotFound, TooLarge
from nearmesh.oci import MANIFEST_TYPE, WEIGHT_TYPE, Descriptor, digest_bytes
from nearmesh.oci_layout import REF_NAME, Layout

DATA = b"some bytes of a model" * 100
BLOB = Descriptor(WEIGHT_TYPE, digest_bytes(DATA), len(DATA))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "blobs" / "sha256").iterdir())


def references(tmp_path: Path) -> dict[str, str]:
    entries = json.loads((tmp_path / "index.json").read_bytes())["manifests"]
    assert len({entry["annotations"][REF_NAME] for entry in entries}) == len(entries)
    return {entry["annotations"][REF_NAME]: entry["digest"] for entry in entries}


def test_a_blob_appears_when_all_of_it_is_there(layout: Layout, tmp_path: Path) -> None:
    writer = layout.writer(BLOB)
    for start in range(0, len(DATA), 7):
        writer.write(DATA[start : start + 7])
        assert not layout.has(BLOB)
    writer.commit()
    writer.abandon()
    assert layout.path(BLOB.digest).read_bytes() == DATA
    assert files(tmp_path) == [hashlib.sha256(DATA).hexdigest()]


@pytest.mark.parametrize("data", [b"", DATA[:-1], DATA[:-1] + b"x"])
def test_p5_wrong_bytes_do_not_become_a_blob(layout: Layout, tmp_path: Path, data: bytes) -> None:
    writer = layout.writer(BLOB)
    writer.write(data)
    with pytest.raises(DigestMismatch, match=f"came as {digest_bytes(data)}"):
        writer.commit()
    writer.abandon()
    assert files(tmp_path) == []


def test_more_than_announced_is_refused_at_once(layout: Layout, tmp_path: Path) -> None:
    writer = layout.writer(BLOB)
    writer.write(DATA)
    with pytest.raises(TooLarge):
        writer.write(b"x")
    writer.abandon()
    assert files(tmp_path) == []


def test_an_empty_blob(layout: Layout) -> None:
    writer = layout.writer(Descriptor(WEIGHT_TYPE, digest_bytes(b""), 0))
    writer.commit()
    assert layout.path(digest_bytes(b"")).read_bytes() == b""


def test_two_writers_of_one_blob(layout: Layout, tmp_path: Path) -> None:
    writers = [layout.writer(BLOB) for _ in range(2)]
    for writer in writers:
        writer.write(DATA)
    for writer in writers:
        writer.commit()
        writer.abandon()
    assert files(tmp_path) == [hashlib.sha256(DATA).hexdigest()]


def test_what_a_killed_process_left_behind_is_swept_up(layout: Layout, tmp_path: Path) -> None:
    killed = layout.writer(BLOB)
    killed.write(DATA)
    layout.add_manifest(b"{}", digest_bytes(b"{}"), "m:1")
    assert any(name.startswith(".incoming-") for name in files(tmp_path))
    again = Layout(tmp_path)
    assert files(tmp_path) == [hashlib.sha256(b"{}").hexdigest()]
    assert again.has(Descriptor(MANIFEST_TYPE, digest_bytes(b"{}"), 2)) and references(tmp_path) == {
        "m:1": digest_bytes(b"{}")
    }
    killed.abandon()


def test_the_index_names_each_version_once(layout: Layout, tmp_path: Path) -> None:
    assert references(tmp_path) == {}
    for body in (b"{}", b"{}", b"[]"):
        layout.add_manifest(body, digest_bytes(body), "m:1")
    layout.add_manifest(b"{}", digest_bytes(b"{}"), "m:2")
    # The first attempt at m:1 was never acknowledged, or the catalog would have refused the other bytes.
    assert references(tmp_path) == {"m:1": digest_bytes(b"[]"), "m:2": digest_bytes(b"{}")}


def test_threads_lose_no_entry(layout: Layout, tmp_path: Path) -> None:
    bodies = {f"m:{number}": str(number).encode() for number in range(40)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda ref: layout.add_manifest(bodies[ref], digest_bytes(bodies[ref]), ref), bodies))
    assert references(tmp_path) == {ref: digest_bytes(body) for ref, body in bodies.items()}


def test_what_is_not_there_and_what_is_no_digest(layout: Layout) -> None:
    with pytest.raises(NotFound, match=BLOB.digest):
        layout.path(BLOB.digest)
    for wrong in ("sha256:../../../etc/passwd", "../state.db", ""):
        with pytest.raises(InvalidInput):
            layout.path(wrong)


def test_the_files_are_readable_by_other_tools(layout: Layout, tmp_path: Path) -> None:
    layout.add_manifest(b"{}", digest_bytes(b"{}"), "m:1")
    for path in (tmp_path / "oci-layout", tmp_path / "index.json", layout.path(digest_bytes(b"{}"))):
        assert path.stat().st_mode & 0o444 == 0o444


def kept(layout: Layout) -> Path:
    writer = layout.writer(BLOB)
    writer.write(DATA)
    writer.commit()
    return layout.path(BLOB.digest)


@pytest.mark.parametrize("damaged", [b"", DATA[:-1], DATA + b"x", DATA[:-1] + b"x"])
def test_a_blob_that_the_disk_damaged_is_not_there_and_may_come_again(layout: Layout, damaged: bytes) -> None:
    path = kept(layout)
    assert layout.has(BLOB)
    path.write_bytes(damaged)
    assert not layout.has(BLOB)
    kept(layout)
    assert layout.has(BLOB) and path.read_bytes() == DATA
